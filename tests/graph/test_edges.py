from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.profiler import ProfilerActivity, profile

from gebt.graph import Edges
from gebt.sparse import Pattern, memory
from gebt.sparse import pattern as patterns
from gebt.sparse.memory import OutOfRoomError


def drawn_pairs(nodes: int, share: float = 0.4, seed: int = 0) -> Tensor:
    linked = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed)) < share
    return linked.triu(1).nonzero().t()


def positive(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1


def dense_of(edges: Edges, weights: Tensor) -> Tensor:
    place = (edges.pattern.row.long(), edges.pattern.col.long())
    return weights.new_zeros(edges.pattern.shape).index_put(place, weights)


def dense_normalized(pairs: Tensor, values: Tensor, nodes: int) -> Tensor:
    u, v = pairs
    adjacency = values.new_zeros(nodes, nodes).index_put((torch.cat((u, v)), torch.cat((v, u))), values.repeat(2))
    adjacency = adjacency + torch.eye(nodes, dtype=values.dtype)
    scale = adjacency.sum(1).rsqrt()
    return scale[:, None] * adjacency * scale


# An ordinary graph with isolated nodes, a complete one, one without pairs, one node, none.
GRAPHS = [(9, 0.2), (6, 1.0), (4, 0.0), (1, 0.0), (0, 0.0)]


@pytest.mark.parametrize(("nodes", "share"), GRAPHS)
def test_values_of_one_give_the_normalized_adjacency(nodes: int, share: float) -> None:
    pairs = drawn_pairs(nodes, share)
    edges = Edges.from_pairs(pairs, nodes)
    expected = dense_normalized(pairs, torch.ones(pairs.shape[1]), nodes)
    torch.testing.assert_close(dense_of(edges, edges.unit_weights), expected)
    assert edges.unit_weights is edges.unit_weights
    assert (edges.num_nodes, edges.num_pairs, edges.pattern.nnz) == (nodes, pairs.shape[1], 2 * pairs.shape[1] + nodes)


@pytest.mark.parametrize(("nodes", "share"), GRAPHS)
def test_any_values_give_the_dense_formula_with_its_gradient(nodes: int, share: float) -> None:
    pairs = drawn_pairs(nodes, share)
    edges, values = Edges.from_pairs(pairs, nodes), positive(pairs.shape[1]).requires_grad_()
    got, expected = dense_of(edges, edges.normalized(values)), dense_normalized(pairs, values, nodes)
    torch.testing.assert_close(got, expected)
    if values.numel():
        upstream = torch.randn(nodes, nodes, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        (ours,) = torch.autograd.grad(got, values, upstream)
        (theirs,) = torch.autograd.grad(expected, values, upstream)
        torch.testing.assert_close(ours, theirs)


def test_the_gradient_passes_gradcheck() -> None:
    edges = Edges.from_pairs(drawn_pairs(6, 0.5), 6)
    assert gradcheck(edges.normalized, (positive(edges.num_pairs).requires_grad_(),))


@given(nodes=st.integers(1, 9), share=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99))
def test_the_weights_are_symmetric_and_their_pattern_is_its_own_transpose(nodes: int, share: float, seed: int) -> None:
    edges = Edges.from_pairs(drawn_pairs(nodes, share, seed), nodes)
    dense = dense_of(edges, edges.normalized(positive(edges.num_pairs, seed)))
    assert torch.equal(dense, dense.t())
    assert edges.pattern.transposed is edges.pattern
    turned = Pattern.from_entries(edges.pattern.col, edges.pattern.row, edges.pattern.shape)
    assert torch.equal(turned[0].col, edges.pattern.col)
    assert torch.equal(turned[1], edges.pattern.permutation.long())


def test_propagation_is_the_dense_product_with_gradients_to_values_and_features() -> None:
    pairs = drawn_pairs(7)
    edges, values = Edges.from_pairs(pairs, 7), positive(pairs.shape[1]).requires_grad_()
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    got = edges.propagate(edges.normalized(values), x)
    expected = dense_normalized(pairs, values, 7) @ x
    torch.testing.assert_close(got, expected)
    ours = torch.autograd.grad(got.square().sum(), (values, x))
    torch.testing.assert_close(ours, torch.autograd.grad(expected.square().sum(), (values, x)))


def test_the_gradient_of_a_pair_is_the_sum_of_both_directed_ones() -> None:
    pairs = drawn_pairs(6, 0.5)
    u, v = pairs
    edges, values = Edges.from_pairs(pairs, 6), positive(pairs.shape[1]).requires_grad_()
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (pair,) = torch.autograd.grad(edges.propagate(edges.normalized(values), x).square().sum(), values)
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
    nothing = Edges.from_pairs(edges.pairs[:, torch.tensor([False, False])], edges.num_nodes)
    assert dense_of(nothing, nothing.unit_weights).equal(torch.eye(4))


def test_an_isolated_node_keeps_its_own_features() -> None:
    edges = Edges.from_pairs(torch.tensor([[0], [1]]), 3)
    x = torch.rand(3, 2)
    assert edges.propagate(edges.unit_weights, x)[2].equal(x[2])


@given(seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_subset_has_the_degrees_of_what_is_left(seed: int, share: float) -> None:
    pairs = drawn_pairs(8, 0.5, seed)
    kept = torch.rand(pairs.shape[1], generator=torch.Generator().manual_seed(seed)) < share
    rest = Edges.from_pairs(pairs[:, kept], 8)
    expected = dense_normalized(pairs[:, kept], torch.ones(int(kept.sum())), 8)
    torch.testing.assert_close(dense_of(rest, rest.unit_weights), expected)


def test_a_subset_equals_soft_values_of_zero_and_one() -> None:
    pairs = drawn_pairs(8, 0.5)
    kept = torch.arange(pairs.shape[1]) % 3 > 0
    edges = Edges.from_pairs(pairs, 8)
    hard, soft = Edges.from_pairs(edges.pairs[:, kept], edges.num_nodes), edges.normalized(kept.double())
    torch.testing.assert_close(dense_of(hard, hard.unit_weights).double(), dense_of(edges, soft), atol=1e-7, rtol=0)


@given(seed=st.integers(0, 99))
def test_relabeling_the_nodes_relabels_the_weights(seed: int) -> None:
    pairs = drawn_pairs(7, 0.4, seed)
    values = positive(pairs.shape[1], seed)
    label = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    edges, moved = Edges.from_pairs(pairs, 7), Edges.from_pairs(label[pairs], 7)
    dense = dense_of(moved, moved.normalized(values))[label][:, label]
    torch.testing.assert_close(dense, dense_of(edges, edges.normalized(values)))


def test_incident_sums_are_the_weighted_degrees() -> None:
    edges = Edges.from_pairs(torch.tensor([[0, 0], [1, 2]]), 4)
    assert edges.incident_sum(torch.tensor([2.0, 3.0])).tolist() == [5.0, 2.0, 3.0, 0.0]


def test_values_of_another_length_are_refused() -> None:
    edges = Edges.from_pairs(torch.tensor([[0], [1]]), 2)
    with pytest.raises(ValueError, match=r"edge weights \(got shape \(2,\)\), expected \(1,\)"):
        edges.normalized(torch.ones(2))


def test_edges_seen_in_inference_mode_can_still_be_trained_on() -> None:
    edges, x = Edges.from_pairs(torch.tensor([[0], [1]]), 2), torch.rand(2, 2, requires_grad=True)
    with torch.inference_mode():
        edges.propagate(edges.unit_weights, x)
    edges.propagate(edges.unit_weights, x).sum().backward()
    assert x.grad is not None


def disordered(pairs: Tensor, seed: int = 0) -> Tensor:
    """The same pairs in no order, half of them as (larger, smaller)."""
    generator = torch.Generator().manual_seed(seed)
    pairs = pairs[:, torch.randperm(pairs.shape[1], generator=generator)]
    turned = torch.rand(pairs.shape[1], generator=generator) < 0.5
    return torch.where(turned, pairs.flip(0), pairs)


def parts_of(edges: Edges) -> tuple[Tensor, ...]:
    return edges.pattern.crow, edges.pattern.col, edges.source, edges.places


def same(one: Edges, two: Edges) -> bool:
    return all(map(torch.equal, parts_of(one), parts_of(two)))


@given(nodes=st.integers(2, 12), share=st.sampled_from([0.1, 0.5, 1.0]), seed=st.integers(0, 99))
def test_values_follow_the_callers_order_of_the_pairs_whatever_it_is(nodes: int, share: float, seed: int) -> None:
    pairs = disordered(drawn_pairs(nodes, share, seed), seed)
    edges, values = Edges.from_pairs(pairs, nodes), positive(pairs.shape[1], seed).requires_grad_()
    assert edges.pairs is pairs
    got, expected = dense_of(edges, edges.normalized(values)), dense_normalized(pairs, values, nodes)
    torch.testing.assert_close(got, expected)
    if values.numel():
        upstream = positive(nodes * nodes, seed).view(nodes, nodes)
        ours, theirs = (torch.autograd.grad(result, values, upstream)[0] for result in (got, expected))
        torch.testing.assert_close(ours, theirs)


@given(nodes=st.integers(0, 12), share=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 99))
def test_source_and_places_say_where_each_pair_stands(nodes: int, share: float, seed: int) -> None:
    pairs = disordered(drawn_pairs(nodes, share, seed), seed)
    edges, count = Edges.from_pairs(pairs, nodes), pairs.shape[1]
    stands = torch.stack((edges.pattern.row, edges.pattern.col)).long()
    assert torch.equal(stands[0] * nodes + stands[1], torch.sort(stands[0] * nodes + stands[1]).values)
    for entry, source in enumerate(edges.source.tolist()):
        ends = pairs[:, source].tolist() if source < count else [source - count] * 2
        assert sorted(stands[:, entry].tolist()) == sorted(ends)
    assert sorted(edges.places.tolist()) == list(range(2 * count + nodes))
    assert edges.source[edges.places.long()].tolist() == [
        *(pair for pair in range(count) for _ in "ab"),
        *range(count, count + nodes),
    ]


def test_the_order_and_the_direction_of_the_pairs_do_not_change_the_pattern() -> None:
    pairs = drawn_pairs(9, 0.5)
    edges, other = Edges.from_pairs(pairs, 9), Edges.from_pairs(disordered(pairs), 9)
    assert torch.equal(edges.pattern.crow, other.pattern.crow)
    assert torch.equal(edges.pattern.col, other.pattern.col)
    turned = Edges.from_pairs(pairs.flip(0), 9)
    assert same(edges, turned)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_pairs_of_any_integer_type_are_taken(dtype: torch.dtype) -> None:
    pairs = disordered(drawn_pairs(9, 0.5))
    assert same(Edges.from_pairs(pairs.to(dtype), 9), Edges.from_pairs(pairs, 9))


@pytest.mark.parametrize(
    "pairs",
    [
        [[0, 0], [1, 1]],
        [[0, 1], [1, 0]],
        [[0, 1, 0], [1, 2, 1]],
        [[2, 0, 1], [3, 1, 0]],
        [[1, 1], [1, 1]],
    ],
    ids=str,
)
def test_a_pair_given_twice_is_refused(pairs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"pairs \(got the same pair twice\), expected each undirected pair once"):
        Edges.from_pairs(torch.tensor(pairs), 4)


@pytest.mark.parametrize("pairs", [[[2], [2]], [[0, 1, 2], [1, 1, 3]], [[3, 0], [3, 1]]], ids=str)
def test_a_self_loop_is_refused(pairs: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"pairs \(got a self-loop\), expected two different nodes"):
        Edges.from_pairs(torch.tensor(pairs), 4)


@pytest.mark.parametrize(
    ("pairs", "node"),
    [([[0], [4]], 4), ([[9, 0], [1, 1]], 9), ([[0, -1], [1, 2]], -1), ([[0], [2**33 + 1]], 2**33 + 1)],
)
def test_a_node_that_is_not_there_is_refused(pairs: list[list[int]], node: int) -> None:
    with pytest.raises(ValueError, match=rf"pairs \(got node {node}\), expected 0 to 3"):
        Edges.from_pairs(torch.tensor(pairs), 4)


@pytest.mark.parametrize(("nodes", "share"), GRAPHS)
def test_indices_beyond_int32_give_the_same_graph(nodes: int, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = disordered(drawn_pairs(nodes, share))
    narrow = Edges.from_pairs(pairs, nodes)
    monkeypatch.setattr(patterns, "INT32_LIMIT", -1)
    wide = Edges.from_pairs(pairs, nodes)
    for one, other in zip(parts_of(narrow), parts_of(wide), strict=True):
        assert (one.dtype, other.dtype) == (torch.int32, torch.int64)
        assert torch.equal(one.long(), other)
    values = positive(pairs.shape[1]).requires_grad_()
    x = torch.randn(nodes, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    found = []
    for edges in (narrow, wide):
        out = edges.propagate(edges.normalized(values), x)
        found.append((out, *torch.autograd.grad(out.square().sum(), (values, x))))
    torch.testing.assert_close(*found, atol=0, rtol=0)


def test_a_subset_keeps_the_callers_order() -> None:
    pairs = disordered(drawn_pairs(8, 0.5))
    kept = torch.arange(pairs.shape[1]) % 3 > 0
    rest = Edges.from_pairs(pairs[:, kept], 8)
    assert torch.equal(rest.pairs, pairs[:, kept])
    values = positive(int(kept.sum()))
    torch.testing.assert_close(dense_of(rest, rest.normalized(values)), dense_normalized(pairs[:, kept], values, 8))


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of tensors alive at the worst moment of a piece of work, beside those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate((e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), initial=0))


@pytest.mark.parametrize("limit", [2**31 - 1, -1], ids=["int32", "int64"])
@pytest.mark.parametrize("ordered", [True, False])
def test_room_is_asked_for_what_the_construction_takes(
    limit: int, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "INT32_LIMIT", limit)
    asked: list[int] = []
    monkeypatch.setattr("gebt.graph.edges.check_room", lambda what, needed, device: asked.append(needed))
    pairs = drawn_pairs(150, 0.5)
    pairs = pairs if ordered else disordered(pairs)
    peak = peak_of(lambda: Edges.from_pairs(pairs, 150))
    assert 0.8 * asked[0] < peak <= asked[0]


def test_a_graph_that_does_not_fit_is_refused_before_anything_is_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 12 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    pairs = drawn_pairs(150, 0.5)
    message = (
        rf"adjacency of 150 nodes and {pairs.shape[1]} pairs \(got a need of 0.0 GiB\), "
        r"expected at most the 0.0 GiB that are free on cpu"
    )

    def refused() -> None:
        with pytest.raises(OutOfRoomError, match=message):
            Edges.from_pairs(pairs, 150)

    assert peak_of(refused) == 0


@pytest.mark.parametrize("nodes", [[3, 0, 6], [8], list(range(9)), []])
def test_rows_alone_are_those_of_the_whole_product_with_its_gradients(nodes: list[int]) -> None:
    pairs = drawn_pairs(9, 0.3)
    edges, values = Edges.from_pairs(pairs, 9), positive(pairs.shape[1]).requires_grad_()
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    chosen, weights = torch.tensor(nodes, dtype=torch.long), edges.normalized(values)
    rows = edges.rows(chosen)
    got, expected = rows.propagate(weights[rows.entries], x), edges.propagate(weights, x)[chosen]
    torch.testing.assert_close(got, expected)
    assert (
        rows.pattern.nnz == rows.entries.numel() == int((edges.pattern.crow[1:] - edges.pattern.crow[:-1])[nodes].sum())
    )
    ours = torch.autograd.grad(got.square().sum(), (values, x), retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected.square().sum(), (values, x)))
