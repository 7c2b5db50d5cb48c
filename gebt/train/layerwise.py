"""Exact inference of a graph that is not in memory: layer by layer, some nodes at a time with all their neighbors.

What a layer gives is kept, in a file if there is a folder for it; so is nothing as large as the graph in memory, but
for a few numbers a node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gebt.graph.adjacency import Adjacency
from gebt.graph.neighborhood import BlockBuilder, NeighborhoodBlock
from gebt.prune.mask import Mask
from gebt.sparse.pattern import SparseMatrix
from gebt.sparse.precision import forward
from gebt.train.edge_values import MappedArray
from gebt.train.processes import ALONE, Processes

# Entries of the adjacency that are worked on at once, and bytes of what their nodes bring along.
MOST_ENTRIES = 1 << 23
MOST_BYTES = 1 << 30


class Layered(Protocol):
    """A network that is a sequence of layers (`gebt.models`)."""

    @property
    def depth(self) -> int:
        """How many."""

    def weigh(self, edges: NeighborhoodBlock, gates: Tensor | None = None) -> Any:
        """What the edges weigh."""

    def layer(self, number: int, x: Tensor | SparseMatrix, edges: NeighborhoodBlock, weights: Any) -> Tensor:
        """What layer `number` makes of `x`."""


class Features(Protocol):
    """What gives the features of nodes."""

    @property
    def num_features(self) -> int:
        """F."""

    def features_of(self, nodes: Tensor) -> Tensor | SparseMatrix:
        """Theirs, [n, F]."""


class LayerByLayer:
    """The logits of a network at some nodes of a graph, to rounding those that it has in memory.

    `kept`: the mask of the pairs that are there, None: all. `scratch`: a folder for what layers give; None: memory.
    """

    def __init__(
        self,
        source: Features,
        graph: Adjacency,
        kept: Mask | None = None,
        *,
        scratch: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.source, self.graph, self.scratch = source, graph, scratch
        self.device = device
        self.surroundings = BlockBuilder(self.graph, kept)
        self._last: tuple[Tensor, list[Tensor]] | None = None

    def logits(self, model: Layered, nodes: Tensor, processes: Processes = ALONE) -> Tensor:
        """[n, C] of `nodes` [n], rising; the model must be in evaluation mode. `processes`: those that share the work.

        They send each other what each layer gives.
        """
        read, given = self._read(nodes, model.depth), None
        for number, own in enumerate(read[1:]):
            known = None if given is None else (read[number], given)
            given = self._layer(model, number, own, known, processes)
        assert given is not None
        return given.rows(torch.arange(nodes.numel()))

    def _read(self, nodes: Tensor, depth: int) -> list[Tensor]:
        """The nodes that each layer reads, and last those that are asked for; kept for the next call."""
        if self._last is not None and len(self._last[1]) == depth + 1 and torch.equal(self._last[0], nodes):
            return self._last[1]
        read = [nodes]
        for _ in range(depth):
            marked = torch.zeros(self.graph.num_nodes, dtype=torch.bool)
            marked[read[0]] = True
            for some in self._runs(read[0], 1):
                marked[self.graph.rows(some)[1]] = True
                self.graph.release()
            grown = marked.nonzero().squeeze(1)
            # Once nothing is new all layers before read the same, and one list of them does.
            read.insert(0, grown if grown.numel() > read[0].numel() else read[0])
        self._last = nodes, read
        return read

    def _runs(self, nodes: Tensor, width: int) -> tuple[Tensor, ...]:
        """The nodes in runs, whose entries and rows of so many numbers are not too many at once."""
        entries = min(MOST_ENTRIES, max(1, MOST_BYTES // (4 * width)))
        if 4 * width * self.graph.num_nodes <= MOST_BYTES:
            entries = MOST_ENTRIES  # no more rows than nodes
        run = ((self.graph.degrees(nodes) + 1).cumsum(0) - 1) // entries
        return nodes.split(torch.unique_consecutive(run, return_counts=True)[1].tolist())

    def _layer(
        self, model: Layered, number: int, nodes: Tensor, known: tuple[Tensor, _Rows] | None, processes: Processes
    ) -> _Rows:
        """What a layer gives at these nodes; `known`: nodes and rows of the layer before, None: the features."""
        runs = self._runs(nodes, self.source.num_features if known is None else known[1].width)
        found, done = None, 0
        for first in range(0, len(runs), processes.count):
            mine = first + processes.rank
            # All take part in what is sent: who has no run left computes another's and sends none of it.
            rows = self._at(model, number, runs[min(mine, len(runs) - 1)], known)
            rows = processes.rows(rows if mine < len(runs) else rows[:0])
            if found is None:
                found = _Rows(nodes.numel(), rows, self.scratch)
            found.write(done, rows)
            done += rows.shape[0]
            self.graph.release()
            if known is not None:
                known[1].release()
        assert found is not None
        return found

    def _at(self, model: Layered, number: int, nodes: Tensor, known: tuple[Tensor, _Rows] | None) -> Tensor:
        around = self.surroundings.of(nodes)
        if known is None:
            x: Tensor | SparseMatrix = self.source.features_of(around.nodes)
        else:
            x = known[1].rows(torch.searchsorted(known[0], around.nodes))
        edges = around.to(self.device)
        y = forward(self.device, model.layer, number, x.to(self.device), edges, model.weigh(edges))
        return y[edges.targets].cpu()


class _Rows:
    """Rows [n, width] like those of `like`, in memory or in a file of `folder`."""

    def __init__(self, count: int, like: Tensor, folder: Path | None) -> None:
        self.width = like.shape[1]
        self._stored = MappedArray(count * self.width, like.dtype, folder)
        self._rows = self._stored.tensor[: count * self.width].view(count, self.width)

    def rows(self, places: Tensor) -> Tensor:
        """Those at these places."""
        return self._rows[places]

    def write(self, first: int, rows: Tensor) -> None:
        """Puts rows from place `first` on."""
        self._rows[first : first + rows.shape[0]] = rows

    def release(self) -> None:
        """Lets go of the pages that were read."""
        self._stored.drop(0, self._rows.numel())
