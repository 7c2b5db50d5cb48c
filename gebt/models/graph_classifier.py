"""Graph classification: GIN with a sum readout over the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gebt.graph.edges import Edges
from gebt.models.convs import GINConv
from gebt.models.dropout import dropout
from gebt.models.gnn import GNN, dropped
from gebt.models.linear import BatchNorm, Linear
from gebt.sparse.pattern import SparseMatrix
from gebt.sparse.precision import widened


class SumReadout(nn.Module):
    """Y = sum over layers l of norm(S X_l) W_l^T + b_l; S X adds up the rows of each graph's nodes.

    Batch normalization of the sums (the paper has none): those of graphs of hundreds of nodes begin in the hundreds.

    Args:
        widths: of the layers X_l.
        out_channels: number of outputs, C.

    Source:
        Xu et al. 2019, equation 4.2.
    """

    def __init__(self, widths: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths)
        self.lins = nn.ModuleList(Linear(width, out_channels, bias=True) for width in widths)

    def reset(self, generator: torch.Generator) -> None:
        """Draws Glorot-uniform weights; biases are zero.

        Args:
            generator: the source of random numbers.
        """
        for lin in self.lins:
            lin.reset(generator)  # type: ignore[operator]
        for norm in self.norms:
            norm.module.reset_parameters()  # type: ignore[union-attr, operator]

    def forward(self, layers: Sequence[Tensor], graph_of: Tensor, num_graphs: int, rate: float) -> Tensor:
        """Reads out all layers.

        Args:
            layers: X_l, [N, width] each.
            graph_of: the graph of each node, [N].
            num_graphs: G.
            rate: dropout of the sums.

        Returns:
            Logits, [G, C].
        """
        total = None
        for x, norm, lin in zip(layers, self.norms, self.lins, strict=True):
            x = widened(x)
            sums = x.new_zeros(num_graphs, x.shape[1]).index_add(0, graph_of, x)
            sums = norm(sums.to(lin.weight.dtype))  # type: ignore[arg-type]
            part = lin(dropout(sums, rate, self.training))
            total = part if total is None else total + part
        assert total is not None
        return total


class GraphClassifier(GNN):
    """GIN for graphs: `depth` - 1 graph isomorphism convolutions, then `SumReadout` of their outputs X_1, X_2, ...

    X_{l+1} = relu(norm(MLP_l((1 + eps) X_l + sum of the neighbors))).

    Args:
        in_channels: number of features, F.
        hidden_channels: one width, or one for each hidden layer (`depth` is then their number + 1).
        out_channels: number of outputs, C.
        depth: number of layers.
        dropout: rate for the sums.
        seed: of the weights.
        options: other options of `GNN`.

    Raises:
        ValueError: as `GNN`, for a depth under 2, and for `residual`.

    Source:
        Xu et al. 2019.

    Example:
        >>> edges = Edges.from_pairs(torch.tensor([[0, 2], [1, 3]]), num_nodes=5)
        >>> graph_of = torch.tensor([0, 0, 1, 1, 1])
        >>> GraphClassifier(3, 4, 2, depth=3)(torch.ones(5, 3), edges, graph_of=graph_of, num_graphs=2).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int | Sequence[int],
        out_channels: int,
        depth: int = 5,
        dropout: float = 0.5,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if depth < 2 or options.get("residual"):
            got = (depth, options.get("residual", False))
            raise ValueError(f"depth, residual of a graph classifier (got {got}), expected at least 2, and False")
        options = {"input_dropout": 0.0, "norm": "batch", **options}
        super().__init__(in_channels, hidden_channels, out_channels, depth, dropout, seed, **options)

    def _conv(self, in_channels: int, out_channels: int, *, last: bool) -> nn.Module:
        return SumReadout(self.widths[1:-1], out_channels) if last else GINConv(in_channels, out_channels)

    def forward(
        self,
        features: Tensor | SparseMatrix,
        edges: Edges,
        gates: Tensor | None = None,
        aggregated: Tensor | None = None,
        *,
        graph_of: Tensor | None = None,
        num_graphs: int = 0,
    ) -> Tensor:
        """Classifies graphs that are stored as one graph of N nodes.

        Args:
            features: [N, F], dense or sparse.
            edges: the adjacency.
            gates: soft values of the pairs, [P] (search only); None: every pair counts 1.
            aggregated: not read.
            graph_of: the graph of each node, [N], in 0..G - 1.
            num_graphs: G.

        Returns:
            Logits, [G, C].

        Raises:
            ValueError: without `graph_of`.
        """
        if graph_of is None:
            raise ValueError("graph_of (got None), expected the graph of each node, [N]; without graphs use GIN")
        *convs, readout = self.convs
        weights = convs[0].weigh(edges, gates)  # type: ignore[operator]
        x, layers = dropped(features, self.input_dropout, self.training), []
        for number, conv in enumerate(convs):
            y = conv(x, edges, weights)
            x = torch.relu(y if self.norms is None else self.norms[number](y))
            layers.append(x)
        return readout(layers, graph_of, num_graphs, self.dropout)
