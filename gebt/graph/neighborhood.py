"""Nodes of a larger graph with all their neighbors: what one layer of a network needs to compute their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gebt.graph.adjacency import Adjacency, runs_of_pairs
from gebt.prune.mask import Mask
from gebt.sparse.ops import mixed_spmm
from gebt.sparse.pattern import Pattern, index_dtype

# Pairs that are counted at once.
_RUN = 1 << 18


@dataclass(frozen=True, eq=False)
class NeighborhoodBlock:
    """What a layer needs of `gebt.graph.edges.Edges`, for inference at some nodes alone: no soft values, no gradients.

    Attributes:
        nodes: numbers of the targets and of their neighbors in the larger graph, rising, [S].
        targets: positions of the targets in `nodes`, [T].
        pattern: A + I, S x S: full rows of the targets, the other rows empty.
        unit_degrees: how many neighbors each node has in the larger graph, [S].
        fixed: None: every pair counts 1.
    """

    nodes: Tensor
    targets: Tensor
    pattern: Pattern
    unit_degrees: Tensor
    fixed: Tensor | None = None

    @cached_property
    def unit_entries(self) -> Tensor:
        """1 for every pair, 0 for every self-loop, [K]."""
        return (self.pattern.row != self.pattern.col).to(self.unit_degrees)

    @cached_property
    def unit_weights(self) -> Tensor:
        """Entries of D^-1/2 (A + I) D^-1/2, [K]; Kipf & Welling 2017."""
        scale = (self.unit_degrees + 1).rsqrt()
        return scale.index_select(0, self.pattern.row) * scale.index_select(0, self.pattern.col)

    def propagate(self, weights: Tensor, x: Tensor) -> Tensor:
        """The rows of the targets of y = W x; the others are 0.

        Args:
            weights: of the entries, [K].
            x: [S, d].

        Returns:
            [S, d].
        """
        return mixed_spmm(self.pattern, weights, x)

    def to(self, device: torch.device | str) -> NeighborhoodBlock:
        """The same block on another device.

        Args:
            device: where to.

        Returns:
            The block.
        """
        moved = self.pattern.to(device)
        return NeighborhoodBlock(self.nodes.to(device), self.targets.to(device), moved, self.unit_degrees.to(device))


class BlockBuilder:
    """Builds neighborhood blocks of one graph. Stores a few numbers a node: degrees, and a table for renumbering.

    Args:
        graph: the larger graph.
        kept: mask of the pairs that are there, None: all.
    """

    def __init__(self, graph: Adjacency, kept: Mask | None = None) -> None:
        self.graph, self.kept = graph, kept
        self.degrees = self._degrees().to(torch.get_default_dtype())
        self._place = torch.zeros(graph.num_nodes, dtype=torch.int32)

    def of(self, targets: Tensor) -> NeighborhoodBlock:
        """The block of some nodes.

        Args:
            targets: rising, [T].

        Returns:
            The block.
        """
        row, col, ids = self.graph.rows(targets)
        if self.kept is not None:
            stays = self.kept.at(ids)
            row, col = row[stays], col[stays]
        place = self._place.zero_()
        place[targets] = 1
        place[col] = 1
        nodes = place.nonzero().squeeze(1)
        place[nodes] = torch.arange(nodes.numel(), dtype=torch.int32)
        places = place[targets].long()
        pattern = _pattern(nodes.numel(), places, row, place[col])
        return NeighborhoodBlock(nodes, places, pattern, self.degrees[nodes])

    def _degrees(self) -> Tensor:
        if self.kept is None:
            return self.graph.degrees(torch.arange(self.graph.num_nodes))
        degrees = torch.zeros(self.graph.num_nodes, dtype=torch.long)
        for numbers, ends in runs_of_pairs(self.graph, _RUN):
            both = ends[:, self.kept.at(numbers)].flatten()
            degrees.index_add_(0, both, torch.ones_like(both))
        return degrees


def _pattern(count: int, targets: Tensor, row: Tensor, col: Tensor) -> Pattern:
    """The pattern of rows `targets` [T] with their loops, of `count` in all, from the other entries in order.

    `row` [K]: which of the targets, `col` [K]: which column.
    """
    dtype, node = index_dtype(row.numel() + targets.numel(), count), targets[row]
    counts = torch.bincount(row, minlength=targets.numel()) + 1
    below = torch.bincount(row[col < node], minlength=targets.numel())
    # A row is its smaller neighbors, then itself, then its larger ones.
    cols = torch.empty(row.numel() + targets.numel(), dtype=dtype)
    cols[torch.arange(row.numel()) + row + (col > node)] = col.to(dtype)
    cols[counts.cumsum(0) - counts + below] = targets.to(dtype)
    crow = torch.zeros(count + 1, dtype=torch.long)
    crow[targets + 1] = counts
    return Pattern(crow.cumsum(0).to(dtype), cols, (count, count))
