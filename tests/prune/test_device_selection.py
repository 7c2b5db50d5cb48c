"""What selection does on a device, done here with CPU tensors that say they are elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gebt.prune import EarlyBird, Mask, make_mask, mask_distance
from gebt.prune.drawing import Drawing
from gebt.prune.mask import joined, read_at_once
from gebt.prune.selection import keep_highest, make_unread_mask, pruned_count
from gebt.prune.tie_breaking import TieBreaker

ORDER = TieBreaker(7)
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-39, 3e38, math.inf, -math.inf]) | st.floats(
    width=16, allow_nan=False
)
TENSORS = st.lists(st.lists(NUMBERS, max_size=12), min_size=1, max_size=3).filter(any)
RATIOS = st.sampled_from([0.5, 0.3, 0.1, 0.75, 0.999, 0.0])
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.bincount.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
}


class Elsewhere(torch.Tensor):
    """A tensor that says it is not on the CPU, and counts how often it is read."""

    reads = 0
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        Elsewhere.reads += func is torch.Tensor.tolist
        return super().__torch_function__(func, types, args, kwargs)


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for a device, other than `tolist`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_flags = "index" in func.__name__ and len(args) > 1 and isinstance(args[1], list | tuple)
        if func in WAITING or (by_flags and any(i is not None and i.dtype == torch.bool for i in args[1])):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def reading(times: int) -> Iterator[None]:
    before = Elsewhere.reads
    with NoWaiting():
        yield
    assert Elsewhere.reads - before == times


def elsewhere(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.as_subclass(Elsewhere) for name, tensor in tensors.items()}


def plain(mask: Mask) -> dict[str, list[bool]]:
    return {name: kept.as_subclass(Tensor).tolist() for name, kept in mask.items()}


def named(rows: list[list[float]], dtype: torch.dtype) -> dict[str, Tensor]:
    return {f"w{i}": torch.tensor(row, dtype=torch.float64).to(dtype) for i, row in enumerate(rows)}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scope", ["global", "layer", "channel"])
@given(
    rows=TENSORS,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    ratio=RATIOS,
    min_keep=st.sampled_from([0.0, 0.001]),
)
def test_masks_are_those_of_the_cpu(
    rows: list[list[float]], dtype: torch.dtype, ratio: float, scope: Any, min_keep: float
) -> None:
    scores = named(rows, dtype)
    options: dict[str, Any] = {"ratio": ratio, "scope": scope, "min_keep": min_keep, "tie_break": ORDER}
    free = sum(len(row) - math.ceil(min_keep * len(row)) for row in rows)
    assume(scope == "layer" or pruned_count(sum(map(len, rows)), ratio) <= free)
    expected = make_mask(scores, **options, allow_empty=True)
    with reading(0):
        mask = make_unread_mask(elsewhere(scores), **options)
    assert plain(mask) == plain(expected)
    counts, kept = expected.counts, expected.kept
    with reading(1):
        assert (mask.counts, mask.kept) == (counts, kept)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("weighted", [False, True])
@given(rows=TENSORS, ratio=RATIOS)
def test_draws_are_those_of_the_cpu(rows: list[list[float]], ratio: float, scope: Any, weighted: bool) -> None:
    values, size = (
        {"tied": torch.ones(5), **named(rows, torch.float32), "too": torch.zeros(6)},
        11 + sum(map(len, rows)),
    )
    weight = torch.rand(size, generator=seeded()) + 0.1 if weighted else None
    there, here = (Drawing(values, ratio=ratio, scope=scope, tie_break=ORDER, weight=weight) for _ in range(2))
    for _ in range(3):
        with reading(0):
            mask = there.draw(elsewhere(values))
        assert plain(mask) == plain(here.draw(values))
        values = {name: tensor.flip(0) for name, tensor in values.items()}


@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_large_tensors_are_selected_from_as_on_the_cpu(levels: int) -> None:
    scores = {
        "w": torch.randint(levels, (70, 300), generator=seeded()).float(),
        "v": torch.zeros(0),
        "u": torch.ones(9),
    }
    for kind in (torch.float32, torch.int64):
        typed = {name: score.to(kind) for name, score in scores.items()}
        for min_keep in (0.0, 0.1) if kind.is_floating_point else (0.0,):
            options: dict[str, Any] = {"ratio": 0.3, "min_keep": min_keep, "allow_empty": True}
            assert plain(make_mask(elsewhere(typed), **options)) == plain(make_mask(typed, **options))


def test_channels_are_selected_as_on_the_cpu() -> None:
    scores = {"w": torch.randint(3, (70, 2, 5), generator=seeded()).float(), "v": torch.rand(20, generator=seeded())}
    options: dict[str, Any] = {"ratio": 0.6, "scope": "channel", "min_keep": 0.1}
    assert plain(make_mask(elsewhere(scores), **options)) == plain(make_mask(scores, **options))


def test_ties_are_settled_by_ranks_and_by_a_generator_as_on_the_cpu() -> None:
    scores = {"a": torch.ones(40), "b": torch.ones(3, 5)}
    ranks = torch.randperm(55, generator=seeded(3))
    for options in ({"tie_break": ranks}, {"tie_break": None}):
        assert plain(make_mask(elsewhere(scores), ratio=0.4, **options)) == plain(
            make_mask(scores, ratio=0.4, **options)
        )
    drawn = [plain(make_mask(make(scores), ratio=0.4, generator=seeded(5))) for make in (elsewhere, dict)]
    assert drawn[0] == drawn[1]


def test_the_threshold_is_the_highest_score_that_goes() -> None:
    score = torch.tensor([3.0, 1.0, 2.0, 2.0])
    kept, threshold = keep_highest(score.as_subclass(Elsewhere), 2, lambda entries: -entries)
    assert (kept.tolist(), threshold.item()) == ([True, False, True, False], 2.0)


@pytest.mark.parametrize("read", [lambda mask: mask.kept, lambda mask: mask_distance(mask, mask), repr])
@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_a_nan_is_refused_by_name_when_a_draw_is_read(read: Callable[[Mask], object], ratio: float) -> None:
    bad = elsewhere({"a": torch.rand(4), "b": torch.tensor([1.0, math.nan])})
    mask = Drawing(bad, ratio=ratio).draw(bad)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"scores of 'b' \(got NaN\), expected numbers"):
            read(mask)
    with pytest.raises(ValueError, match=r"scores of 'b' \(got NaN\), expected numbers"):
        make_mask(bad, ratio=ratio, allow_empty=True)


def test_infinities_of_both_signs_are_numbers() -> None:
    scores = {"w": torch.tensor([math.inf, 1.0, -math.inf, 0.0])}
    with reading(1):
        mask = make_mask(elsewhere(scores), ratio=0.5)
    assert plain(mask) == {"w": [True, True, False, False]}


def test_an_emptied_tensor_is_refused_after_one_read() -> None:
    scores = {"a": torch.ones(3), "b": 2 * torch.ones(5)}
    with reading(1), pytest.raises(ValueError, match=r"would remove all 3 entries of 'a'"):
        make_mask(elsewhere(scores), ratio=0.5)


@pytest.mark.parametrize("normalization", ["hamming", "exchanged", "relative_to_first"])
@pytest.mark.parametrize("compare", ["previous", "window"])
def test_a_detector_reads_once_a_draw_and_says_what_it_says_on_the_cpu(normalization: Any, compare: Any) -> None:
    options: dict[str, Any] = {"threshold": 0.3, "window": 2, "normalization": normalization, "compare": compare}
    there, here = EarlyBird(**options), EarlyBird(**options)
    for step in range(12):
        weights = {"a": torch.rand(30, generator=seeded(step // 4)), "b": torch.rand(4, 5, generator=seeded(step // 3))}
        edges = {"edges": torch.rand(50, generator=seeded(step // 5))}
        drawn = [make_mask(scores, ratio=0.7, scope="layer", allow_empty=True) for scores in (weights, edges)]
        with reading(1):
            masks = [make_unread_mask(elsewhere(scores), ratio=0.7, scope="layer") for scores in (weights, edges)]
            fired = there.update(*masks)
        assert fired == here.update(*drawn)
    assert there.trajectory == here.trajectory
    assert there.fired
    assert [mask.kept for mask in masks] == [mask.kept for mask in drawn]


def test_a_detector_that_refuses_a_nan_stays_as_it_was() -> None:
    good, bird = make_mask({"w": torch.rand(4)}, ratio=0.5), EarlyBird()
    bird.update(good)
    before = bird.state_dict()
    bad = Drawing({"w": torch.rand(4)}, ratio=0.5).draw(elsewhere({"w": torch.full((4,), math.nan)}))
    with pytest.raises(ValueError, match=r"scores of 'w' \(got NaN\)"):
        bird.update(bad)
    assert str(bird.state_dict()) == str(before)


def test_masks_are_read_together_with_other_numbers() -> None:
    masks = [
        make_unread_mask(elsewhere({name: torch.rand(10)}), ratio=ratio) for name, ratio in (("a", 0.3), ("b", 0.8))
    ]
    both = joined(masks)
    with reading(1):
        assert read_at_once([*masks, both], [torch.tensor(5).as_subclass(Elsewhere)]) == [5]
        assert [mask.kept for mask in masks] == [7, 2]
        assert both.counts == {"a": 7, "b": 2}
    with reading(0):
        assert read_at_once([*masks, both]) == []


def test_joined_masks_remember_a_nan() -> None:
    scores = ({"a": torch.rand(2)}, {"b": torch.tensor([math.nan, 1.0])})
    both = joined([make_unread_mask(elsewhere(named), ratio=0.5) for named in scores])
    with pytest.raises(ValueError, match=r"scores of 'b' \(got NaN\)"):
        both.counts  # noqa: B018


def test_what_waits_is_noticed_here() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        make_mask({"w": torch.ones(4)}, ratio=0.5)
