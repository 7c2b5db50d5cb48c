"""Schedules: exact ends, the same share at every level, monotone rises, restarts where cycles begin."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from gebt.prune.schedule import at_rate, cubic, cyclic, geometric, levels_at, linear


def test_geometric_levels_remove_equal_shares_of_what_is_left() -> None:
    ratios = geometric(0.9, 4)
    assert ratios[-1] == 0.9
    kept = [1.0, *(1 - ratio for ratio in ratios)]
    assert [after / before for before, after in pairwise(kept)] == pytest.approx([0.1**0.25] * 4)
    assert geometric(0.3, 1) == [0.3]
    assert geometric(0.0, 2) == [0.0, 0.0]


def test_even_levels_remove_equal_shares_of_all() -> None:
    ratios = linear(0.9, 9)
    assert ratios == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    kept = [1.0, *(1 - ratio for ratio in ratios)]
    assert [1 - after / before for before, after in pairwise(kept)] == pytest.approx(
        [1 / parts for parts in range(10, 1, -1)]
    )
    assert linear(0.3, 1) == [0.3]
    with pytest.raises(ValueError, match=r"levels \(got 0\)"):
        linear(0.5, 0)


def test_levels_at_a_rate_remove_it_of_what_is_left() -> None:
    assert at_rate(0.1, 3) == [0.1, 0.19, 0.271]
    with pytest.raises(ValueError, match=r"rate, levels \(got 1, 3\), expected 0 < rate < 1"):
        at_rate(1, 3)
    with pytest.raises(ValueError, match=r"rate, levels \(got 0\.1, 0\)"):
        at_rate(0.1, 0)


@pytest.mark.parametrize(("rate", "ratio", "levels"), [(0.2, 0.9, 10), (0.2, 0.2, 1), (0.2, 0.0, 1), (0.05, 0.6, 18)])
def test_levels_come_nearest_to_a_rate(rate: float, ratio: float, levels: int) -> None:
    assert levels_at(rate, ratio) == levels


def test_cubic_is_the_formula_between_and_constant_outside() -> None:
    options: dict[str, Any] = {"ratio": 0.8, "begin": 10, "end": 20, "initial": 0.2}
    assert [cubic(step, **options) for step in (0, 10)] == [0.2, 0.2]
    assert [cubic(step, **options) for step in (20, 99)] == [0.8, 0.8]
    assert cubic(15, **options) == pytest.approx(0.8 - 0.6 / 8)
    values = [cubic(step, **options) for step in range(10, 21)]
    rises = [after - before for before, after in pairwise(values)]
    assert all(first > second > 0 for first, second in pairwise(rises))


def test_cycles_start_low_and_the_last_one_stays() -> None:
    options: dict[str, Any] = {"ratio": 0.6, "period": 10, "cycles": 3, "lowest": 0.1}
    values = [cyclic(step, **options) for step in range(40)]
    assert [values[step] for step in (0, 10, 20)] == [0.1] * 3
    assert values[30:] == [0.6] * 10
    assert values[:10] == values[10:20] == values[20:30]
    assert max(values) == 0.6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometric(1.0, 2), r"prune ratio \(got 1.0\)"),
        (lambda: geometric(0.5, 0), r"levels \(got 0\), expected at least 1"),
        (lambda: levels_at(1.0, 0.5), r"rate \(got 1.0\), expected 0 < rate < 1"),
        (lambda: cubic(0, ratio=0.5, begin=5, end=5), r"begin, end \(got \(5, 5\)\)"),
        (lambda: cyclic(0, ratio=0.5, period=5, cycles=0), r"cycles \(got 0\)"),
    ],
)
def test_schedules_that_cannot_be_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
