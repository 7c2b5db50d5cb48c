"""Clusters of a graph that is too large for METIS: passes over the rows, a few numbers a node and a part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gebt.graph.adjacency import Adjacency
from gebt.graph.batches import check_count, parts_of_rows

# METIS and Cuthill-McKee hold the whole graph, several times over: about 100 bytes an entry.
MOST_ENTRIES = 1 << 26
_NODES_AT_ONCE = 256
_ROWS_READ = 1 << 16
_RELEASED = 64  # blocks


def clusters_mapped(graph: Adjacency, count: int, *, most_entries: int = MOST_ENTRIES) -> Tensor:
    """A part 0..count-1 for every node, neighbors mostly together; deterministic.

    As `gebt.graph.batches.clusters` up to a number of entries, beyond that as `streamed_clusters`.

    Args:
        graph: in memory or on disk.
        count: number of parts.
        most_entries: the limit, two entries a pair.

    Returns:
        [N].

    Raises:
        ValueError: for a count below 1 or above the nodes.
    """
    if 2 * graph.num_pairs > most_entries:
        return streamed_clusters(graph, count)
    check_count(graph.num_nodes, count)
    cols, degrees = [], []
    for nodes in torch.arange(graph.num_nodes, device=graph.device).split(_ROWS_READ):
        cols.append(graph.rows(nodes)[1].int().cpu())
        degrees.append(graph.degrees(nodes).int().cpu())
        graph.release()
    crow = torch.cat((torch.zeros(1, dtype=torch.int), torch.cat(degrees).cumsum(0, dtype=torch.int)))
    return parts_of_rows(crow, torch.cat(cols), count)


def streamed_clusters(graph: Adjacency, count: int) -> Tensor:
    """Parts whose sizes differ by one at most, assigned in one pass over the nodes in the order of their numbers.

    A node goes to the part i with the largest n_i (1 - s_i / c_i), n_i its neighbors there, s_i of c_i places taken.
    Blocks of 256 nodes are decided at once, from what was known before. A node without an assigned neighbor, or whose
    part is full, fills the first part with free places, which keeps runs of numbers together, or in another pass the
    emptiest one, as in the paper, which is better where numbers are arbitrary; of the two results the one that cuts
    fewer pairs is returned.

    Args:
        graph: in memory or on disk.
        count: number of parts.

    Returns:
        [N].

    Raises:
        ValueError: as `clusters_mapped`.

    Source:
        Linear deterministic greedy, Stanton & Kliot 2012.
    """
    check_count(graph.num_nodes, count)
    ways = (_one_pass(graph, count, _first_free), _one_pass(graph, count, _emptiest))
    return min(ways, key=lambda way: way[1])[0]


def _one_pass(graph: Adjacency, count: int, places: Callable[[Tensor, int], Tensor]) -> tuple[Tensor, int]:
    """The parts, and how many pairs they cut; `places(free, n)` says where n nodes go of which nothing is known."""
    parts = torch.full((graph.num_nodes,), -1, dtype=torch.long, device=graph.device)
    numbers = torch.arange(count, device=graph.device)
    free = graph.num_nodes // count + (numbers < graph.num_nodes % count)
    capacity, cut = free.clone(), 0
    for number, nodes in enumerate(torch.arange(graph.num_nodes, device=graph.device).split(_NODES_AT_ONCE)):
        row, col, _ = graph.rows(nodes)
        if number % _RELEASED == 0:
            graph.release()
        chosen = _best(row, parts[col], nodes.numel(), free / capacity)
        chosen[_beyond(chosen, free)] = -1
        free -= torch.bincount(chosen[chosen >= 0], minlength=count)
        rest = (chosen < 0).nonzero().squeeze(1)
        chosen[rest] = places(free, rest.numel())
        free -= torch.bincount(chosen[rest], minlength=count)
        parts[nodes] = chosen
        cut += int(((parts[col] != chosen[row]) & (col < nodes[row])).sum())
    return parts, cut


def _first_free(free: Tensor, nodes: int) -> Tensor:
    """The first free places, part by part."""
    return torch.searchsorted(free.cumsum(0), torch.arange(nodes, device=free.device), right=True)


def _emptiest(free: Tensor, nodes: int) -> Tensor:
    """One place of every part in turn, emptiest first, as long as all have one; then as they come."""
    rounds = min(nodes, free.numel() * int(free.min()))
    order = free.argsort(stable=True, descending=True)
    dealt = order[torch.arange(rounds, device=free.device) % free.numel()]
    return torch.cat((dealt, _first_free(free - torch.bincount(dealt, minlength=free.numel()), nodes - rounds)))


def _best(row: Tensor, part: Tensor, nodes: int, free_share: Tensor) -> Tensor:
    """The part [nodes] with the largest product of neighbors and share of free places, the first of equals; -1: none.

    `row`, `part` [K]: place of a node and part of one of its neighbors, -1 while it has none.
    """
    known = part >= 0
    key, times = torch.unique(row[known] * free_share.numel() + part[known], return_counts=True)
    row, part = key // free_share.numel(), key % free_share.numel()
    score = times * free_share[part].double()
    order = score.argsort(stable=True, descending=True)
    order = order[row[order].argsort(stable=True)]
    order = order[score[order] > 0]
    best = torch.full((nodes,), -1, dtype=torch.long, device=row.device)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = row[order][1:] != row[order][:-1]
    best[row[order][first]] = part[order][first]
    return best


def _beyond(chosen: Tensor, free: Tensor) -> Tensor:
    """Which nodes find no more free place in the part they chose, those before them served first."""
    order = chosen.argsort(stable=True)
    by_part = chosen[order]
    rank = torch.arange(by_part.numel(), device=chosen.device) - torch.searchsorted(by_part, by_part)
    beyond = torch.zeros_like(chosen, dtype=torch.bool)
    beyond[order] = (by_part >= 0) & (rank >= free[by_part.clamp(min=0)])
    return beyond
