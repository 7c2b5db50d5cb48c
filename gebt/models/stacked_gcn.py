"""Several GCNs stacked into one network, so that a step of all of them costs little more than the products it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gebt.graph.edges import Edges, Rows
from gebt.models.convs import GCNConv
from gebt.models.dropout import dropout
from gebt.models.gnn import GCN
from gebt.prune.mask import Mask
from gebt.sparse.ops import matmul
from gebt.sparse.pattern import Diagonal, SparseMatrix
from gebt.sparse.precision import autocasted


@dataclass(frozen=True, eq=False)
class StackedInput:
    """What a forward pass of S networks reads: features of the nodes that matter and, for each layer, rows of A_hat.

    Attributes:
        features: block-diagonal, one block per network.
        values: for each network the stored values of all nodes; whether an entry is dropped depends on its place in
            them.
        kept: for each network which of these values are in its block.
        rows: rows of A_hat, one set per layer.
        weights: of the rows where every pair counts 1.
    """

    features: SparseMatrix
    values: list[Tensor]
    kept: list[Tensor]
    rows: list[Rows]
    weights: list[Tensor]

    @staticmethod
    def of(features: Sequence[SparseMatrix], edges: Edges, nodes: Tensor, layers: int) -> StackedInput:
        """The input for the logits of some nodes.

        Args:
            features: [N, F_s] of S graphs that stand side by side in `edges`.
            edges: the adjacency of all S N nodes.
            nodes: whose logits are wanted.
            layers: number of layers.

        Returns:
            The input.
        """
        rows, read = edges.reach(nodes, layers)
        masks = [
            nodes_read[x.pattern.row] for nodes_read, x in zip(read.view(len(features), -1), features, strict=True)
        ]
        first = features[0].pattern.keep(masks[0])
        # Networks on one graph most often read the same of it: then its transpose is built once.
        blocks = [
            first if x is features[0] and torch.equal(mask, masks[0]) else x.pattern.keep(mask)
            for x, mask in zip(features, masks, strict=True)
        ]
        kept, values = [mask.nonzero().squeeze(1) for mask in masks], [x.values for x in features]
        stored = torch.cat([stored[places] for stored, places in zip(values, kept, strict=True)])
        weights = [edges.unit_weights.index_select(0, layer.entries) for layer in rows]
        return StackedInput(SparseMatrix(Diagonal.of(blocks), stored), values, kept, rows, weights)

    def dropped(self, rate: float, seeds: Tensor | None) -> SparseMatrix:
        """The features after dropout, each network's by its own random sequence.

        Args:
            rate: probability of zeroing.
            seeds: [S] numbers that begin the sequences; None: from torch's generator.

        Returns:
            The block-diagonal features.
        """
        starts = [None] * len(self.kept) if seeds is None else seeds.split(1)
        stored = torch.empty_like(self.features.values)
        blocks = stored.split([places.numel() for places in self.kept])
        for block, network_values, places, start in zip(blocks, self.values, self.kept, starts, strict=True):
            torch.index_select(dropout(network_values, rate, True, seeds=start), 0, places, out=block)
        return SparseMatrix(self.features.pattern, stored)


class StackedConv(nn.Module):
    """S graph convolutions of one width: Y_s = A_s X_s W_s^T + b_s.

    `weight` is [S, out, in]; of the first layer [F_0 + F_1 + ..., out], the transposed weights one below the other:
    that is what sparse features are multiplied with, and the networks may read different numbers of them. `rows`: how
    many rows of `weight` belong to each network. `bias` is [S, 1, out].

    Args:
        convs: one convolution of each network; their parameters become views of these.
        first: whether this is the first layer.
    """

    def __init__(self, convs: Sequence[GCNConv], *, first: bool) -> None:
        super().__init__()
        self.first, self.rows = first, [conv.lin.weight.shape[1] if first else 1 for conv in convs]
        self.weight = nn.Parameter(self.stacked([conv.lin.weight.detach() for conv in convs]))
        self.bias = nn.Parameter(torch.stack([conv.bias.detach() for conv in convs]).unsqueeze(1))
        for conv, weight, bias in zip(convs, self.weight.data.split(self.rows), self.bias.data, strict=True):
            conv.lin.weight.data, conv.bias.data = weight.t() if first else weight[0], bias[0]
        self._convs = tuple(convs)  # not submodules: their parameters are these

    def stacked(self, single: Sequence[Tensor]) -> Tensor:
        """Stacks one tensor per network.

        Args:
            single: S tensors [out, in].

        Returns:
            One tensor, laid out as `weight`.
        """
        return torch.cat([tensor.t() for tensor in single]) if self.first else torch.stack(list(single))

    def forward(self, x: Tensor | SparseMatrix, rows: Rows, weights: Tensor) -> Tensor:
        """Applies the S convolutions.

        Args:
            x: S N rows: block-diagonal features in the first layer, a tensor in the others.
            rows: the rows of A_hat to compute, T per network.
            weights: of their entries.

        Returns:
            New features, [S, T, out].
        """
        if isinstance(x, Tensor) and self._convs[0]._narrow_first(x, weights):
            y = self._multiplied(rows.propagate(weights, x))
        else:
            y = rows.propagate(weights, self._multiplied(x))
        return y.view(len(self.rows), -1, y.shape[1]) + self.bias

    def _multiplied(self, x: Tensor | SparseMatrix) -> Tensor:
        if isinstance(x, SparseMatrix):
            return matmul(x, self.weight)
        factors = autocasted(x).view(len(self.rows), -1, x.shape[1]), autocasted(self.weight)
        y: Tensor = _Multiply.apply(*factors)  # type: ignore[no-untyped-call]
        return y.view(x.shape[0], -1)


class _Multiply(torch.autograd.Function):
    """Y_s = X_s W_s^T by way of its transpose: a product with few columns takes MKL four times as long (measured)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.bmm(weight, x.transpose(1, 2)).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return torch.bmm(grad, weight), torch.bmm(grad.transpose(1, 2), x)


def kind(model: GCN) -> tuple[float, ...]:
    """What networks must share to be one `StackedGCN`: widths but for the first, dropout rates, residual or not.

    Args:
        model: a network.

    Returns:
        A tuple that is equal for networks that can be stacked.

    Example:
        >>> kind(GCN(5, 8, 3, dropout=0.5)) == kind(GCN(4, 8, 3, dropout=0.5))
        True
    """
    return *model.widths[1:], model.dropout, model.input_dropout, model.residual


class StackedGCN(nn.Module):
    """S GCNs of one kind as one network, on S graphs of N nodes that stand side by side as one of S N.

    Node r of graph s is node s N + r, the features are a block-diagonal matrix, and no pair joins two graphs. So every
    network sees its own edges and features alone and sums in the order in which it would by itself, each product is
    one call for all, and `Edges`, `adam` and `enforce_mask` work unchanged. While stacked, the parameters of `models`
    are views of those here; `release` gives a model parameters of its own.

    Args:
        models: the networks.

    Raises:
        ValueError: for networks of different kinds (the number of features may differ), one that occurs twice, or a
            norm.
    """

    def __init__(self, models: Sequence[GCN]) -> None:
        super().__init__()
        if len({kind(model) for model in models}) != 1:
            raise ValueError(f"networks together (got {len(set(map(kind, models)))} kinds), expected one; see `kind`")
        if len({id(model) for model in models}) < len(models):
            raise ValueError("networks together (got one of them twice), expected each once; copy it")
        if any(model.norms is not None for model in models):
            raise ValueError("networks together (got norm='batch'), expected norm=None; train them one by one")
        self.models = tuple(models)
        self.dropout, self.input_dropout, self.residual = models[0].dropout, models[0].input_dropout, models[0].residual
        layers = zip(*(model.layers for model in models), strict=True)
        self.convs = nn.ModuleList(StackedConv(layer, first=number == 0) for number, layer in enumerate(layers))

    @property
    def first(self) -> nn.Module:
        """The layer that reads the features."""
        return self.convs[0]

    @property
    def layers(self) -> list[StackedConv]:
        """The convolutions, from input to output."""
        return cast(list[StackedConv], list(self.convs))

    @property
    def draws(self) -> int:
        """Number of dropouts in a training pass; each takes one number of each network's generator."""
        return (self.input_dropout > 0) + (self.dropout > 0) * (len(self.convs) - 1)

    def release(self, number: int) -> None:
        """Gives a model its own copy of its parameters as they are now.

        Args:
            number: which model, from 0.
        """
        for parameter in self.models[number].parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

    def stacked(self, masks: Sequence[Mask | None]) -> Mask:
        """Stacks masks over the weights of each network into one over the weights here.

        Args:
            masks: one per network; tensors that a mask lacks are kept in full.

        Returns:
            The stacked mask.
        """
        kept = {}
        for number, layer in enumerate(self.layers):
            all_kept = [torch.ones_like(model.layers[number].lin.weight, dtype=torch.bool) for model in self.models]
            name, masks_and_ones = f"convs.{number}.lin.weight", zip(masks, all_kept, strict=True)
            masks_here = [ones if mask is None else mask.get(name, ones) for mask, ones in masks_and_ones]
            kept[f"convs.{number}.weight"] = layer.stacked(masks_here)
        return Mask(kept)

    def forward(
        self, reading: StackedInput, edges: Edges, gates: Tensor | None = None, seeds: Tensor | None = None
    ) -> Tensor:
        """Computes the logits of all networks.

        Args:
            reading: what is read, T nodes of each graph.
            edges: the adjacency of all S N nodes.
            gates: soft values of all pairs; None: every pair counts 1.
            seeds: [draws, S] numbers that begin the dropouts of a training pass.

        Returns:
            Logits, [S, T, C].
        """
        weights = reading.weights
        if gates is not None:
            normalized = edges.normalized(gates)
            weights = [normalized.index_select(0, rows.entries) for rows in reading.rows]
        stream_seeds = iter(seeds if seeds is not None else ())
        dropping = self.training and self.input_dropout > 0
        x: Any = reading.dropped(self.input_dropout, next(stream_seeds, None)) if dropping else reading.features
        *hidden, last = zip(self.layers, reading.rows, weights, strict=True)
        for number, (layer, rows, row_weights) in enumerate(hidden):
            y = layer(x, rows, row_weights)
            added = self.residual and number > 0
            y = torch.relu(y) + x.view(y.shape) if added else y
            # One row of S streams: the numbers of a network lie in one piece.
            row = y.view(1, len(self.models), -1)
            x = dropout(row, self.dropout, self.training, relu=not added, seeds=next(stream_seeds, None)).view(
                -1, y.shape[2]
            )
        return last[0](x, *last[1:])
