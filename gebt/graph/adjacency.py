"""What batches are drawn from: a graph that gives the rows of some nodes, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from gebt.graph.edges import Edges


class Adjacency(Protocol):
    """An undirected graph of N nodes and P pairs, read a few rows at a time; self-loops are not told.

    Nothing that it does takes work proportional to N or P.
    """

    @property
    def num_nodes(self) -> int:
        """N."""

    @property
    def num_pairs(self) -> int:
        """P."""

    @property
    def device(self) -> torch.device:
        """Where the tensors that it gives are, and those that it takes must be."""

    def rows(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The neighbors of `nodes` [T]: place in `nodes`, neighbor and number of the pair, each [K] int64.

        Node by node as given, the neighbors of each rising.
        """

    def degrees(self, nodes: Tensor) -> Tensor:
        """How many neighbors each of `nodes` [T] has, int64."""

    def neighbor(self, nodes: Tensor, which: Tensor) -> Tensor:
        """Neighbor number `which` [T] of each of `nodes` [T]; a node that has none stays."""

    def ends(self, pair_ids: Tensor) -> Tensor:
        """The nodes [2, p] of the pairs of these numbers, the smaller first."""

    def release(self) -> None:
        """Lets go of what was read from elsewhere and is held in memory."""


class InMemory:
    """The `Adjacency` of `Edges`."""

    def __init__(self, edges: Edges) -> None:
        self._edges = edges
        self._loops = edges.places[2 * edges.num_pairs :]

    @property
    def num_nodes(self) -> int:
        """N."""
        return self._edges.num_nodes

    @property
    def num_pairs(self) -> int:
        """P."""
        return self._edges.num_pairs

    @property
    def device(self) -> torch.device:
        """That of the edges."""
        return self._edges.pattern.col.device

    def rows(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Adjacency.rows`."""
        rows = self._edges.rows(nodes)
        row, col = rows.pattern.row.long(), rows.pattern.col.long()
        others = nodes[row] != col
        return row[others], col[others], self._edges.source[rows.entries[others]].long()

    def degrees(self, nodes: Tensor) -> Tensor:
        """As `Adjacency.degrees`; one entry of a row is its loop."""
        crow = self._edges.pattern.crow
        return (crow[nodes + 1] - crow[nodes]).long() - 1

    def neighbor(self, nodes: Tensor, which: Tensor) -> Tensor:
        """As `Adjacency.neighbor`."""
        entry = self._edges.pattern.crow[nodes].long() + which
        # The entry of a node without neighbors is its loop, where it stays.
        entry += (entry >= self._loops[nodes]) & (self.degrees(nodes) > 0)
        return self._edges.pattern.col[entry].long()

    def ends(self, pair_ids: Tensor) -> Tensor:
        """As `Adjacency.ends`."""
        return self._edges.pairs[:, pair_ids]

    def release(self) -> None:
        """Nothing: all of it is in memory."""


def runs_of_pairs(graph: Adjacency, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers [n <= size] and ends [2, n] of all pairs, run by run; each is let go of before the next."""
    for first in range(0, graph.num_pairs, size):
        numbers = torch.arange(first, min(first + size, graph.num_pairs), device=graph.device)
        yield numbers, graph.ends(numbers)
        graph.release()


def adjacency_of(graph: Edges | Adjacency) -> Adjacency:
    """`graph` as an `Adjacency`."""
    return InMemory(graph) if isinstance(graph, Edges) else graph
