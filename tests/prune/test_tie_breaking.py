from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gebt.prune.tie_breaking import TieBreaker, ranks

SEEDS = st.integers(0, 2**63)


def by_definition(seed: int, entry: int) -> int:
    """SplitMix64 in Python's own integers."""

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    return mixed((mixed((seed + golden) % 2**64) + entry * golden) % 2**64)


@given(seed=SEEDS, entries=st.lists(st.integers(0, 2**40), min_size=2, max_size=9))
def test_ranks_are_ordered_as_the_unsigned_numbers_of_the_definition(seed: int, entries: list[int]) -> None:
    ranked = TieBreaker(seed).of(torch.tensor(entries))
    assert [int(rank) + 2**63 for rank in ranked] == [by_definition(seed, entry) for entry in entries]


def test_no_two_entries_share_a_rank_and_seeds_differ() -> None:
    entries = torch.arange(100_000)
    first, second = TieBreaker(0).of(entries), TieBreaker(1).of(entries)
    assert first.unique().numel() == entries.numel()
    assert torch.isin(first, second).sum() == 0  # not even a shifted sequence


def test_the_order_of_neighbors_is_a_fair_coin() -> None:
    rank = TieBreaker(5).of(torch.arange(40_000))
    for distance in (1, 2, 64, 4096):
        rises = (rank[distance:] > rank[:-distance]).float().mean()
        assert abs(float(rises) - 0.5) < 4.5 * 0.5 / math.sqrt(rank.numel() - distance)


def test_an_order_drawn_is_that_of_its_generator_and_shapes_are_kept() -> None:
    entries = torch.arange(12).view(3, 4)
    one, same, other = (TieBreaker.from_generator(torch.Generator().manual_seed(s)).of(entries) for s in (1, 1, 2))
    assert one.shape == (3, 4)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("order", [TieBreaker(3), TieBreaker(3).of(torch.arange(9))], ids=["computed", "given"])
def test_ranks_are_of_the_entries_asked_for(order: TieBreaker | torch.Tensor) -> None:
    assert torch.equal(ranks(order, torch.tensor([8, 2])), TieBreaker(3).of(torch.tensor([8, 2])))
