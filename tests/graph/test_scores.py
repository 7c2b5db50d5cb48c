"""The share an edge has of its nodes' neighbourhoods."""

import numpy as np
import pytest
import torch

from gebt.graph import NeighbourhoodShare
from gebt.prune import select
from gebt.prune.ties import TieOrder

# A triangle 0-1-2 with a tail 2-3-4: degrees 2, 2, 3, 2, 1.
PAIRS = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 2, 3, 4]])


def test_scores_equal_the_formula():
    values = torch.tensor([1.0, 2.0, -1.0, 1.0, 1.0])
    share = torch.tensor([1 / 2, 1 / 2, 1 / 2, 1 / 2, 1.0])
    # All shares are 1/2 but the last: node 0 holds on to pair 1 (later in the order than 0), node 1 to 2, node 2 to 3.
    best = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    score = NeighbourhoodShare(PAIRS, 5, torch.arange(5))
    assert torch.equal(score.weight, share * 2 ** (64 * best))
    assert torch.equal(score(values), values.abs() * score.weight)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_ranked_by_first_choices_then_by_their_share(seed):
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.triu(torch.rand(50, 50, generator=generator) < 0.3, 1).nonzero().t()
    score = NeighbourhoodShare(pairs, 50, TieOrder(seed))
    degree = torch.bincount(pairs.flatten(), minlength=50)
    share = 1 / torch.minimum(degree[pairs[0]], degree[pairs[1]])
    rank = TieOrder(seed).of(torch.arange(pairs.shape[1]))
    keys = list(zip(share.tolist(), rank.tolist(), strict=True))
    first = torch.zeros(pairs.shape[1], dtype=torch.bool)
    for node in range(50):
        first[max((pairs == node).any(0).nonzero().flatten().tolist(), key=lambda p: keys[p])] = True
    values = torch.exp(3 * torch.randn(pairs.shape[1], generator=generator)) * 1e-3
    by_hand = torch.tensor(np.lexsort((values * share, first)))
    assert torch.equal(score(values).argsort(), by_hand)


def test_a_pair_of_value_zero_ranks_last_even_as_the_only_link():
    values = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    assert int(NeighbourhoodShare(PAIRS, 5, torch.arange(5))(values).argmin()) == 4


def test_the_values_passed_are_left_alone():
    values = torch.ones(5, requires_grad=True)
    NeighbourhoodShare(PAIRS, 5, torch.arange(5))(values)
    assert torch.equal(values.detach(), torch.ones(5))


@pytest.mark.parametrize("seed", range(5))
def test_no_node_loses_its_last_neighbour_while_others_can_go(seed):
    generator = torch.Generator().manual_seed(seed)
    linked = torch.rand(40, 40, generator=generator) < 0.2
    pairs = torch.triu(linked, 1).nonzero().t()
    order = torch.randperm(pairs.shape[1], generator=generator)
    values = 1 + 0.1 * torch.randn(pairs.shape[1], generator=generator)
    kept = select({"edges": NeighbourhoodShare(pairs, 40, order)(values)}, ratio=0.6, order=order)["edges"]
    before = torch.bincount(pairs.flatten(), minlength=40)
    after = torch.bincount(pairs[:, kept].flatten(), minlength=40)
    assert bool((after[before > 0] > 0).all())


def test_relabelled_nodes_keep_their_scores():
    generator = torch.Generator().manual_seed(0)
    relabel = torch.randperm(5, generator=generator)
    order = torch.randperm(5, generator=generator)
    values = torch.rand(5, generator=generator)
    expected = NeighbourhoodShare(PAIRS, 5, order)(values)
    assert torch.equal(NeighbourhoodShare(relabel[PAIRS], 5, order)(values), expected)


def test_no_pairs_are_fine():
    empty = torch.zeros(2, 0, dtype=torch.long)
    assert NeighbourhoodShare(empty, 3, torch.zeros(0, dtype=torch.long))(torch.zeros(0)).shape == (0,)
