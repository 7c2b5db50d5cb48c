"""The compiled passes of drawing, called from torch: see `gebt.prune.kernels`, which is loaded at the first of them.

A draw on a small graph is a fifth of a millisecond, most of it Python that the epoch has driven out of the caches:
hence arguments are kept as the arrays that kernels read, and results in arrays that Python reads without torch.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebt.prune.tie_breaking import ALL

BINS, LOWER = 1 << 16, 0xFFFF
# An entry inside the span costs a hundred others: room for one in 64 is enough, and for all of a small tensor.
ROOM_SHARE = 64
ROOM_FROM = 1 << 16
# Fewer entries than these take less than a millisecond: threads would gain little, and lose much on a busy machine.
PARALLEL_FROM = 1 << 21


@cache
def _compiled() -> Any:
    from gebt import _numba  # not at the top: the core loads torch alone

    return _numba


def usable(tensor: Tensor) -> bool:
    """Whether the passes can be compiled here and can read this tensor.

    Args:
        tensor: values, or words of a mask.

    Returns:
        False on big-endian machines too: only on others are words of 64 bits the bytes of `pack_bits`.
    """
    return tensor.is_cpu and sys.byteorder == "little" and _compiled().available()


def threads_for(entries: int) -> int:
    """How many of torch's threads share a pass.

    Args:
        entries: how many entries the pass goes over.

    Returns:
        The number of threads.
    """
    return torch.get_num_threads() if entries >= PARALLEL_FROM else 1


def differing(a: Tensor, b: Tensor) -> int:
    """Counts the bits in which two tensors of words differ.

    Args:
        a: [m] int64.
        b: [m] int64.

    Returns:
        The number of bits.
    """
    threads = threads_for(a.numel())
    counts = _numbers(*[0] * threads)
    _caller("differing", threads)(_numbers(a.numel(), a.data_ptr(), b.data_ptr(), ctypes.addressof(counts)))
    return sum(counts)


def _numbers(*numbers: int) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


@cache
def _caller(kernel: str, threads: int) -> Callable[[Any], None]:
    """A function of the kernel's arguments that runs it on so many threads: one, or all of torch's."""
    from gebt.prune import kernels

    compiled = getattr(kernels, kernel)
    return compiled.ctypes if threads == 1 else lambda numbers: _compiled().run(compiled, *numbers)


class Span(NamedTuple):
    """Scores from `low` to `high`; if these are equal, only entries with ranks from one cut to the other.

    Attributes:
        low: the lowest score, as bits of a float.
        high: the highest one.
        first_cut: the lowest rank, where `low` is `high`.
        last_cut: the highest one.
    """

    low: int
    high: int
    first_cut: int = 0
    last_cut: int = ALL


class Passes:
    """The compiled passes over values, and their buffers.

    Args:
        size: number of values.
        weight: [size] float32, multiplies the values.
        start: `TieBreaker.start`.
        threads: how many share a pass.
    """

    def __init__(self, size: int, weight: Tensor | None, start: int, threads: int) -> None:
        self.threads, self._size, words = threads, size, (size + 63) // 64
        part = 64 * math.ceil(words / threads)
        self.room = max(part // ROOM_SHARE, min(part, ROOM_FROM))
        self._weight = torch.empty(0) if weight is None else weight
        self._entries = torch.empty(threads * self.room, dtype=torch.int64)
        self._scores = torch.empty(threads * self.room)
        self._out = _numbers(*[0] * (3 * threads))
        buffers = (self._entries.data_ptr(), self._scores.data_ptr(), ctypes.addressof(self._out))
        weighted = self._weight.numel()
        self._scanned = _numbers(size, weighted, self.room, start, *Span(0, 0), 0, self._weight.data_ptr(), 0, *buffers)
        self._settled = _numbers(threads, words, self.room, start, 0, 0, *buffers)
        self._scan, self._settle = _caller("scan", threads), _caller("settle", 1)
        self._histogram = _caller("histogram", threads)
        self.words = torch.empty(words, dtype=torch.int64)

    def over(self, values: Tensor) -> Passes:
        """Sets the values and makes a new mask.

        Args:
            values: [size] float32.

        Returns:
            Itself.
        """
        self._values, self.words = values, torch.empty_like(self.words)
        self._scanned[8], self._scanned[10] = values.data_ptr(), self.words.data_ptr()
        self._settled[5] = self.words.data_ptr()
        return self

    def scan(self, span: Span) -> tuple[int, int]:
        """Keeps the entries above the span. Sets `nan` and `complete`.

        Args:
            span: the span.

        Returns:
            How many entries are above and inside.
        """
        self._scanned[4:8] = span
        ctypes.memset(self._out, 0, ctypes.sizeof(self._out))  # a region may get fewer threads than it asks for
        self._scan(self._scanned)
        inside = self._out[1::3]
        self.nan, self.complete = any(self._out[2::3]), max(inside) <= self.room
        return sum(self._out[0::3]), sum(inside)

    def settle(self, prune: int) -> int:
        """Keeps all but the lowest of the entries inside.

        Args:
            prune: how many go.

        Returns:
            The highest score pruned, as bits.
        """
        self._settled[4] = prune
        self._settle(self._settled)
        return int(self._out[0])

    def bin_of(self, k: int, upper: int) -> tuple[int, int, int]:
        """The bin of the k-th smallest score (see `kernels.histogram`).

        Args:
            k: from 1.
            upper: the upper bits of the scores counted, or -1.

        Returns:
            The bin, how many scores are in those before it, and how many in it.
        """
        counts = torch.zeros(self.threads, BINS, dtype=torch.int64)
        arrays = (self._values.data_ptr(), self._weight.data_ptr(), counts.data_ptr())
        self._histogram(_numbers(self._size, self._weight.numel(), upper, *arrays))
        there = counts.sum(0)
        ends = there.cumsum(0)
        where = int(torch.searchsorted(ends, k))
        return where, int(ends[where] - there[where]), int(there[where])
