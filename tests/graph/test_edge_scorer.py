"""Sets of graphs as one graph, and edge rules: symmetric, the same wherever a graph stands, exact in counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gebt.graph import Edges, Graph
from gebt.graph.edge_scorer import EdgeScorer
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.prune.selection import keep_within
from gebt.sparse import SparseMatrix


def trained(features: int, seed: int = 0, hops: int = 2) -> EdgeScorer:
    """A rule whose last weights are not zero any more."""
    edge_scorer = EdgeScorer(features, seed, width=4, hops=hops)
    with torch.no_grad():
        edge_scorer.outer.uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
    return edge_scorer


def alone(fold: GraphClassificationFold, number: int) -> GraphClassificationFold:
    return fold.part(torch.arange(fold.num_graphs) == number)


def test_parts_hold_the_nodes_pairs_and_split_of_their_graphs(fold: GraphClassificationFold) -> None:
    part = fold.part(fold.val_mask)
    numbers = fold.val_mask.nonzero().squeeze(1).tolist()
    assert (part.num_graphs, part.val_mask.all()) == (len(numbers), True)
    for place, number in enumerate(numbers):
        own, nodes = alone(fold, number), part.graph_of == place
        assert torch.equal(part.features[nodes], fold.features[fold.graph_of == number])
        assert torch.equal(part.pairs[:, part.graph_of_pair == place] - nodes.int().argmax(), own.pairs)
        assert own.labels.tolist() == [fold.labels[number]]


def test_parts_of_sparse_features_are_those_of_dense_ones(fold: GraphClassificationFold) -> None:
    sparse = replace(fold, features=SparseMatrix.from_dense(fold.features))
    assert torch.equal(sparse.part(fold.test_mask).features.to_dense(), fold.part(fold.test_mask).features)


def test_the_fingerprint_knows_which_node_is_in_which_graph(fold: GraphClassificationFold) -> None:
    moved = fold.graph_of.clone()
    moved[4] = 0  # the first node of the second graph
    other, same = replace(fold, graph_of=moved), replace(fold)
    assert other.fingerprint != fold.fingerprint == same.fingerprint == fold.to("cpu").fingerprint


def test_fresh_rules_value_every_pair_one(fold: GraphClassificationFold) -> None:
    values = EdgeScorer(3).values(fold.features, Edges.from_pairs(fold.pairs, fold.num_nodes))
    assert torch.equal(values, torch.ones(fold.num_pairs))


@pytest.mark.parametrize("hops", [0, 1, 2])
def test_scores_are_those_of_the_formula(toy: Graph, hops: int) -> None:
    edge_scorer, n = trained(toy.num_features, hops=hops), toy.num_nodes
    adjacency = torch.zeros(n, n)
    adjacency[toy.pairs[0], toy.pairs[1]] = 1
    adjacency += adjacency.t().clone()
    degree = adjacency.sum(1)
    mean = adjacency / degree.clamp(min=1)[:, None]
    x = torch.cat((toy.features, degree.log1p()[:, None]), 1)
    around = sum(torch.linalg.matrix_power(mean, k) @ x @ weight.t() for k, weight in enumerate(edge_scorer.reads))
    phi = torch.relu(around + edge_scorer.shift)
    expected = [
        torch.relu(edge_scorer.mix @ (phi[u] + phi[v]) + edge_scorer.mix_shift) @ edge_scorer.outer
        for u, v in toy.pairs.t().tolist()
    ]
    torch.testing.assert_close(edge_scorer.scores(toy), torch.stack(expected).detach())


def test_scores_follow_their_nodes_to_other_numbers(toy: Graph) -> None:
    edge_scorer, order = (
        trained(toy.num_features),
        torch.randperm(toy.num_nodes, generator=torch.Generator().manual_seed(1)),
    )
    place = order.argsort()
    ends = place[toy.pairs].sort(0).values  # a pair that changes its direction is still the same pair
    by_key = (ends[0] * toy.num_nodes + ends[1]).argsort()
    other = replace(toy, pairs=ends[:, by_key], features=toy.features[order])
    torch.testing.assert_close(edge_scorer.scores(other), edge_scorer.scores(toy)[by_key])
    distinct = edge_scorer.scores(toy).unique().numel() == toy.num_pairs
    assert distinct
    assert torch.equal(edge_scorer.mask(other, 0.3), edge_scorer.mask(toy, 0.3)[by_key])


def test_a_graph_loses_the_same_pairs_alone_as_among_others(fold: GraphClassificationFold) -> None:
    for edge_scorer in (trained(3), EdgeScorer(3)):  # scored, and all tied
        kept = edge_scorer.mask(fold, 0.4, seed=5)
        for number in range(fold.num_graphs):
            assert torch.equal(edge_scorer.mask(alone(fold, number), 0.4, seed=5), kept[fold.graph_of_pair == number])


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.9])
def test_every_graph_loses_its_share_rounded_down(fold: GraphClassificationFold, ratio: float) -> None:
    kept = trained(3).mask(fold, ratio)
    for number in range(fold.num_graphs):
        own = kept[fold.graph_of_pair == number]
        assert int((~own).sum()) == math.floor(round(ratio * len(own), 9))


def test_highest_scores_stay_and_ties_do_not_go_by_place() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    kept = keep_within(
        torch.tensor([3.0, 1.0, 2.0, 5.0, 5.0, 5.0, 5.0]), group, 0.5, torch.tensor([0] * 3 + [2, 0, 3, 1])
    )
    assert kept.tolist() == [True, False, True, True, False, True, False]
    edges = [EdgeScorer(2).mask(clique(), 0.5, seed) for seed in range(40)]
    assert (torch.stack(edges).float().mean(0) - 0.5).abs().max() < 0.3  # each pair stays about as often


def clique(nodes: int = 7) -> Graph:
    pairs, labels = torch.ones(nodes, nodes).triu(1).nonzero().t(), torch.arange(nodes)
    return Graph("clique", pairs, torch.ones(nodes, 2), labels, labels == 0, labels == 1, labels == 2, nodes)


def test_a_rule_prunes_any_graph_of_its_width(make_graph: Callable[..., Graph]) -> None:
    edge_scorer = trained(5)
    for graph in (make_graph(), make_graph(nodes=20, seed=1)):
        kept = edge_scorer.mask(graph, 0.25)
        assert int((~kept).sum()) == graph.num_pairs // 4
        assert edge_scorer.scores(graph)[kept].min() >= edge_scorer.scores(graph)[~kept].max()
    with pytest.raises(ValueError, match=r"graph 'toy' \(got 7 features\), expected 5 as the edge rule reads"):
        edge_scorer.mask(make_graph(features=7), 0.25)


def test_what_no_rule_can_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"features, width, hops of an edge rule \(got \(0, 16, 2\)\)"):
        EdgeScorer(0)
    edge_scorer = trained(3)
    again = EdgeScorer.of(edge_scorer.state_dict(), edge_scorer.sizes).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in edge_scorer.state_dict().items())
    with pytest.raises(ValueError, match=r"edge rule \(got sizes .*'width': True"):
        EdgeScorer.of(edge_scorer.state_dict(), {**edge_scorer.sizes, "width": True})
    with pytest.raises(ValueError, match=r"edge rule \(got tensors .*\), expected .*'mix': \(5, 5\)"):
        EdgeScorer.of(edge_scorer.state_dict(), {**edge_scorer.sizes, "width": 5})
    with pytest.raises(ValueError, match=r"edge rule \(got NaN"):
        EdgeScorer.of({**edge_scorer.state_dict(), "outer": torch.full((4,), torch.nan)}, edge_scorer.sizes)
