"""Parts of a graph to train on, one at a time: every pair in a batch knows its number in the full graph.

Edge weights and their scores stay global: a batch reads the values of its pairs, and their gradients are added up
where they belong. Nothing here is larger than the batch, but for one number a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gebt.graph.adjacency import Adjacency, adjacency_of
from gebt.graph.edges import Edges


@dataclass(frozen=True, eq=False)
class Batch:
    """Some nodes of a graph and pairs among them.

    Attributes:
        nodes: their numbers in the full graph, rising, [n].
        pairs: positions in `nodes`, the smaller first, [2, p].
        pair_ids: numbers of the pairs in the full graph, [p].
        targets: positions of the nodes whose loss counts, [t].
    """

    nodes: Tensor
    pairs: Tensor
    pair_ids: Tensor
    targets: Tensor

    @cached_property
    def edges(self) -> Edges:
        """The adjacency of the batch alone, pair values in the order of `pair_ids`."""
        return Edges.from_pairs(self.pairs, self.nodes.numel())


class Sampler:
    """Draws batches of one graph.

    One table of N numbers is stored for renumbering. Equal generators give equal batches, in memory or from disk.

    Args:
        edges: the full graph, in memory or on disk (`gebt.data.mapped.mapped_graph`).
    """

    def __init__(self, edges: Edges | Adjacency) -> None:
        self.edges = edges
        self._graph = adjacency_of(edges)
        self._place = torch.full((edges.num_nodes,), -1, dtype=torch.long, device=self._graph.device)

    def induced(self, nodes: Tensor, targets: Tensor | None = None) -> Batch:
        """Some nodes and all pairs among them.

        Args:
            nodes: [n], in any order.
            targets: those of them whose loss counts, all by default.

        Returns:
            The batch.

        Raises:
            ValueError: for a target that is not among the nodes.

        Example:
            >>> edges = Edges.from_pairs(torch.tensor([[0, 0, 1], [1, 2, 3]]), 4)
            >>> batch = Sampler(edges).induced(torch.tensor([3, 1, 0]))
            >>> batch.nodes.tolist(), batch.pairs.tolist(), batch.pair_ids.tolist()
            ([0, 1, 3], [[0, 1], [1, 2]], [0, 2])
        """
        nodes = torch.unique(nodes)
        low, col, ids = self._graph.rows(nodes)
        self._place[nodes] = torch.arange(nodes.numel(), device=nodes.device)
        high = self._place[col]
        once = high > low  # each pair once; not what leads out of the batch (-1)
        places = self._targets(nodes, targets)
        self._place[nodes] = -1
        return Batch(nodes, torch.stack((low[once], high[once])), ids[once], places)

    def neighbors(self, targets: Tensor, fanouts: Sequence[int], generator: torch.Generator) -> Batch:
        """The targets, some neighbors of each, some neighbors of the nodes that are new, and so on.

        Neighbors are drawn without replacement, uniformly; the pairs of the batch are those that were drawn.

        Args:
            targets: nodes, [T].
            fanouts: up to `fanouts[i]` neighbors are drawn at distance i + 1.
            generator: draws the neighbors.

        Returns:
            The batch.

        Raises:
            ValueError: for a fanout below 1.

        Source:
            Hamilton et al. 2017 (GraphSAGE).
        """
        if min(fanouts, default=1) < 1:
            raise ValueError(f"fanouts (got {tuple(fanouts)}), expected at least 1")
        seen, frontier, drawn = torch.unique(targets), torch.unique(targets), list[Tensor]()
        for fanout in fanouts:
            row, col, ids = self._graph.rows(frontier)
            stays = _first_of_rows(row, fanout, generator)
            drawn.append(ids[stays])
            reached = torch.unique(col[stays])
            frontier = reached[~torch.isin(reached, seen, assume_unique=True)]
            seen = torch.cat((seen, frontier)).sort().values
        return self.of_pairs(seen, torch.unique(torch.cat(drawn)), targets)

    def walks(self, roots: Tensor, length: int, generator: torch.Generator) -> Batch:
        """All nodes that random walks visit, and all pairs among them.

        Args:
            roots: where the walks begin, [R].
            length: steps of a walk.
            generator: draws the steps.

        Returns:
            The batch.

        Raises:
            ValueError: for a length below 0.

        Source:
            Zeng et al. 2020 (GraphSAINT).
        """
        if length < 0:
            raise ValueError(f"length of a walk (got {length}), expected at least 0")
        visited = [roots]
        for _ in range(length):
            here = visited[-1]
            share = torch.rand(here.shape, generator=generator, dtype=torch.float64).to(here.device)
            visited.append(self._graph.neighbor(here, (share * self._graph.degrees(here)).long()))
        return self.induced(torch.cat(visited))

    def _targets(self, nodes: Tensor, targets: Tensor | None) -> Tensor:
        if targets is None:
            return torch.arange(nodes.numel(), device=nodes.device)
        places = self._place[targets]
        if bool((places < 0).any()):
            self._place[nodes] = -1
            missing = int(targets[places < 0][0])
            raise ValueError(f"targets (got node {missing}, which is not in the batch), expected nodes of it")
        return places

    def of_pairs(self, nodes: Tensor, ids: Tensor, targets: Tensor) -> Batch:
        """Some nodes and some pairs among them.

        Args:
            nodes: rising, [n].
            ids: numbers of the pairs, [p].
            targets: those of the nodes whose loss counts, [t].

        Returns:
            The batch.
        """
        self._place[nodes] = torch.arange(nodes.numel(), device=nodes.device)
        pairs, places = self._place[self._graph.ends(ids)], self._targets(nodes, targets)
        self._place[nodes] = -1
        return Batch(nodes, pairs, ids, places)


def random_parts(num_nodes: int, count: int, generator: torch.Generator) -> Tensor:
    """A random part 0..count-1 for every node; sizes differ by one at most.

    Args:
        num_nodes: N.
        count: number of parts.
        generator: draws the parts.

    Returns:
        [N].

    Raises:
        ValueError: for a count below 1 or above the nodes.

    Example:
        >>> parts = random_parts(5, 2, torch.Generator().manual_seed(0))
        >>> torch.bincount(parts).tolist()
        [3, 2]
    """
    check_count(num_nodes, count)
    parts = torch.empty(num_nodes, dtype=torch.long)
    parts[torch.randperm(num_nodes, generator=generator)] = torch.arange(num_nodes) % count
    return parts


def clusters(edges: Edges, count: int) -> Tensor:
    """A part 0..count-1 for every node, neighbors mostly together: by METIS where `pymetis` is installed.

    Without it nodes are put in reverse Cuthill-McKee order, in which neighbors stand close, and cut into runs of equal
    size. Both are deterministic.

    Args:
        edges: the graph.
        count: number of parts.

    Returns:
        [N].

    Raises:
        ValueError: for a count below 1 or above the nodes.
    """
    check_count(edges.num_nodes, count)
    return parts_of_rows(*_without_loops(edges), count)


def parts_of_rows(crow: Tensor, col: Tensor, count: int) -> Tensor:
    """`clusters` of a graph without self-loops in CSR form, int32, on the CPU.

    Args:
        crow: where each row starts, [N + 1].
        col: neighbors, [2P].
        count: number of parts.

    Returns:
        [N].
    """
    try:
        import pymetis
    except ImportError:
        return _cuthill_mckee_runs(crow, col, count)
    _, parts = pymetis.part_graph(count, pymetis.CSRAdjacency(crow.numpy(), col.numpy()))
    return torch.as_tensor(parts, dtype=torch.long)


def _cuthill_mckee_runs(crow: Tensor, col: Tensor, count: int) -> Tensor:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    nodes = crow.numel() - 1
    adjacency = csr_array((torch.ones(col.numel()).numpy(), col.numpy(), crow.numpy()), shape=(nodes, nodes))
    order = torch.from_numpy(reverse_cuthill_mckee(adjacency, symmetric_mode=True).copy()).long()
    parts = torch.empty(nodes, dtype=torch.long)
    parts[order] = torch.arange(nodes) * count // nodes
    return parts


def _without_loops(edges: Edges) -> tuple[Tensor, Tensor]:
    """CSR of the pairs alone, int32, on the CPU."""
    pattern = edges.pattern.to("cpu")
    others = pattern.row != pattern.col
    without_loops = pattern.keep(others)
    return without_loops.crow.int(), without_loops.col.int()


def _first_of_rows(row: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Which entries are among the first `count` of their row in a random order; `row`: the row of each, rising."""
    if not row.numel():
        return torch.zeros_like(row, dtype=torch.bool)
    shuffled = torch.randperm(row.numel(), generator=generator).to(row.device)
    by_row = shuffled[row[shuffled].argsort(stable=True)]
    sizes = torch.bincount(row)
    first = (sizes.cumsum(0) - sizes)[row[by_row]]
    rank = torch.arange(row.numel(), device=row.device) - first
    stays = torch.zeros_like(row, dtype=torch.bool)
    stays[by_row[rank < count]] = True
    return stays


def check_count(num_nodes: int, count: int) -> None:
    """Checks a number of parts.

    Args:
        num_nodes: N.
        count: number of parts.

    Raises:
        ValueError: for a count below 1 or above the nodes.
    """
    if not 1 <= count <= num_nodes:
        raise ValueError(f"parts (got {count} of {num_nodes} nodes), expected 1 to {num_nodes}")
