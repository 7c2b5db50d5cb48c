"""CUDA graphs: an epoch of a small graph is mostly kernel launches, so it is recorded once and replayed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Plain epochs before the recording: libraries choose algorithms, optimizers make their state, backends are timed.
WARMUP = 3
# Entries of the adjacency up to which launches dominate an epoch.
SMALL = 1 << 21


class Replay:
    """Calls `work` as it is `WARMUP` times, then records it once as a CUDA graph and replays that from there on.

    `work` must read and write the same tensors each time, wait for nothing, and return a tensor on the device. Random
    numbers are those of plain calls: a replay takes them from torch's generator and moves it on by as much. Returns
    what `work` returns; the tensor is overwritten by the next call.
    """

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self._work, self._calls = work, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None

    def __call__(self) -> Tensor:
        """One epoch."""
        self._calls += 1
        if self._calls <= WARMUP:
            # Recording needs a stream of its own, and wants the plain calls to have been on one too.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                result = self._work()
            torch.cuda.current_stream().wait_stream(side)
            return result
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._work()
        self._graph.replay()
        assert self._result is not None
        return self._result


def replays(device: torch.device, entries: int) -> bool:
    """Whether an epoch over an adjacency of that many entries is replayed: on CUDA, and when it is small."""
    return device.type == "cuda" and entries <= SMALL
