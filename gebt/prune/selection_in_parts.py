"""Selection over scores that are never in one place: part by part, in one process or many, and as exact as `make_mask`.

Histograms of the scores' bits, 16 at a time from the top, say which score is the last that goes; should more entries
stand there than may go, histograms of their 64-bit ranks say which of them are the last. Parts are gone through once
for each histogram (2 of float32, 4 of float64, rarely more than 1 of ranks) and once for the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gebt.prune.tie_breaking import TieBreaker

# Scores of a part [c], and the numbers of its entries: [c], or the first of a run of them.
Part = tuple[Tensor, Tensor | int]
Parts = Callable[[], Iterable[Part]]

_DIGIT = 16
_BINS = 1 << _DIGIT
_LOWEST = -1 << (_DIGIT - 1)  # of all digits at the top, which have the sign


@dataclass(frozen=True)
class Cut:
    """Where pruning ends: at a score and, among the entries of that score, at a rank.

    Attributes:
        key: the score, as an integer (`_keys_of`).
        rank: entries of that score and a larger rank stay; None when none of them does.
        tie_break: gives the ranks.
    """

    key: int
    rank: int | None
    tie_break: TieBreaker

    def keeps(self, scores: Tensor, entries: Tensor | int) -> Tensor:
        """Which entries of a part stay.

        Args:
            scores: of the part, [c].
            entries: their numbers, [c], or the first of a run of them.

        Returns:
            [c] boolean.
        """
        keys = _keys_of(scores)
        kept = keys > self.key
        if self.rank is not None:
            tied = (keys == self.key).nonzero().squeeze(1)
            kept[tied] = self.tie_break.of(_numbers(tied, entries)) > self.rank
        return kept


def find_cut(parts: Parts, prune: int, tie_break: TieBreaker, total: Callable[[Tensor], Tensor] | None = None) -> Cut:
    """The cut below which the `prune` lowest entries are.

    Args:
        parts: goes through the same parts at every call: at least one, be it empty, all float32 or all float64; no two
            entries have the same number.
        prune: how many entries go.
        tie_break: settles equal scores by the numbers of the entries.
        total: adds a tensor of counts [n] int64 up over processes, each of which then finds the same cut of all their
            parts; called equally often in each. Default: one process.

    Returns:
        The cut.

    Raises:
        ValueError: for scores of another type, a NaN, and more to prune than there are entries.

    Example:
        >>> parts = [(torch.tensor([3.0, 1.0]), 0), (torch.tensor([2.0, 4.0]), 2)]
        >>> cut = find_cut(lambda: parts, 2, TieBreaker(0))
        >>> [cut.keeps(scores, entries).tolist() for scores, entries in parts]
        [[True, False], [False, True]]
    """
    total = total or _unchanged
    kind = next(iter(parts()))[0].dtype
    if kind not in (torch.float32, torch.float64):
        raise ValueError(f"scores (got {kind}), expected torch.float32 or torch.float64")
    bits = 8 * kind.itemsize

    def keys() -> Iterator[Tensor]:
        return (_keys_of(scores) for scores, _ in parts())

    counts = total(_histogram(keys(), _LOWEST, bits - _DIGIT))
    size, nan = int(counts.sum()), int(counts[-1])
    if nan:
        raise ValueError(f"scores (got NaN for {nan} of {size} entries), expected numbers; did the training diverge?")
    if not 0 <= prune <= size:
        raise ValueError(f"entries to prune (got {prune}), expected 0 to {size}")
    if not prune:
        return Cut(-1 << (bits - 1), None, tie_break)  # lower than the key of any number
    key, prune, tied = _last(keys, counts, _LOWEST, bits - _DIGIT, prune, total)
    if prune == tied:
        return Cut(key, None, tie_break)

    def ranks() -> Iterator[Tensor]:
        for scores, entries in parts():
            yield tie_break.of(_numbers((_keys_of(scores) == key).nonzero().squeeze(1), entries))

    counts = total(_histogram(ranks(), _LOWEST, 64 - _DIGIT))
    return Cut(key, _last(ranks, counts, _LOWEST, 64 - _DIGIT, prune, total)[0], tie_break)


def _keys_of(scores: Tensor) -> Tensor:
    """Integers of the scores' width [c] that are ordered as they are, NaN last of all: int32 or int64."""
    scores = scores.detach()
    # Adding 0 makes 0 of -0, which is equal to it but not in its bits.
    bits = (scores + 0.0).view(torch.int32 if scores.dtype == torch.float32 else torch.int64)
    most = torch.iinfo(bits.dtype).max
    # Bits of numbers below 0 run the other way.
    keys = bits ^ ((bits >> (8 * scores.itemsize - 1)) & most)
    # A NaN anywhere makes the sum NaN; opposite infinities would too, and then nothing is filled in.
    return keys.masked_fill_(scores.isnan(), most) if bool(scores.sum().isnan()) else keys


def _histogram(keys: Iterable[Tensor], first: int, shift: int) -> Tensor:
    """[65536]: how many keys have the upper bits (without the lowest `shift`) `first`, `first` + 1, ..."""
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for part in keys:
        digits = (part >> shift) - first
        if shift + _DIGIT < 8 * part.itemsize:
            digits = digits[(digits >= 0) & (digits < _BINS)]
        counts += torch.bincount(digits, minlength=_BINS)
    return counts


def _last(
    keys: Callable[[], Iterable[Tensor]],
    counts: Tensor,
    first: int,
    shift: int,
    prune: int,
    total: Callable[[Tensor], Tensor],
) -> tuple[int, int, int]:
    """The key at which the `prune` (at least 1) lowest end, how many of those that have it go, and how many have it.

    `counts`: the histogram of `first` and `shift`. Where all keys of a bin go, the last it could hold stands for them.
    """
    ends = counts.cumsum(0)
    digit = int(torch.searchsorted(ends, prune))
    here = int(counts[digit])
    prune -= int(ends[digit]) - here
    if prune == here or not shift:
        return ((first + digit + 1) << shift) - 1, prune, here
    first, shift = (first + digit) << _DIGIT, shift - _DIGIT
    return _last(keys, total(_histogram(keys(), first, shift)), first, shift, prune, total)


def _numbers(places: Tensor, entries: Tensor | int) -> Tensor:
    return places + entries if isinstance(entries, int) else entries[places].long()


def _unchanged(counts: Tensor) -> Tensor:
    return counts
