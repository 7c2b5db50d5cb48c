"""Schedules: which share is pruned at which level or step. Ratios are of all entries, in [0, 1)."""

from __future__ import annotations

import math
from decimal import Decimal

from gebt.prune.selection import pruned_count


def geometric(ratio: float, levels: int) -> list[float]:
    """Ratios 1 - (1 - ratio)^(l / levels), l = 1..levels: every level prunes the same share of what the last one kept.

    Args:
        ratio: where the schedule ends, exactly.
        levels: how many; 1 is one shot.

    Returns:
        The ratio of every level, rising.

    Raises:
        ValueError: for a ratio outside [0, 1) or fewer than 1 level.

    Source:
        Frankle & Carbin 2019, with its rate chosen by the end.

    Example:
        >>> geometric(0.75, 2)
        [0.5, 0.75]
    """
    pruned_count(1, ratio)
    if levels < 1:
        raise ValueError(f"levels (got {levels}), expected at least 1")
    return [1 - (1 - ratio) ** (level / levels) for level in range(1, levels)] + [ratio]


def linear(ratio: float, levels: int) -> list[float]:
    """Ratios ratio l / levels, l = 1..levels: every level prunes the same share of all entries.

    0.9 in 9 levels is 0.1, 0.2, ..., 0.9: level l prunes 1 / (11 - l) of what the last one kept, as in BERT-Tickets'
    code.

    Args:
        ratio: where the schedule ends.
        levels: how many.

    Returns:
        The ratio of every level, rising.

    Raises:
        ValueError: as `geometric`.

    Example:
        >>> linear(0.9, 3)
        [0.3, 0.6, 0.9]
    """
    geometric(ratio, levels)
    # In decimals, since 3 * 0.1 is 0.30000000000000004.
    return [float(Decimal(str(float(ratio))) * level / levels) for level in range(1, levels + 1)]


def at_rate(rate: float, levels: int) -> list[float]:
    """Ratios 1 - (1 - rate)^l, l = 1..levels: every level prunes the share `rate` of what the last one kept.

    Args:
        rate: share pruned per level.
        levels: how many.

    Returns:
        The ratio of every level, rising.

    Raises:
        ValueError: for a rate outside (0, 1) or fewer than 1 level.

    Example:
        >>> at_rate(0.1, 3)
        [0.1, 0.19, 0.271]
    """
    if not 0 < rate < 1 or levels < 1:
        raise ValueError(f"rate, levels (got {rate}, {levels}), expected 0 < rate < 1 and at least 1 level")
    return [float(1 - (1 - Decimal(str(float(rate)))) ** level) for level in range(1, levels + 1)]


def levels_at(rate: float, ratio: float) -> int:
    """How many levels that each prune `rate` of what the last one kept come nearest to `ratio`.

    Args:
        rate: share pruned per level.
        ratio: share to be pruned in the end.

    Returns:
        The number of levels, at least 1.

    Raises:
        ValueError: for a rate outside (0, 1) or a ratio outside [0, 1).

    Example:
        >>> levels_at(0.2, 0.9)
        10
    """
    pruned_count(1, ratio)
    if not 0 < rate < 1:
        raise ValueError(f"rate (got {rate}), expected 0 < rate < 1")
    return max(1, round(math.log(1 - ratio) / math.log(1 - rate)))


def cubic(step: int, *, ratio: float, begin: int, end: int, initial: float = 0.0) -> float:
    """ratio + (initial - ratio) (1 - (step - begin) / (end - begin))^3 between the two steps, constant outside.

    Fast at first, when much can go, slow at the end.

    Args:
        step: the step asked for.
        ratio: from step `end` on.
        begin: the step at which pruning begins.
        end: the step at which it ends, after `begin`.
        initial: ratio up to step `begin`.

    Returns:
        The ratio at `step`.

    Raises:
        ValueError: for ratios outside [0, 1) or steps that are not in order.

    Source:
        Zhu & Gupta 2017, eq. 1.

    Example:
        >>> [round(cubic(step, ratio=0.8, begin=0, end=10), 3) for step in (0, 5, 10, 20)]
        [0.0, 0.7, 0.8, 0.8]
    """
    for share in (ratio, initial):
        pruned_count(1, share)
    if not 0 <= begin < end:
        raise ValueError(f"begin, end (got {(begin, end)}), expected 0 <= begin < end")
    done = min(max((step - begin) / (end - begin), 0.0), 1.0)
    remaining = (1 - done) ** 3
    return remaining * initial + (1 - remaining) * ratio


def cyclic(step: int, *, ratio: float, period: int, cycles: int, lowest: float = 0.0) -> float:
    """`cubic` from `lowest` to `ratio` again and again, `cycles` times in `period` steps each, then constant.

    At the start of a cycle pruned weights may grow back, so that an early mistake can be mended.

    Args:
        step: the step asked for, from 0.
        ratio: at the end of every cycle.
        period: steps of a cycle.
        cycles: how many, at least 1.
        lowest: ratio at the start of every cycle.

    Returns:
        The ratio at `step`.

    Raises:
        ValueError: as `cubic`, and for fewer than 1 cycle.

    Source:
        Srinivas et al. 2022.

    Example:
        >>> [round(cyclic(step, ratio=0.8, period=2, cycles=2), 3) for step in range(5)]
        [0.0, 0.7, 0.0, 0.7, 0.8]
    """
    if cycles < 1:
        raise ValueError(f"cycles (got {cycles}), expected at least 1")
    if step >= period * cycles:
        return ratio
    return cubic(step % period, ratio=ratio, begin=0, end=period, initial=lowest)
