from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gebt.prune import make_mask
from gebt.prune.selection import pruned_count
from gebt.prune.selection_in_parts import Part, Parts, _keys_of, find_cut
from gebt.prune.tie_breaking import TieBreaker

FEW = [0.0, -0.0, 1.0, -1.0, 0.5, math.inf, -math.inf, 1e-45, 5e-324, -1e-40, 1.0000001, 1.0 + 2**-40]
RATIOS = [0.0, 0.1, 0.29, 0.5, 0.75, 0.999]
KINDS = st.sampled_from([torch.float32, torch.float64])


def keep_highest_in_parts(parts: Parts, prune: int, order: TieBreaker, total: Any = None) -> Iterator[Tensor]:
    """Which entries stay when the `prune` lowest of all parts go, part by part."""
    cut = find_cut(parts, prune, order, total)
    return (cut.keeps(scores, entries) for scores, entries in parts())


def in_runs(scores: Tensor, sizes: list[int]) -> Parts:
    """Parts of these sizes, then the rest, each numbered by its first entry."""
    ends = [0, *torch.tensor([0, *sizes]).cumsum(0).clamp(max=scores.numel()).tolist(), scores.numel()]
    spans = list(pairwise(ends))
    return lambda: [(scores[begin:end], begin) for begin, end in spans]


def kept_by_select(scores: Tensor, ratio: float, order: TieBreaker) -> Tensor:
    return make_mask({"s": scores}, ratio=ratio, tie_break=order, allow_empty=True)["s"]


numbers = st.one_of(st.sampled_from(FEW), st.floats(allow_nan=False, width=32))


@given(
    values=st.lists(numbers, min_size=1, max_size=60),
    kind=KINDS,
    sizes=st.lists(st.integers(0, 20), max_size=6),
    ratio=st.sampled_from(RATIOS),
    seed=st.integers(-5, 50),
)
def test_parts_keep_what_select_keeps(
    values: list[float], kind: torch.dtype, sizes: list[int], ratio: float, seed: int
) -> None:
    scores, order = torch.tensor(values, dtype=kind), TieBreaker(seed)
    prune = pruned_count(len(values), ratio)
    kept = torch.cat(list(keep_highest_in_parts(in_runs(scores, sizes), prune, order)))
    assert torch.equal(kept, kept_by_select(scores, ratio, order))


@given(
    values=st.lists(st.sampled_from(FEW), min_size=1, max_size=60),
    kind=KINDS,
    shards=st.integers(1, 4),
    ratio=st.sampled_from(RATIOS),
    seed=st.integers(0, 50),
)
def test_entries_may_lie_in_any_part_and_order_if_they_know_their_numbers(
    values: list[float], kind: torch.dtype, shards: int, ratio: float, seed: int
) -> None:
    scores, order = torch.tensor(values, dtype=kind), TieBreaker(seed)
    generator = torch.Generator().manual_seed(seed)
    owner = torch.randint(shards, (len(values),), generator=generator)
    shuffled = torch.randperm(len(values), generator=generator)
    numbers = [shuffled[owner[shuffled] == shard] for shard in range(shards)]

    def parts() -> list[Part]:
        return [(scores[part], part.int()) for part in numbers]

    kept = torch.zeros(len(values), dtype=torch.bool)
    prune = pruned_count(len(values), ratio)
    for part, stays in zip(numbers, keep_highest_in_parts(parts, prune, order), strict=True):
        kept[part] = stays
    assert torch.equal(kept, kept_by_select(scores, ratio, order))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [1, 3, 1000, None])
@pytest.mark.parametrize("ratio", [0.0001, 0.3, 0.9999])
def test_many_scores_with_many_ties(kind: torch.dtype, levels: int | None, ratio: float) -> None:
    generator, order = torch.Generator().manual_seed(0), TieBreaker(7)
    scores = torch.randn(200_000, dtype=kind, generator=generator)
    if levels:
        scores = (scores * levels / 8).round()
    kept = keep_highest_in_parts(in_runs(scores, [70_001, 0, 99_999]), pruned_count(200_000, ratio), order)
    assert torch.equal(torch.cat(list(kept)), kept_by_select(scores, ratio, order))


class ByNumber(TieBreaker):
    """Ranks that differ in their last bits alone, which those of a seed hardly ever do."""

    def of(self, entries: Tensor) -> Tensor:
        return entries * 3 % 64 - 32


@given(values=st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=64), ratio=st.sampled_from(RATIOS))
def test_ranks_that_are_close_are_distinguished(values: list[float], ratio: float) -> None:
    scores, order = torch.tensor(values), ByNumber(0)
    kept = torch.cat(list(keep_highest_in_parts(in_runs(scores, [7]), pruned_count(len(values), ratio), order)))
    assert torch.equal(kept, kept_by_select(scores, ratio, order))


@given(values=st.lists(numbers, min_size=2, max_size=40), kind=KINDS)
def test_keys_are_ordered_as_the_scores(values: list[float], kind: torch.dtype) -> None:
    scores = torch.tensor(values, dtype=kind)
    keys = _keys_of(scores)
    assert torch.equal(keys.unsqueeze(0) < keys.unsqueeze(1), scores.unsqueeze(0) < scores.unsqueeze(1))


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_processes_that_add_up_their_histograms_find_the_same_cut(ratio: float) -> None:
    scores, order = torch.tensor([2.0, 1.0, 1.0, 0.0, -0.0, 1.0, 3.0, 1.0]), TieBreaker(3)
    halves = [scores[:2], scores[2:]]
    passes: list[Tensor] = []
    find_cut(lambda: [(scores, 0)], pruned_count(8, ratio), order, total=lambda counts: passes.append(counts) or counts)

    def of_both(counts: Tensor) -> Tensor:
        of_all = passes[len(seen)]
        seen.append(counts)
        return of_all

    both = []
    for first, half in zip((0, 2), halves, strict=True):
        seen: list[Tensor] = []
        parts = in_runs(half, [1]) if first == 0 else lambda: [(scores[2:], 2)]
        both.append((list(keep_highest_in_parts(parts, pruned_count(8, ratio), order, of_both)), seen))
    assert all(torch.equal(a + b, c) for a, b, c in zip(both[0][1], both[1][1], passes, strict=True))
    assert torch.equal(torch.cat(both[0][0] + both[1][0]), kept_by_select(scores, ratio, order))


def test_few_passes_are_needed() -> None:
    passes = 0

    def parts() -> list[Part]:
        nonlocal passes
        passes += 1
        return [(torch.arange(100_000.0), 0)]

    find_cut(parts, 50_000, TieBreaker(0))
    assert passes == 1 + 2  # a look at the type, and both halves of a float


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("prune", [0, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_is_refused(kind: torch.dtype, prune: int, sign: int) -> None:
    nan = torch.copysign(torch.tensor(math.nan, dtype=kind), torch.tensor(sign))
    scores = torch.stack([nan, *torch.tensor([math.inf, -math.inf, 1.0], dtype=kind)])
    with pytest.raises(ValueError, match=r"scores \(got NaN for 1 of 4 entries\), expected numbers; did the training"):
        find_cut(in_runs(scores, [2]), prune, TieBreaker(0))


def test_other_types_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores \(got torch.float16\), expected torch.float32 or torch.float64"):
        find_cut(in_runs(torch.zeros(3).half(), []), 1, TieBreaker(0))
    for prune in (-1, 4):
        with pytest.raises(ValueError, match=rf"entries to prune \(got {prune}\), expected 0 to 3"):
            find_cut(in_runs(torch.zeros(3), []), prune, TieBreaker(0))


def test_all_may_go_and_there_may_be_none() -> None:
    assert not torch.cat(list(keep_highest_in_parts(in_runs(torch.ones(3), [1]), 3, TieBreaker(0)))).any()
    assert [kept.numel() for kept in keep_highest_in_parts(lambda: [(torch.ones(0), 0)], 0, TieBreaker(0))] == [0]
