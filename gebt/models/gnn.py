"""Graph networks on the sparse road, exchangeable with PyG's by state dict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.sparse import to_sparse_semi_structured

from gebt.graph.edges import Edges
from gebt.models.dropout import dropout
from gebt.sparse.compaction import Group
from gebt.sparse.ops import matmul, spmm
from gebt.sparse.pattern import Pattern, SparseMatrix

Norm = Literal["batch"]


class Projection(nn.Module):
    """y = X W^T for dense or sparse X [N, in]; `weight` [out, in] as in `torch.nn.Linear`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))

    def forward(self, x: Tensor | SparseMatrix) -> Tensor:
        """Returns [N, out]."""
        return matmul(x, self.weight.t()) if isinstance(x, SparseMatrix) else F.linear(x, self.weight)


class SparseProjection(nn.Module):
    """y = X W^T for dense X [N, in] and W [out, in] of which only the kept entries exist: `values` [k], row by row."""

    def __init__(self, weight: Tensor, kept: Tensor) -> None:
        super().__init__()
        row, col = kept.to(weight.device).nonzero(as_tuple=True)
        self.pattern, order = Pattern.from_entries(row, col, (weight.shape[0], weight.shape[1]))
        self.values = nn.Parameter(weight.detach()[row, col][order].clone())

    @property
    def weight(self) -> Tensor:
        """W as a dense tensor, zeros where nothing is kept."""
        return SparseMatrix(self.pattern, self.values.detach()).to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, out]."""
        return spmm(self.pattern, self.values, x.t().contiguous()).t()


class SemiStructuredProjection(nn.Module):
    """y = X W^T for inference with a W of the 2:4 pattern, on the sparse tensor cores of a CUDA device."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.detach()
        self._packed = to_sparse_semi_structured(self.weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, out]."""
        return F.linear(x, self._packed)


class GCNConv(nn.Module):
    """One graph convolution: Y = A_hat X W^T + b. Kipf & Welling 2017; names as in PyG's `GCNConv`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin: Projection | SparseProjection | SemiStructuredProjection = Projection(in_channels, out_channels)
        self.bias = nn.Parameter(torch.empty(out_channels))

    def reset(self, generator: torch.Generator) -> None:
        """Glorot-uniform weights from `generator`, zero bias."""
        out_channels, in_channels = self.lin.weight.shape
        bound = math.sqrt(6.0 / (in_channels + out_channels))
        with torch.no_grad():
            # Drawn where the generator is, so that a seed means the same weights on every device.
            drawn = torch.empty(self.lin.weight.shape, device=generator.device)
            self.lin.weight.copy_(drawn.uniform_(-bound, bound, generator=generator))
            self.bias.zero_()

    def forward(self, x: Tensor | SparseMatrix, edges: Edges, weights: Tensor, aggregated: bool = False) -> Tensor:
        """Returns [N, out]; `weights` are the normalised values of the entries of `edges`.

        (A X) W or A (X W), whichever passes fewer columns through A, forward and backward. `aggregated`: x is A X.
        """
        if aggregated:
            y = self.lin(x)
        elif isinstance(x, Tensor) and self._narrow_first(x, weights):
            y = self.lin(edges.propagate(weights, x))
        else:
            y = edges.propagate(weights, self.lin(x))
        return y.add_(self.bias)  # nobody else reads y

    def _narrow_first(self, x: Tensor, weights: Tensor) -> bool:
        out_channels, in_channels = self.lin.weight.shape
        to_x = torch.is_grad_enabled() and x.requires_grad
        to_weights = torch.is_grad_enabled() and any(p.requires_grad for p in self.lin.parameters())
        # A X passes back through A only for x's sake, A (X W) for the weights' too.
        return in_channels * (1 + to_x) < out_channels * (1 + (to_x or to_weights))


class BatchNorm(nn.Module):
    """Batch normalisation over nodes; named as in PyG, whose own class wraps `torch.nn.BatchNorm1d` too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.module = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, channels]."""
        return self.module(x)


class GCN(nn.Module):
    """Graph convolutional network: `depth` convolutions, dropout before each and ReLU between them.

    X_{l+1} = relu(norm(A_hat dropout(X_l) W_l^T + b_l)), plus X_l with `residual`; the last layer gives logits [N, C].
    `hidden_channels`: one width, or one for each hidden layer (`depth` is then their number + 1). `input_dropout`: the
    rate for the features, `dropout` where it is None. `norm`: "batch" or None. Built and seeded in one call: equal
    arguments give equal weights, and no global random state is read or moved.
    Its state dict loads into `torch_geometric.nn.GCN` of the same sizes (norm="batch_norm"), and back.
    """

    starts_from_aggregated = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int | Sequence[int],
        out_channels: int,
        depth: int = 2,
        dropout: float = 0.5,
        seed: int = 0,
        *,
        input_dropout: float | None = None,
        norm: Norm | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        hidden = [hidden_channels] * (depth - 1) if isinstance(hidden_channels, int) else list(hidden_channels)
        if min(in_channels, *hidden, out_channels, depth) < 1:
            got = (in_channels, hidden_channels, out_channels, depth)
            raise ValueError(f"GCN sizes (got in, hidden, out, depth = {got}), expected all at least 1")
        for rate in (dropout, input_dropout or 0.0):
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"dropout (got {rate}), expected 0 <= dropout < 1")
        if norm not in (None, "batch"):
            raise ValueError(f"norm (got {norm!r}), expected 'batch' or None")
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"residual network (got widths {hidden}), expected one width for all hidden layers")
        widths = [in_channels, *hidden, out_channels]
        self.dropout, self.residual = dropout, residual
        self.input_dropout = dropout if input_dropout is None else input_dropout
        self.convs = nn.ModuleList(GCNConv(a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(width) for width in hidden) if norm else None
        self.reset(seed)

    @property
    def layers(self) -> list[GCNConv]:
        """The convolutions, from input to output."""
        return cast(list[GCNConv], list(self.convs))

    @property
    def widths(self) -> list[int]:
        """Channels in, of each hidden layer, and out."""
        shapes = [layer.lin.weight.shape for layer in self.layers]
        return [shapes[0][1], *(shape[0] for shape in shapes)]

    def reset(self, seed: int) -> None:
        """Draws fresh weights from `seed`."""
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            layer.reset(generator)
        for norm in self.norms or ():
            norm.module.reset_parameters()  # type: ignore[union-attr, operator]

    def groups(self) -> list[Group]:
        """What can be removed as a whole, input first: input features, and hidden units of each layer.

        With `residual` the hidden layers add up into one stream, so a unit lives or dies in all of them together.
        """
        layers = [f"convs.{number}" for number in range(len(self.convs))]
        hidden = [Group(f"hidden.{i}", *self._sides(i, (i + 1,))) for i in range(len(layers) - 1)]
        if self.residual and hidden:
            sides = [self._sides(i, (i + 1,)) for i in range(len(layers) - 1)]
            made, read = ([part for side in sides for part in side[k]] for k in (0, 1))
            hidden = [Group("hidden", made, read)]
        return [Group("features", [], [("convs.0.lin.weight", 1)]), *hidden]

    def resized(self, in_channels: int, hidden: Sequence[int]) -> GCN:
        """A network of the same kind with other widths; its weights are to be loaded."""
        norm: Norm | None = "batch" if self.norms is not None else None
        return GCN(
            in_channels, hidden, self.widths[-1], len(hidden) + 1, self.dropout,
            input_dropout=self.input_dropout, norm=norm, residual=self.residual,
        ).to(next(self.parameters()))  # fmt: skip

    def _sides(self, layer: int, readers: Sequence[int]) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
        made = [(f"convs.{layer}.lin.weight", 0), (f"convs.{layer}.bias", 0)]
        if self.norms is not None:
            parts = ("weight", "bias", "running_mean", "running_var")
            made += [(f"norms.{layer}.module.{part}", 0) for part in parts]
        return made, [(f"convs.{reader}.lin.weight", 1) for reader in readers]

    def forward(
        self,
        features: Tensor | SparseMatrix,
        edges: Edges,
        gates: Tensor | None = None,
        aggregated: Tensor | None = None,
    ) -> Tensor:
        """Logits [N, C]. `gates` [P] are soft values of the pairs (search only); without them every pair counts 1.

        `aggregated` is A_hat X where the caller has kept it; it is read when it serves: no gates, nothing dropped of X.
        """
        weights = edges.unit_weights if gates is None else edges.normalised(gates)
        known = aggregated is not None and gates is None and not (self.training and self.input_dropout)
        x = aggregated if known else self._dropped(features)
        *hidden, last = self.layers
        for number, layer in enumerate(hidden):
            y = layer(x, edges, weights, known and number == 0)
            y = y if self.norms is None else self.norms[number](y)
            if self.residual and number:
                x = dropout(torch.relu(y) + x, self.dropout, self.training)  # type: ignore[operator]
            else:
                x = dropout(y, self.dropout, self.training, relu=True)
        return last(x, edges, weights, known and not hidden)

    def _dropped(self, features: Tensor | SparseMatrix) -> Tensor | SparseMatrix:
        rate = self.input_dropout
        if isinstance(features, SparseMatrix) and self.training and rate:
            # Zeros stay zero under dropout, so dropping stored values is dropout of the dense matrix.
            return SparseMatrix(features.pattern, dropout(features.values, rate, True))
        return features if isinstance(features, SparseMatrix) else dropout(features, rate, self.training)
