"""Schedules: which share is pruned at which level or step. Ratios are of all entries, in [0, 1)."""

from __future__ import annotations

import math
from decimal import Decimal

from gebt.prune.selection import pruned_count


def geometric(ratio: float, levels: int) -> list[float]:
    """Ratios 1 - (1 - ratio)^(l / levels), l = 1..levels: every level removes the same share of what is left.

    Ends at `ratio` exactly; one level is one shot. Frankle & Carbin 2019 with its rate chosen by the end.
    Raises `ValueError` for a ratio outside [0, 1) or fewer than 1 level.
    """
    pruned_count(1, ratio)
    if levels < 1:
        raise ValueError(f"levels (got {levels}), expected at least 1")
    return [1 - (1 - ratio) ** (level / levels) for level in range(1, levels)] + [ratio]


def linear(ratio: float, levels: int) -> list[float]:
    """Ratios ratio l / levels, l = 1..levels: every level removes the same share of all entries.

    0.9 in 9 levels is 0.1, 0.2, ..., 0.9: 1 / (11 - l) of what is left at level l, as BERT-Tickets' code has it.
    Raises as `geometric`.
    """
    geometric(ratio, levels)
    # In decimals, since 3 * 0.1 is 0.30000000000000004.
    return [float(Decimal(str(float(ratio))) * level / levels) for level in range(1, levels + 1)]


def at_rate(rate: float, levels: int) -> list[float]:
    """Ratios 1 - (1 - rate)^l, l = 1..levels: every level removes the share `rate` of what is left.

    Raises `ValueError` for a rate outside (0, 1) or fewer than 1 level.
    """
    if not 0 < rate < 1 or levels < 1:
        raise ValueError(f"rate, levels (got {rate}, {levels}), expected 0 < rate < 1 and at least 1 level")
    return [float(1 - (1 - Decimal(str(float(rate)))) ** level) for level in range(1, levels + 1)]


def levels_at(rate: float, ratio: float) -> int:
    """How many levels that each remove `rate` of what is left come nearest to `ratio`; at least 1.

    Raises `ValueError` for a rate outside (0, 1) or a ratio outside [0, 1).
    """
    pruned_count(1, ratio)
    if not 0 < rate < 1:
        raise ValueError(f"rate (got {rate}), expected 0 < rate < 1")
    return max(1, round(math.log(1 - ratio) / math.log(1 - rate)))


def cubic(step: int, *, ratio: float, begin: int, end: int, initial: float = 0.0) -> float:
    """ratio + (initial - ratio) (1 - (step - begin) / (end - begin))^3 between the two steps, constant outside.

    Fast at first, when much can go, slow at the end. Zhu & Gupta 2017, eq. 1.
    Raises `ValueError` for ratios outside [0, 1) or steps that are not in order.
    """
    for share in (ratio, initial):
        pruned_count(1, share)
    if not 0 <= begin < end:
        raise ValueError(f"begin, end (got {(begin, end)}), expected 0 <= begin < end")
    done = min(max((step - begin) / (end - begin), 0.0), 1.0)
    left = (1 - done) ** 3
    return left * initial + (1 - left) * ratio


def cyclic(step: int, *, ratio: float, period: int, cycles: int, lowest: float = 0.0) -> float:
    """`cubic` from `lowest` to `ratio` again and again, `cycles` times in `period` steps each, then constant.

    At the start of a cycle pruned weights may grow back, so that an early mistake can be mended. Srinivas et al. 2022.
    Raises `ValueError` as `cubic`, and for fewer than 1 cycle.
    """
    if cycles < 1:
        raise ValueError(f"cycles (got {cycles}), expected at least 1")
    if step >= period * cycles:
        return ratio
    return cubic(step % period, ratio=ratio, begin=0, end=period, initial=lowest)
