"""Pairs held out: exact sizes, seeded, no message over them, negatives that are no edge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gebt.graph import Graph, GraphError, hold_out_links
from gebt.graph.metrics import link_measure, measure

MakeGraph = Callable[..., Graph]


def keys(pairs: Tensor, nodes: int) -> set[int]:
    """Each pair as one number, whichever end is first."""
    return set((torch.minimum(*pairs) * nodes + torch.maximum(*pairs)).tolist())


@pytest.mark.parametrize(("shares", "sizes"), [((0.85, 0.05, 0.10), (496, 992)), ((0.7, 0.1, 0.2), (992, 1985))])
def test_parts_have_their_exact_sizes_and_share_nothing(
    digits: Graph, shares: tuple[float, float, float], sizes: tuple[int, int]
) -> None:
    held = hold_out_links(digits, shares)
    assert (held.val_edges.shape[1], held.test_edges.shape[1]) == sizes
    assert held.num_pairs == digits.num_pairs - sum(sizes)
    parts = [keys(part, digits.num_nodes) for part in (held.pairs, held.val_edges, held.test_edges)]
    assert set.union(*parts) == keys(digits.pairs, digits.num_nodes)
    assert sum(map(len, parts)) == digits.num_pairs
    assert torch.equal(held.pairs, held.pairs[:, (held.pairs[0] * digits.num_nodes + held.pairs[1]).argsort()])


def test_negatives_are_different_pairs_and_no_edge_of_the_whole_graph(digits: Graph) -> None:
    held = hold_out_links(digits, negatives=3000)
    drawn = torch.cat((held.val_negatives, held.test_negatives), 1)
    assert held.val_negatives.shape[1] == held.test_negatives.shape[1] == 3000
    assert len(keys(drawn, digits.num_nodes)) == 6000
    assert not keys(drawn, digits.num_nodes) & keys(digits.pairs, digits.num_nodes)
    assert bool((drawn[0] != drawn[1]).all())
    assert hold_out_links(digits).test_negatives.shape == held.test_edges.shape


def test_where_few_pairs_lack_an_edge_all_are_taken_in_two_halves(make_graph: MakeGraph) -> None:
    graph = make_graph(nodes=12)
    held = hold_out_links(graph, (0.6, 0.2, 0.2), negatives=10**6)
    lacking = 12 * 11 // 2 - graph.num_pairs
    assert held.val_negatives.shape[1] == held.test_negatives.shape[1] == lacking // 2
    assert len(keys(torch.cat((held.val_negatives, held.test_negatives), 1), 12)) == lacking // 2 * 2


def test_the_seed_draws_parts_and_negatives_and_the_fingerprint_covers_both(digits: Graph) -> None:
    held, same, other = (hold_out_links(digits, seed=seed) for seed in (1, 1, 2))
    assert held.fingerprint == same.fingerprint
    assert torch.equal(held.eval_pairs, same.eval_pairs)
    assert held.fingerprint != other.fingerprint
    swapped = replace(held, val_edges=held.test_edges, test_edges=held.val_edges)
    assert swapped.structure == held.structure
    fewer = replace(held, test_negatives=held.test_negatives[:, 1:])
    assert len({graph.fingerprint for graph in (held, swapped, fewer, held.to("cpu"))}) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shares": (0.9, 0.05, 0.1)}, r"shares of train, validation, test \(got \(0.9, 0.05, 0.1\)\)"),
        ({"shares": (1.0, 0.0, 0.0)}, "expected three above 0 of sum 1"),
        ({"negatives": 0}, r"negatives \(got 0\), expected at least 1"),
        ({"metric": "accuracy"}, r"metric of 'toy' \(got 'accuracy'\), expected one of \('hits@10'"),
        ({"shares": (0.98, 0.01, 0.01)}, r"graph 'toy' \(got \d+ pairs\), expected enough for shares"),
    ],
    ids=str,
)
def test_a_split_that_cannot_be_is_refused(toy: Graph, given: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        hold_out_links(toy, **({"shares": (0.6, 0.2, 0.2)} | given))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val_edges": torch.tensor([[0], [99]])}, r"val_edges of 'toy' \(got node 99\), expected 0 to 11"),
        ({"test_negatives": torch.zeros(2, 0, dtype=torch.long)}, r"test_negatives of 'toy' \(got \(2, 0\)"),
        ({"test_edges": torch.zeros(2, 1)}, r"test_edges of 'toy' \(got \(2, 1\) torch.float32\), expected int64"),
        ({"pairs": torch.zeros(2, 0, dtype=torch.long)}, r"graph 'toy' \(got no training edge\)"),
    ],
    ids=str,
)
def test_held_pairs_that_are_none_are_refused(toy: Graph, changed: dict[str, Tensor], message: str) -> None:
    held = hold_out_links(toy, (0.6, 0.2, 0.2))
    with pytest.raises(GraphError, match=message):
        replace(held, **changed)


def test_metrics_of_links_by_hand() -> None:
    positive = torch.tensor([0.9, 0.5, 0.1])
    negative = torch.arange(20).float() / 20  # 0, 0.05, ..., 0.95
    # The 10th largest is 0.5, a tie with the second positive: no hit.
    assert float(link_measure("hits@10", positive, negative)) == pytest.approx(1 / 3)
    assert float(link_measure("hits@20", positive, negative)) == 1
    assert float(link_measure("hits@50", positive, negative)) == 1  # fewer than 50
    # 1 above 0.9 and a tie: rank 2.5; 9 above 0.5 and a tie: 10.5; 17 above 0.1 and a tie: 18.5
    assert float(link_measure("mrr", positive, negative)) == pytest.approx((1 / 2.5 + 1 / 10.5 + 1 / 18.5) / 3)
    # below: 18 and a half, 10 and a half, 2 and a half of 20
    assert float(link_measure("roc_auc", positive, negative)) == pytest.approx((18.5 + 10.5 + 2.5) / 60)


def test_a_metric_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric of links \(got 'accuracy'\), expected one of \('hits@10'"):
        link_measure("accuracy", torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match=r"metric of nodes \(got 'hits@50'\), expected one of \('accuracy'"):
        measure("hits@50", torch.ones(1, 2), torch.ones(1))
