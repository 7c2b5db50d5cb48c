"""Parts in one pass: even, deterministic, neighbors together; METIS or its stand-in where the graph fits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gebt.graph.adjacency import InMemory
from gebt.graph.batches import clusters, random_parts
from gebt.graph.edges import Edges
from gebt.graph.streamed_clusters import clusters_mapped, streamed_clusters

BLOCK, BLOCKS = 100, 20

CutShare = Callable[[Edges, Tensor], float]


def blocks(shuffled: bool = False, seed: int = 0) -> Edges:
    """Blocks of 100 nodes: nine in ten of the pairs are inside."""
    source = torch.Generator().manual_seed(seed)
    low = torch.arange(BLOCK * BLOCKS).repeat_interleave(5)
    inside = torch.rand(low.shape, generator=source) < 0.9
    other = torch.randint(BLOCK, low.shape, generator=source)
    block = torch.where(inside, low // BLOCK, torch.randint(BLOCKS, low.shape, generator=source))
    pairs = torch.stack((low, block * BLOCK + other))
    if shuffled:
        pairs = torch.randperm(BLOCK * BLOCKS, generator=source)[pairs]
    pairs = torch.unique(pairs.sort(0).values, dim=1)
    return Edges.from_pairs(pairs[:, pairs[0] < pairs[1]], BLOCK * BLOCKS)


@pytest.mark.parametrize("count", [1, 3, 20, 2000])
def test_parts_are_even(count: int) -> None:
    sizes = streamed_clusters(InMemory(blocks(shuffled=True)), count).bincount(minlength=count)
    assert len(sizes) == count
    assert int(sizes.max() - sizes.min()) <= 1


@pytest.mark.parametrize(("shuffled", "most"), [(False, 0.3), (True, 0.8)])
def test_neighbors_are_together_more_than_in_random_parts(shuffled: bool, most: float, cut_share: CutShare) -> None:
    edges = blocks(shuffled)
    parts = streamed_clusters(InMemory(edges), BLOCKS)
    assert torch.equal(parts, streamed_clusters(InMemory(edges), BLOCKS))
    drawn = cut_share(edges, random_parts(edges.num_nodes, BLOCKS, torch.Generator().manual_seed(0)))
    assert cut_share(edges, parts) < most < drawn


def test_the_better_of_two_ways_by_hand() -> None:
    # Two blocks of 256 are decided one after the other: of the second, each node follows its one neighbor.
    low = torch.arange(256)
    pairs = torch.stack((low, 511 - low))
    # 128 nodes a part: runs would fill parts 0 and 1, and nobody could follow; dealt in turn all can.
    dealt = streamed_clusters(InMemory(Edges.from_pairs(pairs, 512)), 4)
    assert torch.equal(dealt, torch.cat((low % 4, (low % 4).flip(0))))
    # 512 nodes a part: nothing is cut by runs, which come first.
    runs = streamed_clusters(InMemory(Edges.from_pairs(pairs, 1024)), 2)
    assert torch.equal(runs, torch.arange(1024) // 512)


def test_a_graph_that_fits_has_the_parts_of_clusters() -> None:
    edges = blocks()
    graph = InMemory(edges)
    assert torch.equal(clusters_mapped(graph, BLOCKS), clusters(edges, BLOCKS))
    assert torch.equal(
        clusters_mapped(graph, BLOCKS, most_entries=2 * edges.num_pairs - 1), streamed_clusters(graph, BLOCKS)
    )


@pytest.mark.parametrize("count", [0, 2001])
@pytest.mark.parametrize("most_entries", [0, 1 << 20])
def test_parts_that_cannot_be_are_refused(count: int, most_entries: int) -> None:
    with pytest.raises(ValueError, match=rf"parts \(got {count} of 2000 nodes\)"):
        clusters_mapped(InMemory(blocks()), count, most_entries=most_entries)
