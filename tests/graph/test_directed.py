"""Directed entries: the released normalizer by the dense formula; symmetric values give the undirected graph."""

from __future__ import annotations

import torch

from gebt.graph import Edges
from gebt.graph.directed import DirectedEdges

ENDS = torch.tensor([[0, 1, 2, 0, 3], [1, 2, 0, 3, 1]])


def test_it_is_the_released_normalizer() -> None:
    values = torch.tensor([0.5, 1.0, 2.0, 0.25, 1.5], dtype=torch.float64, requires_grad=True)
    edges = DirectedEdges.from_entries(ENDS, 5)
    adjacency = torch.eye(5, dtype=torch.float64).index_put(tuple(ENDS), values)
    inverse_root = adjacency.sum(1).rsqrt()
    expected = (adjacency @ inverse_root.diag()).t() @ inverse_root.diag()
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(edges.propagate(edges.normalized(values), x), expected @ x)
    assert torch.autograd.gradcheck(lambda v: edges.propagate(edges.normalized(v), x), (values,))


def test_equal_directions_give_the_undirected_graph() -> None:
    pairs = torch.tensor([[0, 1, 0], [1, 2, 3]])
    both, one = DirectedEdges.from_entries(torch.cat((pairs, pairs.flip(0)), 1), 4), Edges.from_pairs(pairs, 4)
    x = torch.randn(4, 2)
    torch.testing.assert_close(both.propagate(both.unit_weights, x), one.propagate(one.unit_weights, x))
    assert (both.num_pairs, both.num_nodes) == (6, 4)
