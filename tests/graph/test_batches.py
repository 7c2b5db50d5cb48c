"""Batches: induced subgraphs, partitions, sampled neighbors, walks, all with the whole graph's pair numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gebt.graph.batches import Batch, Sampler, clusters, random_parts
from gebt.graph.edges import Edges

CutShare = Callable[[Edges, Tensor], float]


def drawn(nodes: int, share: float, seed: int = 0) -> Edges:
    linked = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed)) < share
    return Edges.from_pairs(linked.triu(1).nonzero().t().contiguous(), nodes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def has_its_pairs(batch: Batch, edges: Edges) -> bool:
    """Pairs in the batch are those of the whole graph that their numbers say, each once."""
    ends = batch.nodes[batch.pairs]
    return torch.equal(ends, edges.pairs[:, batch.pair_ids]) and batch.pair_ids.unique().numel() == len(batch.pair_ids)


@pytest.fixture
def edges() -> Edges:
    return drawn(40, 0.15)


def test_an_induced_batch_has_every_pair_among_its_nodes(edges: Edges) -> None:
    sampler, nodes = Sampler(edges), torch.tensor([31, 4, 4, 17, 22, 9, 38])
    batch = sampler.induced(nodes, torch.tensor([22, 4]))
    assert batch.nodes.tolist() == [4, 9, 17, 22, 31, 38]
    assert has_its_pairs(batch, edges)
    inside = torch.isin(edges.pairs, nodes).all(0)
    assert torch.equal(batch.pair_ids.sort().values, inside.nonzero().squeeze(1))
    assert batch.nodes[batch.targets].tolist() == [22, 4]
    assert has_its_pairs(sampler.induced(torch.arange(40)), edges)  # the table was put back


def test_a_batch_computes_as_the_subgraph_does_and_gradients_go_home(edges: Edges) -> None:
    batch = Sampler(edges).induced(torch.arange(0, 40, 3))
    whole = torch.rand(edges.num_pairs, generator=generator(), requires_grad=True)
    dense = torch.zeros(40, 40).index_put((edges.pairs[0], edges.pairs[1]), whole)
    dense = (dense + dense.t())[batch.nodes][:, batch.nodes] + torch.eye(len(batch.nodes))
    scale = dense.sum(1).rsqrt()
    x = torch.randn(len(batch.nodes), 3, generator=generator())
    expected = (scale[:, None] * dense * scale) @ x
    found = batch.edges.propagate(batch.edges.normalized(whole[batch.pair_ids]), x)
    assert torch.allclose(found, expected, atol=1e-6)
    wanted, got = (torch.autograd.grad(y.square().sum(), whole)[0] for y in (expected, found))
    assert torch.allclose(got, wanted, atol=1e-5)
    assert not bool(got[~torch.isin(torch.arange(edges.num_pairs), batch.pair_ids)].any())


def test_parts_are_even_and_follow_the_generator() -> None:
    sizes = random_parts(23, 5, generator()).bincount()
    assert sorted(sizes.tolist()) == [4, 4, 5, 5, 5]
    assert torch.equal(random_parts(23, 5, generator(1)), random_parts(23, 5, generator(1)))
    assert not torch.equal(random_parts(23, 5, generator(1)), random_parts(23, 5, generator(2)))


@pytest.mark.parametrize("metis", [True, False])
def test_clusters_cut_fewer_pairs_than_random_parts(
    metis: bool, cut_share: CutShare, monkeypatch: pytest.MonkeyPatch
) -> None:
    if metis:
        pytest.importorskip("pymetis", reason="needs pymetis; pip install 'gebt[metis]'")
    else:
        monkeypatch.setitem(sys.modules, "pymetis", None)
    side = 20  # a grid
    number = torch.arange(side * side).view(side, side)
    across = torch.stack((number[:, :-1].flatten(), number[:, 1:].flatten()))
    down = torch.stack((number[:-1].flatten(), number[1:].flatten()))
    edges = Edges.from_pairs(torch.cat((across, down), 1), side * side)
    parts = clusters(edges, 8)
    assert parts.bincount(minlength=8).min() >= 40
    assert torch.equal(parts, clusters(edges, 8))
    assert cut_share(edges, parts) < 0.3 < cut_share(edges, random_parts(side * side, 8, generator()))


def reached(edges: Edges, start: Tensor) -> Tensor:
    return torch.unique(torch.cat((start, edges.pattern.col[torch.isin(edges.pattern.row, start)].long())))


def test_all_neighbors_are_the_neighborhood_and_few_are_few(edges: Edges) -> None:
    sampler, targets = Sampler(edges), torch.tensor([3, 30])
    whole = sampler.neighbors(targets, [100, 100], generator())
    assert torch.equal(whole.nodes, reached(edges, reached(edges, targets)))
    assert torch.equal(whole.nodes[whole.targets], targets)
    assert has_its_pairs(whole, edges)
    few = sampler.neighbors(targets, [2, 1], generator())
    assert has_its_pairs(few, edges)
    first = sampler.neighbors(targets, [2], generator())
    degrees = torch.bincount(first.pairs.flatten(), minlength=len(first.nodes))[first.targets]
    assert int(degrees.max()) <= 4  # two drawn by the node itself, and it may be drawn by the other
    assert first.pair_ids.numel() <= 4
    assert few.nodes.numel() <= 2 + 4 + 4


def test_every_neighbor_is_drawn_alike() -> None:
    star = Edges.from_pairs(torch.stack((torch.zeros(9, dtype=torch.long), torch.arange(1, 10))), 10)
    sampler, source = Sampler(star), generator()
    counts = torch.zeros(9)
    for _ in range(1200):
        batch = sampler.neighbors(torch.tensor([0]), [3], source)
        assert batch.pair_ids.numel() == 3
        counts[batch.pair_ids] += 1
    # Binomial(1200, 1/3): four standard deviations.
    assert float((counts - 400).abs().max()) < 4 * (1200 * 2 / 9) ** 0.5


def test_walks_stay_on_the_graph_and_take_every_way_alike() -> None:
    path = Edges.from_pairs(torch.tensor([[0, 1, 2], [1, 2, 3]]), 5)  # node 4 has no neighbor
    sampler = Sampler(path)
    assert sampler.walks(torch.tensor([4]), 5, generator()).nodes.tolist() == [4]
    assert sampler.walks(torch.tensor([0]), 1, generator()).nodes.tolist() == [0, 1]
    ends = [sampler.walks(torch.tensor([1]), 1, generator(seed)).nodes.sum().item() for seed in range(200)]
    assert 60 < ends.count(3) < 140  # to 2, or to 0 (nodes 0 and 1)
    assert set(ends) == {1, 3}


@pytest.mark.parametrize("count", [0, 41])
def test_parts_that_cannot_be_are_refused(edges: Edges, count: int) -> None:
    for parts in (lambda: random_parts(40, count, generator()), lambda: clusters(edges, count)):
        with pytest.raises(ValueError, match=rf"parts \(got {count} of 40 nodes\), expected 1 to 40"):
            parts()


def test_other_wrong_requests_are_refused(edges: Edges) -> None:
    sampler = Sampler(edges)
    with pytest.raises(ValueError, match=r"targets \(got node 7, which is not in the batch\)"):
        sampler.induced(torch.tensor([1, 2]), torch.tensor([1, 7]))
    assert has_its_pairs(sampler.induced(torch.tensor([1, 2, 5])), edges)
    with pytest.raises(ValueError, match=r"fanouts \(got \(3, 0\)\)"):
        sampler.neighbors(torch.tensor([1]), [3, 0], generator())
    with pytest.raises(ValueError, match=r"length of a walk \(got -1\)"):
        sampler.walks(torch.tensor([1]), -1, generator())
