"""Graph convolutions with sparse adjacency; no tensor has an entry for every edge and channel.

Parameters are named and shaped as in PyG's layers of the same names. Every convolution first computes edge weights
(`weigh`, once per forward pass for all layers) and then propagates. A soft gate of zero and a missing edge give the
same output: no share of a sum, of a mean or of the attention.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from gebt.graph.edges import Edges
from gebt.models.attention import row_softmax
from gebt.models.dropout import dropout
from gebt.models.linear import Biased, Linear, SemiStructuredLinear, SparseLinear, glorot
from gebt.sparse.ops import mixed_spmm
from gebt.sparse.pattern import SparseMatrix

# Slope of the leaky ReLU in the attention, for negative numbers.
SLOPE = 0.2


def narrow_first(lin: nn.Module, x: Tensor) -> bool:
    """Whether (A X) W^T passes fewer columns through A than A (X W^T), forward and backward.

    Args:
        lin: a linear layer with `weight` [out, in].
        x: what it multiplies, [N, in].

    Returns:
        True where to propagate first.

    Example:
        >>> with torch.no_grad():
        ...     narrow_first(Linear(2, 8), torch.ones(4, 2)), narrow_first(Linear(8, 2), torch.ones(4, 8))
        (True, False)
    """
    out_channels, in_channels = lin.weight.shape  # type: ignore[misc]
    to_x = torch.is_grad_enabled() and x.requires_grad
    to_weights = torch.is_grad_enabled() and any(p.requires_grad for p in lin.parameters())
    # A X passes back through A only for x's sake, A (X W) for the weights' too.
    return bool(in_channels * (1 + to_x) < out_channels * (1 + (to_x or to_weights)))


class GCNConv(Biased):
    """One graph convolution: Y = A_hat X W^T + b, A_hat = D^-1/2 (A + I) D^-1/2; names as in PyG's `GCNConv`.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.

    Source:
        Kipf & Welling 2017, equation 2.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin: Linear | SparseLinear | SemiStructuredLinear = Linear(in_channels, out_channels)
        self.bias = nn.Parameter(torch.empty(out_channels))

    def reset(self, generator: torch.Generator) -> None:
        """Draws Glorot-uniform weights; the bias is zero.

        Args:
            generator: the source of random numbers.
        """
        glorot(self.lin.weight, generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor | SparseMatrix, edges: Edges, weights: Tensor, aggregated: bool = False) -> Tensor:
        """(A X) W^T or A (X W^T), whichever passes fewer columns through A, forward and backward.

        Args:
            x: features, [N, in_channels], or A_hat X.
            edges: the adjacency.
            weights: normalized values of the entries of `edges`, [2P + N].
            aggregated: x is A_hat X.

        Returns:
            New features, [N, out_channels].
        """
        if aggregated:
            y = self.lin(x)
        elif isinstance(x, Tensor) and self._narrow_first(x, weights):
            y = self.lin(edges.propagate(weights, x))
        else:
            y = edges.propagate(weights, self.lin(x))
        return y.add_(cast(Tensor, self.shift))  # nobody else reads y

    def _narrow_first(self, x: Tensor, weights: Tensor) -> bool:
        return narrow_first(self.lin, x)

    @property
    def biased(self) -> Biased:
        """The part whose bias is added last."""
        return self

    @staticmethod
    def weigh(edges: Edges, gates: Tensor | None) -> Tensor:
        """Entries of D^-1/2 (A + I) D^-1/2.

        Args:
            edges: the adjacency.
            gates: soft values of the pairs, [P]; None: every pair counts 1.

        Returns:
            The entries, [2P + N].
        """
        return edges.unit_weights if gates is None else edges.normalized(gates)


class Neighbors(NamedTuple):
    """The adjacency without self-loops, for sums and means over neighbors.

    A node without neighbors has scale 0, so that its mean is 0.

    Attributes:
        entries: values of the entries, [2P + N], zero at the loops.
        scale: 1 / degree, [N, 1].
    """

    entries: Tensor
    scale: Tensor

    @staticmethod
    def of(edges: Edges, gates: Tensor | None) -> Neighbors:
        """The adjacency with soft values.

        Args:
            edges: the adjacency.
            gates: soft values of the pairs, [P]; None: every pair counts 1.

        Returns:
            Its entries and scales.

        Example:
            >>> edges = Edges.from_pairs(torch.tensor([[0, 1], [1, 2]]), num_nodes=4)
            >>> Neighbors.of(edges, None).scale.squeeze(1).tolist()
            [1.0, 0.5, 1.0, 0.0]
        """
        entries = edges.unit_entries if gates is None else edges.to_entries(gates)
        degrees = edges.unit_degrees if gates is None else edges.incident_sum(gates)
        return Neighbors(entries, torch.where(degrees == 0, 0.0, 1.0 / degrees).unsqueeze(1))

    def mean(self, edges: Edges, x: Tensor) -> Tensor:
        """Mean over every node's neighbors.

        Args:
            edges: the adjacency.
            x: features, [N, d].

        Returns:
            The means, [N, d].
        """
        sums = edges.propagate(self.entries, x)
        return (sums * self.scale).to(sums.dtype)


class GINConv(nn.Module):
    """Y = MLP((1 + eps) X + A X), MLP(z) = relu(z W_0^T + b_0) W_1^T + b_1; `eps` is a buffer, 0.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.

    Source:
        Xu et al. 2019, equation 4.1.
    """

    eps: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.nn = nn.Module()
        sizes = ((in_channels, out_channels), (out_channels, out_channels))
        self.nn.lins = nn.ModuleList(Linear(*size, bias=True) for size in sizes)
        self.register_buffer("eps", torch.zeros(1))

    def reset(self, generator: torch.Generator) -> None:
        """Draws Glorot-uniform weights; biases are zero.

        Args:
            generator: the source of random numbers.
        """
        for lin in self._lins():
            lin.reset(generator)

    def forward(self, x: Tensor | SparseMatrix, edges: Edges, weights: Neighbors) -> Tensor:
        """Propagates and projects the features.

        Args:
            x: features, [N, in_channels].
            edges: the adjacency.
            weights: the adjacency without self-loops.

        Returns:
            New features, [N, out_channels].
        """
        first, second = self._lins()
        if isinstance(x, Tensor) and narrow_first(first, x):
            y = first(edges.propagate(weights.entries, x) + (1 + self.eps) * x)
        else:
            y = first.product(x)
            y = edges.propagate(weights.entries, y) + (1 + self.eps) * y + cast(Tensor, first.bias)
        return second(torch.relu(y))

    def _lins(self) -> list[Linear]:
        return list(self.nn.lins)  # type: ignore[arg-type]

    @property
    def biased(self) -> Biased:
        """The part whose bias is added last."""
        return self._lins()[1]

    weigh = staticmethod(Neighbors.of)


class SAGEConv(nn.Module):
    """Y = mean over neighbors (X) W_l^T + b + X W_r^T.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.

    Source:
        Hamilton et al. 2017.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin_l = Linear(in_channels, out_channels, bias=True)
        self.lin_r = Linear(in_channels, out_channels)

    def reset(self, generator: torch.Generator) -> None:
        """Draws Glorot-uniform weights; the bias is zero.

        Args:
            generator: the source of random numbers.
        """
        self.lin_l.reset(generator)
        self.lin_r.reset(generator)

    def forward(self, x: Tensor | SparseMatrix, edges: Edges, weights: Neighbors) -> Tensor:
        """Propagates and projects the features.

        Args:
            x: features, [N, in_channels].
            edges: the adjacency.
            weights: the adjacency without self-loops.

        Returns:
            New features, [N, out_channels].
        """
        if isinstance(x, Tensor) and narrow_first(self.lin_l, x):
            return self.lin_l(weights.mean(edges, x)) + self.lin_r(x)
        y = weights.mean(edges, self.lin_l.product(x)) + self.lin_r(x)
        return y.add_(cast(Tensor, self.lin_l.shift))

    @property
    def biased(self) -> Biased:
        """The part whose bias is added last."""
        return self.lin_l

    weigh = staticmethod(Neighbors.of)


class GATConv(Biased):
    """Y_i = sum_j alpha_ij h_j + b with h = X W^T, one alpha per head; node i itself is among its neighbors j.

    alpha_ij = a_ij exp(e_ij) / sum_k a_ik exp(e_ik), e_ij = leaky_relu(<h_i, att_dst> + <h_j, att_src>), soft values
    a_ij >= 0 of the pairs.

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        heads: number of attention heads.
        concat: heads are concatenated, each with out_channels / heads channels; else averaged.
        dropout: rate for the attention weights.

    Raises:
        ValueError: when `heads` does not divide the channels that are concatenated.

    Source:
        Velickovic et al. 2018.
    """

    def __init__(
        self, in_channels: int, out_channels: int, heads: int, *, concat: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if concat and out_channels % heads:
            raise ValueError(f"heads (got {heads}), expected a divisor of the {out_channels} channels of the layer")
        self.heads, self.concat, self.dropout = heads, concat, dropout
        channels = out_channels // heads if concat else out_channels
        self.lin = Linear(in_channels, heads * channels)
        self.att_src = nn.Parameter(torch.empty(1, heads, channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, channels))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def reset(self, generator: torch.Generator) -> None:
        """Draws Glorot-uniform weights and attention vectors; the bias is zero.

        Args:
            generator: the source of random numbers.
        """
        self.lin.reset(generator)
        glorot(self.att_src, generator)
        glorot(self.att_dst, generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor | SparseMatrix, edges: Edges, weights: Tensor | None) -> Tensor:
        """Propagates and projects the features.

        Args:
            x: features, [N, in_channels].
            edges: the adjacency.
            weights: soft values of the entries, [2P + N]; None: all count 1.

        Returns:
            New features, [N, out_channels].
        """
        h = self.lin(x).view(-1, *self.att_src.shape[1:])
        to, of = ((h * vector).sum(2) for vector in (self.att_dst, self.att_src))
        alpha = row_softmax(edges.pattern, to, of, SLOPE, weights)
        y = mixed_spmm(edges.pattern, dropout(alpha, self.dropout, self.training), h)
        return (y.flatten(1) if self.concat else y.mean(1)) + cast(Tensor, self.shift)

    @property
    def biased(self) -> Biased:
        """The part whose bias is added last."""
        return self

    @staticmethod
    def weigh(edges: Edges, gates: Tensor | None) -> Tensor | None:
        """Soft values of the entries, 1 at the loops; negative ones count 0.

        Args:
            edges: the adjacency.
            gates: soft values of the pairs, [P]; None: the fixed values of `edges`, if any.

        Returns:
            The values, [2P + N], or None where all count 1.
        """
        values = edges.fixed if gates is None else gates
        return None if values is None else edges.to_entries(values.clamp(min=0), loop=1.0)
