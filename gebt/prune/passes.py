"""The compiled passes of drawing, called from torch: see `gebt.prune.kernels`, which is loaded at the first of them."""

from __future__ import annotations

import ctypes
import math
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gebt.prune.ties import ALL

BINS, LOWER = 1 << 16, 0xFFFF
# An entry inside the span costs a hundred others: room for one in 64 is enough, and for all of a small tensor.
ROOM_SHARE = 64
ROOM_FROM = 1 << 16
# Fewer entries than these take less than a millisecond: threads would gain little, and lose much on a busy machine.
PARALLEL_FROM = 1 << 21


def usable(tensor: Tensor) -> bool:
    """True when the passes can be compiled here and can read this tensor.

    Words of 64 bits are the bytes of `pack_bits` on little-endian machines alone.
    """
    from gebt import compiled  # not at the top: the core loads torch alone

    return tensor.device.type == "cpu" and sys.byteorder == "little" and compiled.available()


def threads_for(entries: int) -> int:
    """How many of torch's threads share a pass over so many entries."""
    return torch.get_num_threads() if entries >= PARALLEL_FROM else 1


def differing(a: Tensor, b: Tensor) -> int:
    """Bits in which two tensors of words [m] differ."""
    from gebt.prune import kernels

    threads = threads_for(64 * a.numel())
    counts = torch.zeros(threads, dtype=torch.int64)
    _run(kernels.differing, threads, a.numel(), a, b, counts)
    return int(counts.sum())


def _run(kernel: Any, threads: int, *arguments: int | Tensor) -> None:
    from gebt import compiled

    if threads > 1:
        compiled.run(kernel, *arguments)
    else:
        numbers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        kernel.ctypes((ctypes.c_int64 * len(numbers))(*numbers))


class Span(NamedTuple):
    """Scores from `low` to `high`, as bits of floats; if these are equal, only ranks from one cut to the other."""

    low: int
    high: int
    first_cut: int = 0
    last_cut: int = ALL


class Passes:
    """The compiled passes over values, and their buffers."""

    def __init__(self, size: int, weight: Tensor | None, start: int, threads: int) -> None:
        from gebt.prune import kernels

        self._kernels, self.threads = kernels, threads
        self._size, self._start, self._words = size, start, (size + 63) // 64
        self._weight = torch.empty(0) if weight is None else weight
        part = 64 * math.ceil(self._words / threads)
        self.room = max(part // ROOM_SHARE, min(part, ROOM_FROM))
        self._entries = torch.empty(threads * self.room, dtype=torch.int64)
        self._scores = torch.empty(threads * self.room)
        self._out = torch.empty(threads, 3, dtype=torch.int64)

    def over(self, values: Tensor) -> Passes:
        """Itself, for these values and a new mask."""
        self._values, self.words = values, torch.empty(self._words, dtype=torch.int64)
        return self

    def scan(self, span: Span) -> tuple[int, int]:
        """Keeps the entries above the span; returns how many are above and inside. Sets `nan` and `complete`."""
        numbers = (self._size, self._weight.numel(), self.room, self._start, *span)
        tensors = (self._values, self._weight, self.words, self._entries, self._scores, self._out)
        self._out.zero_()
        _run(self._kernels.scan, self.threads, *numbers, *tensors)
        above, inside, nan = zip(*self._out.tolist(), strict=True)
        self.nan, self.complete = any(nan), max(inside) <= self.room
        return sum(above), sum(inside)

    def settle(self, prune: int) -> int:
        """Keeps all but the `prune` lowest of the entries inside; returns the highest score pruned, as bits."""
        numbers = (self.threads, self._words, self.room, self._start, prune)
        _run(self._kernels.settle, 1, *numbers, self.words, self._entries, self._scores, self._out)
        return int(self._out[0, 0])

    def bin_of(self, k: int, upper: int) -> tuple[int, int, int]:
        """The bin of the k-th smallest score (see `kernels.histogram`), how many are in those before it and in it."""
        counts = torch.zeros(self.threads, BINS, dtype=torch.int64)
        _run(
            self._kernels.histogram,
            self.threads,
            self._size,
            self._weight.numel(),
            upper,
            self._values,
            self._weight,
            counts,
        )
        there = counts.sum(0)
        ends = there.cumsum(0)
        where = int(torch.searchsorted(ends, k))
        return where, int(ends[where] - there[where]), int(there[where])
