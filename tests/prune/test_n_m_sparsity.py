"""Two of every four entries, exactly."""

from __future__ import annotations

import pytest
import torch

from gebt.prune.n_m_sparsity import is_two_of_four, two_of_four
from gebt.prune.tie_breaking import TieBreaker


def test_the_two_highest_of_every_four_stay() -> None:
    scores = torch.rand(6, 12)
    kept = two_of_four({"w": scores})["w"].view(-1, 4)
    expected = torch.zeros_like(kept).scatter_(1, scores.view(-1, 4).topk(2, 1).indices, True)
    assert torch.equal(kept, expected)


def test_the_rest_of_a_row_is_kept() -> None:
    kept = two_of_four({"w": torch.rand(3, 7)})["w"]
    assert kept[:, 4:].all()
    assert torch.equal(kept[:, :4].sum(1), torch.full((3,), 2))


def test_ties_are_settled_by_the_seed_and_never_by_position() -> None:
    equal = {"w": torch.zeros(2000, 4)}
    kept = two_of_four(equal)["w"]
    assert torch.equal(kept.sum(1), torch.full((2000,), 2))
    # Each place stays in half of the groups; five standard deviations are 0.056.
    assert (kept.float().mean(0) - 0.5).abs().max() < 0.056
    assert two_of_four(equal) == two_of_four(equal)
    assert two_of_four(equal, TieBreaker(1)) != two_of_four(equal)


def test_what_the_kernel_takes_is_known() -> None:
    assert is_two_of_four(two_of_four({"w": torch.rand(5, 8)})["w"])
    assert not is_two_of_four(torch.ones(5, 8, dtype=torch.bool))
    assert not is_two_of_four(two_of_four({"w": torch.rand(5, 6)})["w"])
    assert not is_two_of_four(torch.zeros(8, dtype=torch.bool))


def test_other_shapes_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores of 'b' \(got shape \(4,\)\), expected a matrix for 2:4"):
        two_of_four({"b": torch.rand(4)})
    with pytest.raises(ValueError, match=r"scores of 'w' \(got NaN\)"):
        two_of_four({"w": torch.full((2, 4), torch.nan)})
