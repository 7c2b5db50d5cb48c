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
from gebt.sparse.precision import widened, without_autocast

Aggregation = Literal["softmax", "mean", "add"]
# Added to every message, as in PyG's GENConv.
MESSAGE_EPS = 1e-7
# Hidden units of a layer's MLP per channel of the layer.
EXPANSION = 2


class GENConv(nn.Module):
    """Y = MLP(X + agg of m_j over the neighbors j), m = relu(X) + eps, MLP = linear, batch norm, ReLU, linear.

    "softmax": agg_i = sum_j a_ij exp(t m_j) m_j / sum_j a_ij exp(t m_j), channel by channel. Both sums are products
    with the adjacency, so nothing is as large as edges times channels.

    Args:
        channels: width of input and output.
        aggregation: "softmax", "mean" or "add".
        temperature: t.

    Raises:
        ValueError: for another aggregation.

    Source:
        Li et al. 2020 (DeeperGCN).
    """

    weigh = staticmethod(Neighbors.of)

    def __init__(self, channels: int, aggregation: Aggregation, temperature: float = 1.0) -> None:
        super().__init__()
        if aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation (got {aggregation!r}), expected one of {get_args(Aggregation)}")
        self.aggregation, self.temperature = aggregation, temperature
        inner = EXPANSION * channels
        # Positions as in PyG: ReLU is the third, dropout (none) the fourth.
        self.mlp = nn.Sequential(
            Linear(channels, inner), nn.BatchNorm1d(inner), nn.ReLU(), nn.Identity(), Linear(inner, channels)
        )

    def reset(self, generator: torch.Generator) -> None:
        """Draws Glorot-uniform weights; the normalization is reset.

        Args:
            generator: the source of random numbers.
        """
        for part in self.mlp:
            if isinstance(part, Linear):
                part.reset(generator)
            elif isinstance(part, nn.BatchNorm1d):
                part.reset_parameters()

    def forward(self, x: Tensor, edges: Edges, weights: Neighbors) -> Tensor:
        """Aggregates and transforms the features.

        Args:
            x: features, [N, channels].
            edges: the adjacency.
            weights: the adjacency without self-loops.

        Returns:
            New features, [N, channels].
        """
        return self.mlp(x + self._aggregated(torch.relu(x) + MESSAGE_EPS, edges, weights))

    def _aggregated(self, m: Tensor, edges: Edges, weights: Neighbors) -> Tensor:
        if self.aggregation == "add":
            return edges.propagate(weights.entries, m)
        if self.aggregation == "mean":
            return weights.mean(edges, m)
        with without_autocast(m):
            return self._softmax(widened(m), edges, weights).to(m.dtype)

    def _softmax(self, m: Tensor, edges: Edges, weights: Neighbors) -> Tensor:
        # A shift common to all nodes cancels; the highest of a channel makes every exponential at most 1.
        z = torch.exp(self.temperature * (m - m.detach().amax(0)))
        above, below = edges.propagate(weights.entries, torch.cat((z * m, z), 1)).chunk(2, 1)
        return torch.where(below == 0, 0.0, above / torch.where(below == 0, 1.0, below))


class ResLayer(nn.Module):
    """X + conv(dropout(relu(norm(X)))): the pre-activation residual block "res+" of DeeperGCN.

    Args:
        conv: the convolution.
        channels: its width.
    """

    def __init__(self, conv: GENConv, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm1d(channels)


class ResGCN(nn.Module):
    """Residual layers of `GENConv` between an encoder and a linear head, batch norm before every layer.

    X_1 = conv_0(encode(X)); X_{l+1} = X_l + conv_l(dropout(relu(norm_l(X_l)))); logits = dropout(relu(norm_0(X_L)))
    V^T.
    The network of PyG's DeeperGCN example: its state dict is that of `node_encoder`, `layers` (`DeepGCNLayer`s) and
    `lin` there. The GEBT paper uses 7, 14 and 28 layers of 128 channels.

    Args:
        in_channels: number of features, F.
        hidden_channels: width of all layers, H.
        out_channels: number of outputs, C.
        depth: number of residual layers.
        dropout: rate before every layer but the first, and before the head.
        seed: of the weights.
        input_dropout: rate for the features; None: `dropout`.
        aggregation: as `GENConv`.
        temperature: as `GENConv`.

    Raises:
        ValueError: for sizes under 1, rates outside [0, 1), or another aggregation.

    Example:
        >>> edges = Edges.from_pairs(torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4)
        >>> ResGCN(5, 8, 3, depth=2)(torch.ones(4, 5), edges).shape
        torch.Size([4, 3])
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
        """The layer that reads the features."""
        return self.node_encoder

    def reset(self, seed: int) -> None:
        """Draws fresh weights.

        Args:
            seed: of the weights.
        """
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        self.node_encoder.reset(generator)
        for layer in self._layers():
            layer.conv.reset(generator)
            layer.norm.reset_parameters()
        self.lin.reset(generator)

    def groups(self) -> list[Group]:
        """The input features; the residual stream and the insides of a layer are not removed.

        Returns:
            The groups, input first.
        """
        return [Group("features", [], [("node_encoder.weight", 1)])]

    def resized(self, sizes: Mapping[str, int]) -> ResGCN:
        """A network of the same kind with other numbers of units in some groups; its weights are to be loaded.

        Args:
            sizes: numbers of units by group name; other groups stay as they are.

        Returns:
            The network, on the same device.
        """
        in_channels, hidden, *_, out_channels = self.widths
        return ResGCN(
            sizes.get("features", in_channels), hidden, out_channels, len(self.layers), self.dropout,
            input_dropout=self.input_dropout, aggregation=self.aggregation, temperature=self.temperature,
        ).to(next(self.parameters()))  # fmt: skip

    def forward(self, features: Tensor | SparseMatrix, edges: Edges, gates: Tensor | None = None) -> Tensor:
        """Computes logits.

        Args:
            features: [N, F], dense or sparse.
            edges: the adjacency.
            gates: soft values of the pairs, [P] (search only); None: every pair counts 1.

        Returns:
            Logits, [N, C].
        """
        weights, x = self.weigh(edges, gates), dropped(features, self.input_dropout, self.training)
        for number in range(self.depth):
            x = self.layer(number, x, edges, weights)
        return cast(Tensor, x)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def weigh(self, edges: Edges, gates: Tensor | None = None) -> Neighbors:
        """Edge weights for all layers of a forward pass.

        Args:
            edges: the adjacency.
            gates: soft values of the pairs, [P]; None: every pair counts 1.

        Returns:
            What `layer` needs of them.
        """
        return Neighbors.of(edges, gates)

    def layer(self, number: int, x: Tensor | SparseMatrix, edges: Edges, weights: Neighbors) -> Tensor:
        """One residual layer; the first one also encodes.

        Args:
            number: which one, from 0.
            x: its input, [N, width].
            edges: the adjacency.
            weights: edge weights, from `weigh`.

        Returns:
            The input of the next layer, [N, H], or the logits, [N, C].
        """
        first, layer = self._layers()[0], self._layers()[number]
        if number:
            assert isinstance(x, Tensor)
            y = x + layer.conv(self._activated(layer, x), edges, weights)
        else:
            y = layer.conv(self.node_encoder(x), edges, weights)
        return self.lin(self._activated(first, y)) if number == self.depth - 1 else y

    def _activated(self, layer: ResLayer, x: Tensor) -> Tensor:
        return dropout(layer.norm(x), self.dropout, self.training, relu=True)

    def _layers(self) -> list[ResLayer]:
        return cast(list[ResLayer], list(self.layers))
