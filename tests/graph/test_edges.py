from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from gebt.graph import Edges
from gebt.sparse import Pattern


def drawn_pairs(nodes: int, share: float = 0.4, seed: int = 0) -> Tensor:
    linked = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed)) < share
    return linked.triu(1).nonzero().t()


def positive(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1


def dense_of(edges: Edges, weights: Tensor) -> Tensor:
    place = (edges.pattern.row.long(), edges.pattern.col.long())
    return weights.new_zeros(edges.pattern.shape).index_put(place, weights)


def dense_normalised(pairs: Tensor, values: Tensor, nodes: int) -> Tensor:
    u, v = pairs
    adjacency = values.new_zeros(nodes, nodes).index_put((torch.cat((u, v)), torch.cat((v, u))), values.repeat(2))
    adjacency = adjacency + torch.eye(nodes, dtype=values.dtype)
    scale = adjacency.sum(1).rsqrt()
    return scale[:, None] * adjacency * scale


# An ordinary graph with isolated nodes, a complete one, one without pairs, one node, none.
GRAPHS = [(9, 0.2), (6, 1.0), (4, 0.0), (1, 0.0), (0, 0.0)]


@pytest.mark.parametrize(("nodes", "share"), GRAPHS)
def test_values_of_one_give_the_normalised_adjacency(nodes: int, share: float) -> None:
    pairs = drawn_pairs(nodes, share)
    edges = Edges.from_pairs(pairs, nodes)
    expected = dense_normalised(pairs, torch.ones(pairs.shape[1]), nodes)
    torch.testing.assert_close(dense_of(edges, edges.unit_weights), expected)
    assert edges.unit_weights is edges.unit_weights
    assert (edges.num_nodes, edges.num_pairs, edges.pattern.nnz) == (nodes, pairs.shape[1], 2 * pairs.shape[1] + nodes)


@pytest.mark.parametrize(("nodes", "share"), GRAPHS)
def test_any_values_give_the_dense_formula_with_its_gradient(nodes: int, share: float) -> None:
    pairs = drawn_pairs(nodes, share)
    edges, values = Edges.from_pairs(pairs, nodes), positive(pairs.shape[1]).requires_grad_()
    got, expected = dense_of(edges, edges.normalised(values)), dense_normalised(pairs, values, nodes)
    torch.testing.assert_close(got, expected)
    if values.numel():
        upstream = torch.randn(nodes, nodes, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        (ours,) = torch.autograd.grad(got, values, upstream)
        (theirs,) = torch.autograd.grad(expected, values, upstream)
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_passes_gradcheck() -> None:
    edges = Edges.from_pairs(drawn_pairs(6, 0.5), 6)
    assert gradcheck(edges.normalised, (positive(edges.num_pairs).requires_grad_(),))


@given(nodes=st.integers(1, 9), share=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99))
def test_the_weights_are_symmetric_and_their_pattern_is_its_own_transpose(nodes: int, share: float, seed: int) -> None:
    edges = Edges.from_pairs(drawn_pairs(nodes, share, seed), nodes)
    dense = dense_of(edges, edges.normalised(positive(edges.num_pairs, seed)))
    assert torch.equal(dense, dense.t())
    assert edges.pattern.transposed is edges.pattern
    turned = Pattern.from_entries(edges.pattern.col, edges.pattern.row, edges.pattern.shape)
    assert torch.equal(turned[0].col, edges.pattern.col)
    assert torch.equal(turned[1], edges.pattern.permutation.long())


def test_propagation_is_the_dense_product_with_gradients_to_values_and_features() -> None:
    pairs = drawn_pairs(7)
    edges, values = Edges.from_pairs(pairs, 7), positive(pairs.shape[1]).requires_grad_()
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    got = edges.propagate(edges.normalised(values), x)
    expected = dense_normalised(pairs, values, 7) @ x
    torch.testing.assert_close(got, expected)
    ours = torch.autograd.grad(got.square().sum(), (values, x))
    torch.testing.assert_close(ours, torch.autograd.grad(expected.square().sum(), (values, x)))


def test_the_gradient_of_a_pair_is_the_sum_of_both_directed_ones() -> None:
    pairs = drawn_pairs(6, 0.5)
    u, v = pairs
    edges, values = Edges.from_pairs(pairs, 6), positive(pairs.shape[1]).requires_grad_()
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (pair,) = torch.autograd.grad(edges.propagate(edges.normalised(values), x).square().sum(), values)
    directed = values.detach().repeat(2).requires_grad_()
    place = (torch.cat((u, v)), torch.cat((v, u)))
    adjacency = torch.eye(6, dtype=torch.float64).index_put(place, directed)
    # One factor takes row sums and one column sums, so that each direction is an entry of its own.
    scaled = adjacency.sum(1).rsqrt()[:, None] * adjacency * adjacency.sum(0).rsqrt()
    (both,) = torch.autograd.grad((scaled @ x).square().sum(), directed)
    forth, back = both.split(pairs.shape[1])
    torch.testing.assert_close(pair, forth + back)


def test_a_self_loop_has_no_value_and_never_goes() -> None:
    edges = Edges.from_pairs(torch.tensor([[0, 1], [1, 2]]), 4)
    loops = edges.pattern.row == edges.pattern.col
    assert int(loops.sum()) == 4
    assert edges.source[loops].tolist() == [2, 3, 4, 5]
    assert sorted(edges.source[~loops].tolist()) == [0, 0, 1, 1]
    nothing = edges.subset(torch.tensor([False, False]))
    assert dense_of(nothing, nothing.unit_weights).equal(torch.eye(4))


def test_an_isolated_node_keeps_its_own_features() -> None:
    edges = Edges.from_pairs(torch.tensor([[0], [1]]), 3)
    x = torch.rand(3, 2)
    assert edges.propagate(edges.unit_weights, x)[2].equal(x[2])


@given(seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_subset_has_the_degrees_of_what_is_left(seed: int, share: float) -> None:
    pairs = drawn_pairs(8, 0.5, seed)
    kept = torch.rand(pairs.shape[1], generator=torch.Generator().manual_seed(seed)) < share
    rest = Edges.from_pairs(pairs, 8).subset(kept)
    expected = dense_normalised(pairs[:, kept], torch.ones(int(kept.sum())), 8)
    torch.testing.assert_close(dense_of(rest, rest.unit_weights), expected)


def test_a_subset_equals_soft_values_of_zero_and_one() -> None:
    pairs = drawn_pairs(8, 0.5)
    kept = torch.arange(pairs.shape[1]) % 3 > 0
    edges = Edges.from_pairs(pairs, 8)
    hard, soft = edges.subset(kept), edges.normalised(kept.double())
    torch.testing.assert_close(dense_of(hard, hard.unit_weights).double(), dense_of(edges, soft), atol=1e-7, rtol=0)


@given(seed=st.integers(0, 99))
def test_relabelling_the_nodes_relabels_the_weights(seed: int) -> None:
    pairs = drawn_pairs(7, 0.4, seed)
    values = positive(pairs.shape[1], seed)
    label = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    edges, moved = Edges.from_pairs(pairs, 7), Edges.from_pairs(label[pairs], 7)
    dense = dense_of(moved, moved.normalised(values))[label][:, label]
    torch.testing.assert_close(dense, dense_of(edges, edges.normalised(values)))


def test_incident_sums_are_the_weighted_degrees() -> None:
    edges = Edges.from_pairs(torch.tensor([[0, 0], [1, 2]]), 4)
    assert edges.incident_sum(torch.tensor([2.0, 3.0])).tolist() == [5.0, 2.0, 3.0, 0.0]


def test_values_of_another_length_are_refused() -> None:
    edges = Edges.from_pairs(torch.tensor([[0], [1]]), 2)
    with pytest.raises(ValueError, match=r"edge values \(got shape \(2,\)\), expected \(1,\)"):
        edges.normalised(torch.ones(2))


def test_edges_seen_in_inference_mode_can_still_be_trained_on() -> None:
    edges, x = Edges.from_pairs(torch.tensor([[0], [1]]), 2), torch.rand(2, 2, requires_grad=True)
    with torch.inference_mode():
        edges.propagate(edges.unit_weights, x)
    edges.propagate(edges.unit_weights, x).sum().backward()
    assert x.grad is not None
