"""Spreading opinions: against the dense formula, nothing for share 0, an isolated node keeps its own."""

from __future__ import annotations

import pytest
import torch

from gebt.graph import Edges
from gebt.graph.label_propagation import propagate_labels

PAIRS = torch.tensor([[0, 1, 1], [1, 2, 3]])


def probabilities(nodes: int) -> torch.Tensor:
    return torch.rand(nodes, 3, generator=torch.Generator().manual_seed(0)).softmax(1)


def test_spreading_is_the_dense_recursion() -> None:
    edges, own = Edges.from_pairs(PAIRS, 5), probabilities(5)
    adjacency = torch.eye(5)
    adjacency[PAIRS[0], PAIRS[1]] = adjacency[PAIRS[1], PAIRS[0]] = 1
    root = adjacency.sum(1).rsqrt()
    adjacency = root.unsqueeze(1) * adjacency * root
    expected = own
    for _ in range(4):
        expected = 0.3 * own + 0.7 * adjacency @ expected
    found = propagate_labels(own, edges, 0.7, steps=4)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True))
    torch.testing.assert_close(found[4], own[4])  # nobody speaks to it


def test_alpha_of_0_is_no_change_and_one_of_1_is_refused() -> None:
    edges, own = Edges.from_pairs(PAIRS, 4), probabilities(4)
    torch.testing.assert_close(propagate_labels(own, edges, 0.0), own)
    with pytest.raises(ValueError, match=r"alpha \(got 1.0\), expected 0 <= alpha < 1"):
        propagate_labels(own, edges, 1.0)
