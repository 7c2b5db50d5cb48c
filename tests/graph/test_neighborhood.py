"""What is around some nodes of a graph, against its dense adjacency; runs of all its pairs."""

from __future__ import annotations

import pytest
import torch

from gebt.graph import Edges, Graph
from gebt.graph.adjacency import Adjacency, adjacency_of, runs_of_pairs
from gebt.graph.neighborhood import BlockBuilder
from gebt.prune.mask import Mask


@pytest.fixture
def graph(sparse64: Graph) -> Adjacency:
    return adjacency_of(Edges.from_pairs(sparse64.pairs, sparse64.num_nodes))


@pytest.mark.parametrize("share", [1.0, 0.5, 0.0])
def test_rows_of_the_targets_are_those_of_the_whole_graph(share: float, sparse64: Graph, graph: Adjacency) -> None:
    drawn = torch.rand(sparse64.num_pairs, generator=torch.Generator().manual_seed(0)) < share
    kept, pairs = None if share == 1 else Mask({"edges": drawn}), sparse64.pairs[:, drawn]
    dense = torch.zeros(60, 60)
    dense[pairs[0], pairs[1]] = dense[pairs[1], pairs[0]] = 1
    degrees, x = dense.sum(1), torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    loops = torch.eye(60)
    normalized = (degrees + 1).rsqrt()[:, None] * (dense + loops) * (degrees + 1).rsqrt()
    surroundings = BlockBuilder(graph, kept)
    for targets in (torch.tensor([2, 30, 31, 58]), torch.arange(60), torch.tensor([59])):
        around = surroundings.of(targets)
        near = dense[targets].any(0)
        near[targets] = True
        assert torch.equal(around.nodes, near.nonzero().squeeze(1))
        assert torch.equal(around.nodes[around.targets], targets)
        assert torch.equal(around.unit_degrees, degrees[around.nodes])
        assert around.pattern.nnz == int((dense + loops)[targets].sum())
        row, col = around.nodes[around.pattern.row], around.nodes[around.pattern.col]
        assert bool(((row[1:] > row[:-1]) | (col[1:] > col[:-1])).all())  # in order
        for weights, whole in ((around.unit_weights, normalized), (around.unit_entries, dense)):
            found = around.propagate(weights, x[around.nodes])
            torch.testing.assert_close(found[around.targets], whole[targets] @ x, rtol=1e-12, atol=1e-12)
            others = torch.ones(around.nodes.numel(), dtype=torch.bool).index_fill(0, around.targets, False)
            assert not bool(found[others].any())


def test_all_pairs_come_once_in_runs(sparse64: Graph, graph: Adjacency) -> None:
    numbers, ends = zip(*runs_of_pairs(graph, 7), strict=True)
    assert torch.equal(torch.cat(numbers), torch.arange(sparse64.num_pairs))
    assert torch.equal(torch.cat(ends, 1), sparse64.pairs)
