"""CUDA graphs: an epoch of a small graph is mostly kernel launches, so it is recorded once and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, optim
from torch.utils._python_dispatch import TorchDispatchMode

# Plain epochs before the recording: libraries choose algorithms, optimizers make their state, backends are timed.
WARMUP = 3
# Entries of the adjacency up to which launches dominate an epoch.
SMALL = 1 << 21

aten = torch.ops.aten
# The host must wait for the device to know a number, or the size of the result.
_WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten._unique2.default,
    aten.unique_consecutive.default, aten.unique_dim.default, aten.bincount.default, aten.equal.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}

log = logging.getLogger("gebt.train")


class Replay:
    """Calls `work` as it is `WARMUP` times, then records it once as a CUDA graph and replays that from there on.

    `work` must read and write the same tensors each time and return a tensor on the device. What cannot be recorded is
    found in the last plain call, and `work` is then called plainly for good; `refused` says why, and so does the log.
    Random numbers are those of plain calls: a replay takes them from torch's generator and moves it on by as much.

    Args:
        work: one epoch.
        optimizers: those that `work` steps.
    """

    def __init__(self, work: Callable[[], Tensor], optimizers: Sequence[optim.Optimizer] = ()) -> None:
        self._work, self._optimizers, self._calls = work, optimizers, 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Tensor | None = None
        self.refused = ""

    def __call__(self) -> Tensor:
        """One epoch.

        Returns:
            What `work` returns; the next call overwrites it.
        """
        self._calls += 1
        if self.refused:
            return self._work()
        if self._calls <= WARMUP:
            return self._plain()
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = self._work()
        self._graph.replay()
        assert self._result is not None
        return self._result

    def _plain(self) -> Tensor:
        # Recording needs a stream of its own, and wants the plain calls to have been on one too.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            result = self._watched() if self._calls == WARMUP else self._work()
        torch.cuda.current_stream().wait_stream(side)
        return result

    def _watched(self) -> Tensor:
        """The last plain call, under the eyes of `_Watch`: a recording that fails would leave its stream unusable."""
        with _Watch() as watch:
            result = self._work()
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        if not all(group.get("capturable", True) for group in groups):
            watch.found.append("an optimizer that keeps its step count on the host")
        if watch.found:
            self.refused = watch.found[0]
            log.info("epochs are not recorded as a CUDA graph: %s", self.refused)
        return result


class _Watch(TorchDispatchMode):
    """Notes the operations that a CUDA graph cannot hold: those that wait for the device, and copies from or to it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _WAITING and _on_device(args[0]):
            self.found.append(f"{func} waits for the device")
        elif func in _INDEXED and _on_device(args[0]):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                self.found.append(f"{func} with a mask waits for the device")
        elif _copies(func, args, kwargs):
            self.found.append("a copy between host and device")
        return func(*args, **kwargs)


def _copies(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation copies between host and device."""
    if func is aten.copy_.default:
        return _on_device(args[0]) != _on_device(args[1])
    to = kwargs.get("device") if func is aten._to_copy.default else None
    return to is not None and (torch.device(to).type == "cuda") != _on_device(args[0])


def _on_device(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.device.type == "cuda"


def replays(device: torch.device, entries: int) -> bool:
    """Whether an epoch over an adjacency of that many entries is replayed: on CUDA, and when it is small."""
    return device.type == "cuda" and entries <= SMALL
