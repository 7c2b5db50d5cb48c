"""Graph neural networks with sparse adjacency and features, exchangeable with PyG's by state dict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from gebt.graph.edges import Edges
from gebt.models.convs import GATConv, GCNConv, GINConv, SAGEConv
from gebt.models.dropout import dropout
from gebt.models.linear import BatchNorm
from gebt.sparse.compaction import Group
from gebt.sparse.pattern import SparseMatrix

Norm = Literal["batch"]


class GNN(nn.Module, ABC):
    """Graph convolutions with dropout before each and ReLU between them: the base of GCN, GAT, GIN and GraphSAGE.

    X_{l+1} = relu(norm(conv_l(dropout(X_l)))), plus X_l with `residual`; the last layer gives logits [N, C]. Equal
    arguments give equal weights, and no global random state is read or changed. The state dict loads into PyG's network
    of the same name and sizes (norm="batch_norm"), and back.

    Args:
        in_channels: number of features, F.
        hidden_channels: one width, or one for each hidden layer (`depth` is then their number + 1).
        out_channels: number of outputs, C.
        depth: number of layers.
        dropout: rate before every layer but the first.
        seed: of the weights.
        input_dropout: rate for the features; None: `dropout`.
        norm: "batch" or None.
        residual: adds the input of every hidden layer but the first to its output.

    Raises:
        ValueError: for sizes under 1, rates outside [0, 1), another norm, or residual layers of different widths.
    """

    starts_from_aggregated = False

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
        check_sizes(type(self).__name__, in_channels, hidden_channels, out_channels, depth, (dropout, input_dropout))
        if norm not in (None, "batch"):
            raise ValueError(f"norm (got {norm!r}), expected 'batch' or None")
        if residual and len(set(hidden)) > 1:
            raise ValueError(f"residual network (got widths {hidden}), expected one width for all hidden layers")
        self.widths = [in_channels, *hidden, out_channels]
        self.dropout, self.residual = dropout, residual
        self.input_dropout = dropout if input_dropout is None else input_dropout
        sizes = list(pairwise(self.widths))
        self.convs = nn.ModuleList(self._conv(a, b, last=i == len(sizes) - 1) for i, (a, b) in enumerate(sizes))
        self.norms = nn.ModuleList(BatchNorm(width) for width in hidden) if norm else None
        for conv in list(self.convs)[:-1] if norm else ():
            conv.biased.normed = True  # type: ignore[union-attr]
        self.reset(seed)

    @abstractmethod
    def _conv(self, in_channels: int, out_channels: int, *, last: bool) -> nn.Module:
        """One convolution of the kind, with `reset`, `weigh` and `forward` as those of `gebt.models.convs`."""

    def _same_kind(self) -> dict[str, Any]:
        """Arguments, besides widths and seed, of another network of the kind."""
        norm: Norm | None = "batch" if self.norms is not None else None
        return {"dropout": self.dropout, "input_dropout": self.input_dropout, "norm": norm, "residual": self.residual}

    @property
    def first(self) -> nn.Module:
        """The layer that reads the features; weight decay acts on it alone (Kipf & Welling 2017)."""
        return self.convs[0]

    def reset(self, seed: int) -> None:
        """Draws fresh weights.

        Args:
            seed: of the weights.
        """
        self.seed = seed
        generator = torch.Generator().manual_seed(seed)
        for conv in self.convs:
            conv.reset(generator)  # type: ignore[operator]
        for norm in self.norms or ():
            norm.module.reset_parameters()  # type: ignore[union-attr, operator]

    def groups(self) -> list[Group]:
        """Groups of units that can be removed together; the base class lists the input features only.

        Returns:
            The groups, input first.
        """
        read = [(name, 1) for name, p in self.named_parameters() if self._reads_features(name, p)]
        return [Group("features", [], read)]

    def _reads_features(self, name: str, parameter: nn.Parameter) -> bool:
        return name.startswith("convs.0.") and parameter.dim() == 2 and parameter.shape[1] == self.widths[0]

    def resized(self, sizes: Mapping[str, int]) -> Self:
        """A network of the same kind with other numbers of units in some groups; its weights are to be loaded.

        Args:
            sizes: numbers of units by group name; other groups stay as they are.

        Returns:
            The network, on the same device.
        """
        in_channels, *hidden, out_channels = self.widths
        new = [sizes.get("hidden", sizes.get(f"hidden.{number}", width)) for number, width in enumerate(hidden)]
        kind = type(self)(sizes.get("features", in_channels), new, out_channels, len(hidden) + 1, **self._same_kind())
        return kind.to(next(self.parameters()))

    def forward(
        self,
        features: Tensor | SparseMatrix,
        edges: Edges,
        gates: Tensor | None = None,
        aggregated: Tensor | None = None,
    ) -> Tensor:
        """Computes logits.

        Args:
            features: [N, F], dense or sparse.
            edges: the adjacency.
            gates: soft values of the pairs, [P] (search only); None: every pair counts 1.
            aggregated: A_hat X from an earlier call, for a network that `starts_from_aggregated`; it is used where
                there are no gates and X is not dropped out.

        Returns:
            Logits, [N, C].
        """
        weights = self.weigh(edges, gates)
        known = aggregated is not None and gates is None and not (self.training and self.input_dropout)
        x = cast(Tensor, aggregated) if known else dropped(features, self.input_dropout, self.training)
        for number in range(self.depth):
            x = self.layer(number, x, edges, weights, **({"aggregated": True} if known and not number else {}))
        return cast(Tensor, x)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.convs)

    def weigh(self, edges: Edges, gates: Tensor | None = None) -> Any:
        """Edge weights for all layers of a forward pass.

        Args:
            edges: the adjacency.
            gates: soft values of the pairs, [P]; None: every pair counts 1.

        Returns:
            What `layer` needs of them.
        """
        return self.convs[0].weigh(edges, gates)  # type: ignore[operator]

    def layer(self, number: int, x: Tensor | SparseMatrix, edges: Edges, weights: Any, **known: bool) -> Tensor:
        """One layer, with its normalization and activation.

        Args:
            number: which one, from 0.
            x: its input, [N, width].
            edges: the adjacency.
            weights: edge weights, from `weigh`.
            known: aggregated=True when `x` is A_hat X.

        Returns:
            The input of the next layer, [N, H], or the logits, [N, C].
        """
        y = self.convs[number](x, edges, weights, **known)
        if number == self.depth - 1:
            return y
        y = y if self.norms is None else self.norms[number](y)
        if self.residual and number:
            return dropout(torch.relu(y) + x, self.dropout, self.training)  # type: ignore[operator]
        return dropout(y, self.dropout, self.training, relu=True)


class GCN(GNN):
    """Graph convolutional network: X_{l+1} = relu(A_hat X_l W_l^T + b_l); options as `GNN`.

    Source:
        Kipf & Welling 2017.

    Example:
        >>> edges = Edges.from_pairs(torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4)
        >>> GCN(in_channels=5, hidden_channels=8, out_channels=3)(torch.ones(4, 5), edges).shape
        torch.Size([4, 3])
    """

    starts_from_aggregated = True

    def _conv(self, in_channels: int, out_channels: int, *, last: bool) -> GCNConv:
        return GCNConv(in_channels, out_channels)

    @property
    def layers(self) -> list[GCNConv]:
        """The convolutions, from input to output."""
        return cast(list[GCNConv], list(self.convs))

    def groups(self) -> list[Group]:
        """Groups of units that can be removed together: input features, and hidden units of each layer.

        With `residual` the hidden layers add up into one stream, so a unit is removed from all of them or none.

        Returns:
            The groups, input first.

        Example:
            >>> [group.name for group in GCN(5, 8, 3, depth=3).groups()]
            ['features', 'hidden.0', 'hidden.1']
        """
        made = [[(f"convs.{i}.lin.weight", 0), (f"convs.{i}.bias", 0)] for i in range(len(self.convs) - 1)]
        read = [[(f"convs.{i}.lin.weight", 1)] for i in range(1, len(self.convs))]
        return [*super().groups(), *hidden_groups(made, read, self.norms is not None, self.residual)]


class GraphSAGE(GNN):
    """X_{l+1} = relu(mean of the neighbors (X_l) W_l^T + b_l + X_l V_l^T); options as `GNN`.

    Source:
        Hamilton et al. 2017.
    """

    def _conv(self, in_channels: int, out_channels: int, *, last: bool) -> SAGEConv:
        return SAGEConv(in_channels, out_channels)

    def groups(self) -> list[Group]:
        """Input features, and hidden units of each layer (with `residual`: of all together).

        Returns:
            The groups, input first.
        """
        parts = [f"convs.{i}.lin" for i in range(len(self.convs))]
        made = [[(f"{part}_{name}", 0) for name in ("l.weight", "l.bias", "r.weight")] for part in parts[:-1]]
        read = [[(f"{part}_{name}.weight", 1) for name in "lr"] for part in parts[1:]]
        return [*super().groups(), *hidden_groups(made, read, self.norms is not None, self.residual)]


class GIN(GNN):
    """X_{l+1} = relu(MLP_l((1 + eps) X_l + sum of the neighbors)), MLPs of two layers; options as `GNN`.

    Source:
        Xu et al. 2019.
    """

    def _conv(self, in_channels: int, out_channels: int, *, last: bool) -> GINConv:
        return GINConv(in_channels, out_channels)


class GAT(GNN):
    """Graph attention network: heads are concatenated in hidden layers and averaged in the last.

    The rate of `dropout` also acts on the attention.

    Args:
        sizes: as `GNN`; `hidden_channels` are those of all heads together.
        heads: number of attention heads.
        options: as `GNN`.

    Raises:
        ValueError: as `GNN`, and for fewer than 1 head or heads that do not divide the hidden channels.

    Source:
        Velickovic et al. 2018.
    """

    heads: int

    def __init__(self, *sizes: Any, heads: int = 8, **options: Any) -> None:
        if heads < 1:
            raise ValueError(f"heads (got {heads}), expected at least 1")
        self.__dict__["heads"] = heads  # read while the convolutions are built
        super().__init__(*sizes, **options)

    def _conv(self, in_channels: int, out_channels: int, *, last: bool) -> GATConv:
        return GATConv(in_channels, out_channels, self.heads, concat=not last, dropout=self.dropout)

    def _same_kind(self) -> dict[str, Any]:
        return {**super()._same_kind(), "heads": self.heads}


def check_sizes(
    kind: str,
    in_channels: int,
    hidden_channels: int | Sequence[int],
    out_channels: int,
    depth: int,
    rates: Sequence[float | None],
) -> None:
    """Checks the sizes and dropout rates of a network.

    Args:
        kind: the network's name, for the message.
        in_channels: number of features.
        hidden_channels: hidden widths.
        out_channels: number of outputs.
        depth: number of layers.
        rates: of dropout; None counts 0.

    Raises:
        ValueError: for widths or a depth under 1, or rates outside [0, 1).
    """
    hidden = [hidden_channels] if isinstance(hidden_channels, int) else list(hidden_channels)
    if min(in_channels, *hidden, out_channels, depth) < 1:
        got = (in_channels, hidden_channels, out_channels, depth)
        raise ValueError(f"{kind} sizes (got in, hidden, out, depth = {got}), expected all at least 1")
    for rate in rates:
        if not 0.0 <= (rate or 0.0) < 1.0:
            raise ValueError(f"dropout (got {rate}), expected 0 <= dropout < 1")


def dropped(features: Tensor | SparseMatrix, rate: float, training: bool) -> Tensor | SparseMatrix:
    """Dropout of dense or sparse features.

    Args:
        features: [N, F].
        rate: probability of zeroing.
        training: without it nothing is dropped.

    Returns:
        The features, stored as before.
    """
    if isinstance(features, SparseMatrix) and training and rate:
        # Zeros stay zero under dropout, so dropping stored values is dropout of the dense matrix.
        return SparseMatrix(features.pattern, dropout(features.values, rate, True))
    return features if isinstance(features, SparseMatrix) else dropout(features, rate, training)


def hidden_groups(
    made: Sequence[list[tuple[str, int]]], read: Sequence[list[tuple[str, int]]], normed: bool, residual: bool
) -> list[Group]:
    """Groups of hidden units, from the tensors that produce and that read each layer.

    Args:
        made: for each hidden layer the (tensor, dim) that produce its units.
        read: for each hidden layer the (tensor, dim) that read them.
        normed: a batch norm follows every hidden layer.
        residual: all layers form one group.

    Returns:
        The groups, from input to output.
    """
    parts = ("weight", "bias", "running_mean", "running_var") if normed else ()
    full = [[*layer, *((f"norms.{i}.module.{part}", 0) for part in parts)] for i, layer in enumerate(made)]
    if residual and full:
        return [Group("hidden", [part for layer in full for part in layer], [part for layer in read for part in layer])]
    return [Group(f"hidden.{i}", *ends) for i, ends in enumerate(zip(full, read, strict=True))]
