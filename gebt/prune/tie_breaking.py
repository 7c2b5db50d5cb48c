"""Tie-breaking: a random, seeded order of entries, computed only for those whose score is at the threshold."""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SIGN, ALL = 1 << 63, (1 << 64) - 1


class TieBreaker:
    """r(i) = mix(start + i * golden), a number of 64 bits for entry i: the larger one is kept among equal scores.

    mix is the finalizer of SplitMix64 (Steele et al. 2014), `start` the mixed seed. Everything is a bijection of the
    64-bit integers, so no two entries share a rank, and nothing is stored: an order of any length costs nothing.
    One order serves every draw of a search, so that ties do not look like changes to a detector.

    Args:
        seed: of the order.

    Attributes:
        start: the mixed seed.

    Example:
        >>> TieBreaker(0).of(torch.arange(4)).argsort().tolist()
        [0, 3, 1, 2]
    """

    def __init__(self, seed: int) -> None:
        self.start = _mixed((seed + GOLDEN) & ALL)

    @staticmethod
    def from_generator(generator: torch.Generator) -> TieBreaker:
        """An order of a random seed.

        Args:
            generator: draws the seed.

        Returns:
            The order.
        """
        return TieBreaker(int(torch.randint(2**62, (), generator=generator, device=generator.device)))

    def of(self, entries: Tensor) -> Tensor:
        """Ranks of entries.

        Args:
            entries: their numbers, int64.

        Returns:
            int64, of the broadcast shape.
        """
        # Ranks are unsigned numbers: with their highest bit turned over, signed ones are ordered alike.
        return splitmix64(entries, _signed(self.start)) ^ _signed(_SIGN)


TieBreak = Tensor | TieBreaker


def splitmix64(numbers: Tensor, start: int | Tensor) -> Tensor:
    """64 random bits for each number: mix(start + number * golden), the same on every device.

    Args:
        numbers: int64.
        start: the start of the sequence, as a signed 64-bit integer, or of many, broadcast with `numbers`.

    Returns:
        int64, of the same shape.

    Source:
        Steele et al. 2014.
    """
    bits = numbers * _signed(GOLDEN) + start
    bits = _folded(bits, 30) * _signed(FIRST)
    bits = _folded(bits, 27) * _signed(SECOND)
    return _folded(bits, 31)


def ranks(tie_break: TieBreak, entries: Tensor) -> Tensor:
    """Ranks of entries in an order of either kind.

    Args:
        tie_break: a `TieBreaker`, or the ranks [n] of all entries.
        entries: numbers of entries, int64.

    Returns:
        Ranks of the shape and on the device of `entries`.

    Example:
        >>> ranks(torch.tensor([5, 7, 6]), torch.tensor([2, 0])).tolist()
        [6, 5]
    """
    return tie_break.of(entries) if isinstance(tie_break, TieBreaker) else tie_break.to(entries.device)[entries]


def _folded(numbers: Tensor, by: int) -> Tensor:
    return numbers ^ ((numbers >> by) & (ALL >> by))  # the shift copies the sign, the mask takes it away


def _mixed(number: int) -> int:
    number = (number ^ (number >> 30)) * FIRST & ALL
    number = (number ^ (number >> 27)) * SECOND & ALL
    return number ^ (number >> 31)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= _SIGN else number
