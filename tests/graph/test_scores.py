"""The share an edge has of its nodes' neighbourhoods."""

import pytest
import torch

from gebt.graph import NeighbourhoodShare
from gebt.prune import select

# A triangle 0-1-2 with a tail 2-3-4: degrees 2, 2, 3, 2, 1.
PAIRS = torch.tensor([[0, 0, 1, 2, 3], [1, 2, 2, 3, 4]])


def test_scores_equal_the_formula():
    values = torch.tensor([1.0, 2.0, -1.0, 1.0, 1.0])
    order = torch.arange(5)
    share = values.abs() / torch.tensor([2.0, 2.0, 2.0, 2.0, 1.0])
    # All shares are 1/2 but the last: node 0 holds on to pair 1 (later in the order than 0), node 1 to 2, node 2 to 3.
    best = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(NeighbourhoodShare(PAIRS, 5, order)(values), share / (1 + share) + best)


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
