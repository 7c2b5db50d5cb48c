"""Graph networks on the sparse road, exchangeable with PyG's by state dict."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.graph.edges import Edges
from gebt.models.dropout import dropout
from gebt.sparse.ops import matmul
from gebt.sparse.pattern import SparseMatrix


class Projection(nn.Module):
    """y = X W^T for dense or sparse X [N, in]; `weight` [out, in] as in `torch.nn.Linear`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))

    def forward(self, x: Tensor | SparseMatrix) -> Tensor:
        """Returns [N, out]."""
        return matmul(x, self.weight.t()) if isinstance(x, SparseMatrix) else F.linear(x, self.weight)


class GCNConv(nn.Module):
    """One graph convolution: Y = A_hat X W^T + b. Kipf & Welling 2017; names as in PyG's `GCNConv`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin = Projection(in_channels, out_channels)
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

    def forward(self, x: Tensor | SparseMatrix, edges: Edges, weights: Tensor) -> Tensor:
        """Returns [N, out]; `weights` are the normalised values of the entries of `edges`."""
        return edges.propagate(weights, self.lin(x)) + self.bias


class GCN(nn.Module):
    """Graph convolutional network: `depth` convolutions, dropout before each and ReLU between them.

    X_{l+1} = relu(A_hat dropout(X_l) W_l^T + b_l); the last layer gives logits [N, C]. Built and seeded in one call:
    equal arguments give equal weights, and no global random state is read or moved.
    Its state dict loads into `torch_geometric.nn.GCN` of the same sizes, and back.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        depth: int = 2,
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(in_channels, hidden_channels, out_channels, depth) < 1:
            got = (in_channels, hidden_channels, out_channels, depth)
            raise ValueError(f"GCN sizes (got in, hidden, out, depth = {got}), expected all at least 1")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout (got {dropout}), expected 0 <= dropout < 1")
        widths = [in_channels, *[hidden_channels] * (depth - 1), out_channels]
        self.dropout = dropout
        self.convs = nn.ModuleList(GCNConv(a, b) for a, b in pairwise(widths))
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draws fresh weights from `seed`."""
        generator = torch.Generator().manual_seed(seed)
        for conv in self.convs:
            conv.reset(generator)  # type: ignore[operator]

    def forward(self, features: Tensor | SparseMatrix, edges: Edges, gates: Tensor | None = None) -> Tensor:
        """Logits [N, C]. `gates` [P] are soft values of the pairs (search only); without them every pair counts 1."""
        weights = edges.unit_weights if gates is None else edges.normalised(gates)
        x = self._dropped(features)
        for conv in self.convs[:-1]:
            x = dropout(torch.relu(conv(x, edges, weights)), self.dropout, self.training)
        return self.convs[-1](x, edges, weights)

    def _dropped(self, features: Tensor | SparseMatrix) -> Tensor | SparseMatrix:
        if isinstance(features, SparseMatrix) and self.training and self.dropout:
            # Zeros stay zero under dropout, so dropping stored values is dropout of the dense matrix.
            return SparseMatrix(features.pattern, dropout(features.values, self.dropout, True))
        return features if isinstance(features, SparseMatrix) else dropout(features, self.dropout, self.training)
