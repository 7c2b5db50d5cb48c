"""Deep residual graph networks: ResGCN of DeeperGCN, with sum, mean and softmax aggregation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from gebt.graph.edges import Edges
from gebt.models.convs import Neighbors
from gebt.models.dropout import dropout
from gebt.models.gnn import check_sizes, dropped
from gebt.models.linear import Linear
from gebt.sparse.compaction import Group
from gebt.sparse.pattern import SparseMatrix

Aggregation = Literal["softmax", "mean", "add"]
# Added to every message, as in PyG's GENConv.
MESSAGE_EPS = 1e-7
# Hidden units of a layer's MLP for one of its own.
EXPANSION = 2


class GENConv(nn.Module):
    """Y = MLP(X + agg of m_j over the neighbors j), m = relu(X) + eps, MLP = linear, batch norm, ReLU, linear.

    "softmax": agg_i = sum_j a_ij exp(t m_j) m_j / sum_j a_ij exp(t m_j), channel by channel. Both sums are products
    with the adjacency, so nothing is as large as edges times channels. Li et al. 2020 (DeeperGCN).
    """

    weigh = staticmethod(Neighbors.of)

    def __init__(self, channels: int, aggregation: Aggregation, temperature: float = 1.0) -> None:
        super().__init__()
        if aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation (got {aggregation!r}), expected one of {get_args(Aggregation)}")
        self.aggregation, self.temperature = aggregation, temperature
        inner = EXPANSION * channels
        # The places of PyG's: ReLU is the third, dropout (none) the fourth.
        self.mlp = nn.Sequential(
            Linear(channels, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Identity(), Linear(inner, channels)
        )

    def reset(self, generator: torch.Generator) -> None:
        """Glorot-uniform weights from `generator`, fresh normalization."""
        for part in self.mlp:
            if isinstance(part, Linear):
                part.reset(generator)
            elif isinstance(part, nn.BatchNorm1d):
                part.reset_parameters()

    def forward(self, x: Tensor, edges: Edges, weights: Neighbors) -> Tensor:
        """Returns [N, channels]."""
        return self.mlp(x + self._aggregated(torch.relu(x) + MESSAGE_EPS, edges, weights))

    def _aggregated(self, m: Tensor, edges: Edges, weights: Neighbors) -> Tensor:
        if self.aggregation == "add":
            return edges.propagate(weights.entries, m)
        if self.aggregation == "mean":
            return weights.mean(edges, m)
        # A shift common to all nodes cancels; the highest of a channel makes every exponential at most 1.
        z = torch.exp(self.temperature * (m - m.detach().amax(0)))
        above, below = edges.propagate(weights.entries, torch.cat((z * m, z), 1)).chunk(2, 1)
        return torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below))


class ResLayer(nn.Module):
    """X + conv(dropout(relu(norm(X)))): the pre-activation residual block "res+" of DeeperGCN."""

    def __init__(self, conv: GENConv, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm1d(channels)


class ResGCN(nn.Module):
    """`depth` residual layers of `GENConv` between an encoder and a linear head, batch norm before every layer.

    X_1 = conv_0(encode(X)); X_{l+1} = X_l + conv_l(dropout(relu(norm_l(X_l)))); logits = dropout(relu(norm_0(X_L)))
    V^T.
    The network of PyG's DeeperGCN example: its state dict is that of `node_encoder`, `layers` (`DeepGCNLayer`s) and
    `lin` there. The GEBT paper uses 7, 14 and 28 layers of 128 channels.
    """

    starts_from_aggregated = False

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        depth: int = 7,
        dropout: float = 0.5,
        seed: int = 0,
        *,
        input_dropout: float | None = None,
        aggregation: Aggregation = "softmax",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes("ResGCN", in_channels, hidden_channels, out_channels, depth, (dropout, input_dropout))
        self.widths = [in_channels, *[hidden_channels] * depth, out_channels]
        self.dropout, self.input_dropout = dropout, dropout if input_dropout is None else input_dropout
        self.aggregation, self.temperature = aggregation, temperature
        self.node_encoder = Linear(in_channels, hidden_channels, bias=True)
        convs = (GENConv(hidden_channels, aggregation, temperature) for _ in range(depth))
        self.layers = nn.ModuleList(ResLayer(conv, hidden_channels) for conv in convs)
        self.lin = Linear(hidden_channels, out_channels, bias=True)
        self.reset(seed)

    @property
    def first(self) -> nn.Module:
        """The part that reads the features."""
        return self.node_encoder

    def reset(self, seed: int) -> None:
        """Draws fresh weights from `seed`."""
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.node_encoder.reset(generator)
        for layer in self._layers():
            layer.conv.reset(generator)
            layer.norm.reset_parameters()
        self.lin.reset(generator)

    def groups(self) -> list[Group]:
        """The input features; the residual stream and what is inside a layer stay whole."""
        return [Group("features", [], [("node_encoder.weight", 1)])]

    def resized(self, sizes: Mapping[str, int]) -> ResGCN:
        """A network of the same kind with another number of features; its weights are to be loaded."""
        in_channels, hidden, *_, out_channels = self.widths
        return ResGCN(
            sizes.get("features", in_channels), hidden, out_channels, len(self.layers), self.dropout,
            input_dropout=self.input_dropout, aggregation=self.aggregation, temperature=self.temperature,
        ).to(next(self.parameters()))  # fmt: skip

    def forward(self, features: Tensor | SparseMatrix, edges: Edges, gates: Tensor | None = None) -> Tensor:
        """Logits [N, C]; `gates` [P] are soft values of the pairs (search only), None: every pair counts 1."""
        weights, x = self.weigh(edges, gates), dropped(features, self.input_dropout, self.training)
        for number in range(self.depth):
            x = self.layer(number, x, edges, weights)
        return cast(Tensor, x)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def weigh(self, edges: Edges, gates: Tensor | None = None) -> Neighbors:
        """What the edges weigh, for all layers of a forward pass."""
        return Neighbors.of(edges, gates)

    def layer(self, number: int, x: Tensor | SparseMatrix, edges: Edges, weights: Neighbors) -> Tensor:
        """What layer `number` makes of X: X for the next one, or the logits; the first one also encodes."""
        first, own = self._layers()[0], self._layers()[number]
        if number:
            assert isinstance(x, Tensor)
            y = x + own.conv(self._activated(own, x), edges, weights)
        else:
            y = own.conv(self.node_encoder(x), edges, weights)
        return self.lin(self._activated(first, y)) if number == self.depth - 1 else y

    def _activated(self, layer: ResLayer, x: Tensor) -> Tensor:
        return dropout(layer.norm(x), self.dropout, self.training, relu=True)

    def _layers(self) -> list[ResLayer]:
        return cast(list[ResLayer], list(self.layers))
