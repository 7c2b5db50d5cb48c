"""The share an edge has of its nodes' neighborhoods."""

import numpy as np
import pytest
import torch

from gebt.graph import LocalDegree, Similarity
from gebt.graph.edge_scores import degree_correction, neighbor_reliance
from gebt.prune import make_mask
from gebt.prune.tie_breaking import TieBreaker

# A triangle 0-1-2 with a tail 2-3-4: degrees 2, 2, 3, 2, 1.
PAIRS = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 2, 3, 4]])


def scored(score, values):
    """Scores [P] of trained values, as a search multiplies them while it compares."""
    return values.detach().abs() * score.weight


def test_scores_equal_the_formula():
    share = torch.tensor([1 / 2, 1 / 2, 1 / 2, 1 / 2, 1.0])
    # All shares are 1/2 but the last: node 0 holds on to pair 1 (later in the order than 0), node 1 to 2, node 2 to 3.
    best = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    score = LocalDegree(PAIRS, 5, torch.arange(5))
    assert torch.equal(score.weight, share * 2 ** (64 * best))


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_ranked_by_first_choices_then_by_their_share(seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.triu(torch.rand(50, 50, generator=generator) < 0.3, 1).nonzero().t()
    score = LocalDegree(pairs, 50, TieBreaker(seed))
    degree = torch.bincount(pairs.flatten(), minlength=50)
    share = 1 / torch.minimum(degree[pairs[0]], degree[pairs[1]])
    rank = TieBreaker(seed).of(torch.arange(pairs.shape[1]))
    keys = list(zip(share.tolist(), rank.tolist(), strict=True))
    first = torch.zeros(pairs.shape[1], dtype=torch.bool)
    for node in range(50):
        first[max((pairs == node).any(0).nonzero().flatten().tolist(), key=lambda p: keys[p])] = True
    values = torch.exp(3 * torch.randn(pairs.shape[1], generator=generator)) * 1e-3
    by_hand = torch.tensor(np.lexsort((values * share, first)))
    assert torch.equal(scored(score, values).argsort(), by_hand)


def test_a_pair_of_value_zero_ranks_last_even_as_the_only_link():
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    assert int(scored(LocalDegree(PAIRS, 5, torch.arange(5)), values).argmin()) == 4


@pytest.mark.parametrize("seed", range(5))
def test_no_node_loses_its_last_neighbor_while_others_can_go(seed):
    generator = torch.Generator().manual_seed(seed)
    linked = torch.rand(40, 40, generator=generator) < 0.2
    pairs = torch.triu(linked, 1).nonzero().t()
    order = torch.randperm(pairs.shape[1], generator=generator)
    values = 1 + 0.1 * torch.randn(pairs.shape[1], generator=generator)
    kept = make_mask({"edges": scored(LocalDegree(pairs, 40, order), values)}, ratio=0.6, tie_break=order)["edges"]
    before = torch.bincount(pairs.flatten(), minlength=40)
    after = torch.bincount(pairs[:, kept].flatten(), minlength=40)
    assert bool((after[before > 0] > 0).all())


def test_relabeled_nodes_keep_their_scores():
    generator = torch.Generator().manual_seed(0)
    relabel = torch.randperm(5, generator=generator)
    order = torch.randperm(5, generator=generator)
    values = torch.rand(5, generator=generator)
    expected = scored(LocalDegree(PAIRS, 5, order), values)
    assert torch.equal(scored(LocalDegree(relabel[PAIRS], 5, order), values), expected)


def test_no_pairs_are_fine():
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert scored(LocalDegree(empty, 3, torch.zeros(0, dtype=torch.long)), torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_the_better_place_in_either_neighborhood_then_share_and_cosine(seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.triu(torch.rand(30, 30, generator=generator) < 0.3, 1).nonzero().t()
    pairs = pairs[:, torch.randperm(pairs.shape[1], generator=generator)]
    # Few distinct logits, so that most cosines are tied and the order decides.
    logits = torch.randint(0, 2, (30, 2), generator=generator).float()
    order = torch.randperm(pairs.shape[1], generator=generator)
    unit = torch.nn.functional.normalize((logits - logits.mean(0)).double(), dim=1)
    cosine = (unit[pairs[0]] * unit[pairs[1]]).sum(1)
    degree = torch.bincount(pairs.flatten(), minlength=30)
    keys = [(float(c), int(rank)) for c, rank in zip(cosine, order, strict=True)]
    places = [len(keys)] * len(keys)
    for node in range(30):
        mine = (pairs == node).any(0).nonzero().flatten().tolist()
        for place, pair in enumerate(sorted(mine, key=lambda p: keys[p], reverse=True)):
            places[pair] = min(places[pair], place)
    share = 1 / torch.minimum(degree[pairs[0]], degree[pairs[1]])
    expected = share * (1 + cosine) / 4 - torch.tensor(places)
    torch.testing.assert_close(Similarity(pairs, 30, order)(logits), expected)


def test_agreement_keeps_every_node_its_best_neighbor_first():
    # A star 0-(1..4) with a tail 4-5; nodes 0 and 1 agree, 4 and 5 agree, the rest are opposed to 0.
    pairs = torch.tensor([[0, 0, 0, 0, 4], [1, 2, 3, 4, 5]])
    logits = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 1], [0, 1]])
    scores = Similarity(pairs, 6, torch.arange(5))(logits)
    assert (scores >= 0).tolist() == [True, True, True, False, True]  # 0-4 is nobody's first choice


@pytest.mark.parametrize("order", [torch.arange(3), torch.arange(3).flip(0)])
def test_agreement_settles_ties_by_the_order_not_by_position(order):
    pairs = torch.tensor([[0, 0, 0], [1, 2, 3]])
    hub = Similarity(torch.cat((pairs, torch.tensor([[1, 2, 3], [4, 4, 4]])), 1), 5, torch.cat((order, order + 3)))
    assert int(hub(torch.ones(5, 2))[:3].argmax()) == int(order.argmax())


def test_agreement_of_a_graph_without_pairs_is_empty():
    assert Similarity(torch.empty(2, 0, dtype=torch.int64), 4, TieBreaker(0))(torch.rand(4, 2)).shape == (0,)


def test_mixed_scores_rank_trained_values_within_a_place() -> None:
    """A star: all pairs have the same place and share at the leaves, so opinions alike leave it to the values."""
    pairs = torch.tensor([[0, 0, 0, 0], [1, 2, 3, 4]])
    probabilities = torch.tensor([[0.9, 0.1]]).repeat(5, 1)
    probabilities[0] = torch.tensor([0.1, 0.9])
    scores = Similarity(pairs, 5, TieBreaker(0))(probabilities, values=torch.tensor([0.9, -1.2, 1.0, 1.1]))
    assert scores.argsort(descending=True).tolist()[0] == 1
    plain = Similarity(pairs, 5, TieBreaker(0))(probabilities)
    torch.testing.assert_close(scores, plain * torch.tensor([1, 4, 2, 3], dtype=torch.float64) / 4)


def test_degree_correction_makes_up_for_the_edges_that_went() -> None:
    pairs = torch.tensor([[0, 0, 0, 1], [1, 2, 3, 2]])
    kept = torch.tensor([True, False, True, False])
    found = degree_correction(pairs, kept, 4)
    # d = 3, 2, 2, 1 and k = 2, 1, 0, 1
    expected = torch.tensor([(3 / 2 * 2 / 1) ** 0.5, (3 / 2 * 2) ** 0.5, (3 / 2 * 1) ** 0.5, (2 / 1 * 2) ** 0.5])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(degree_correction(pairs, torch.ones(4, dtype=torch.bool), 4), torch.ones(4))


def test_within_a_place_stays_what_a_node_in_need_holds_there() -> None:
    """Two stars with hubs 0 and 3, in no need; every pair is the only one, and so the best, of its leaf."""
    pairs = torch.tensor([[0, 0, 3, 3], [1, 2, 4, 5]])
    probabilities = torch.tensor([[0.9, 0.1]] * 3 + [[0.1, 0.9]] * 3)
    need = torch.tensor([0.0, 0.8, 0.2, 0.0, 0.1, 0.9])
    scores = Similarity(pairs, 6, TieBreaker(0))(probabilities, need)
    assert scores.argsort(descending=True).tolist() == [3, 0, 1, 2]
    torch.testing.assert_close(scores, torch.tensor([0.2, 0.05, 0.025, 0.225], dtype=torch.float64))  # need * 2 / 8
    opinion, alone = torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(neighbor_reliance(opinion, alone), torch.tensor([0.1, 0.5]))
