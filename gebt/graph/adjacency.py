"""The interface that batches are drawn from: a graph read a few rows at a time, from memory or from disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from gebt.graph.edges import Edges


class Adjacency(Protocol):
    """An undirected graph of N nodes and P pairs, read a few rows at a time, without its self-loops.

    No method takes work proportional to N or P.
    """

    @property
    def num_nodes(self) -> int:
        """N."""

    @property
    def num_pairs(self) -> int:
        """P."""

    @property
    def device(self) -> torch.device:
        """Device of the tensors that the methods take and return."""

    def rows(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The neighbors of some nodes, in the order of the nodes, the neighbors of each rising.

        Args:
            nodes: [T].

        Returns:
            Position in `nodes`, neighbor and number of the pair, each [K] int64.
        """

    def degrees(self, nodes: Tensor) -> Tensor:
        """Numbers of neighbors.

        Args:
            nodes: [T].

        Returns:
            [T] int64.
        """

    def neighbor(self, nodes: Tensor, which: Tensor) -> Tensor:
        """One neighbor of each node, by its number; a node without neighbors stays where it is.

        Args:
            nodes: [T].
            which: number of the neighbor in its row, from 0, [T].

        Returns:
            [T].
        """

    def ends(self, pair_ids: Tensor) -> Tensor:
        """The nodes of some pairs, the smaller first.

        Args:
            pair_ids: numbers of the pairs, [p].

        Returns:
            [2, p].
        """

    def release(self) -> None:
        """Frees what was read from disk and is in memory."""


class InMemory:
    """The `Adjacency` of `Edges`.

    Args:
        edges: the graph, in memory.
    """

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
        """Device of the edges."""
        return self._edges.pattern.col.device

    def rows(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Adjacency.rows`.

        Args:
            nodes: [T].

        Returns:
            Position in `nodes`, neighbor and number of the pair, each [K] int64.
        """
        rows = self._edges.rows(nodes)
        row, col = rows.pattern.row.long(), rows.pattern.col.long()
        others = nodes[row] != col
        return row[others], col[others], self._edges.source[rows.entries[others]].long()

    def degrees(self, nodes: Tensor) -> Tensor:
        """As `Adjacency.degrees`; one entry of a row is its self-loop.

        Args:
            nodes: [T].

        Returns:
            [T] int64.
        """
        crow = self._edges.pattern.crow
        return (crow[nodes + 1] - crow[nodes]).long() - 1

    def neighbor(self, nodes: Tensor, which: Tensor) -> Tensor:
        """As `Adjacency.neighbor`.

        Args:
            nodes: [T].
            which: number of the neighbor in its row, [T].

        Returns:
            [T].
        """
        entry = self._edges.pattern.crow[nodes].long() + which
        # The entry of a node without neighbors is its loop, where it stays.
        entry += (entry >= self._loops[nodes]) & (self.degrees(nodes) > 0)
        return self._edges.pattern.col[entry].long()

    def ends(self, pair_ids: Tensor) -> Tensor:
        """As `Adjacency.ends`.

        Args:
            pair_ids: [p].

        Returns:
            [2, p].
        """
        return self._edges.pairs[:, pair_ids]

    def release(self) -> None:
        """Does nothing: the graph is in memory."""


def runs_of_pairs(graph: Adjacency, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs, run by run; each run is released before the next.

    Args:
        graph: the graph.
        size: pairs of a run, at most.

    Yields:
        Numbers [n <= size] and ends [2, n] of the pairs of a run.
    """
    for first in range(0, graph.num_pairs, size):
        numbers = torch.arange(first, min(first + size, graph.num_pairs), device=graph.device)
        yield numbers, graph.ends(numbers)
        graph.release()


def adjacency_of(graph: Edges | Adjacency) -> Adjacency:
    """The `Adjacency` of a graph in memory or on disk.

    Args:
        graph: either form; an `Adjacency` is returned as it is.

    Returns:
        The adjacency.

    Example:
        >>> edges = Edges.from_pairs(torch.tensor([[0, 0, 1], [1, 2, 2]]), 4)
        >>> position, neighbor, pair = adjacency_of(edges).rows(torch.tensor([2, 3]))
        >>> position.tolist(), neighbor.tolist(), pair.tolist()
        ([0, 0], [0, 1], [1, 2])
    """
    return InMemory(graph) if isinstance(graph, Edges) else graph
