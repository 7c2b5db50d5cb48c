"""How "auto" times a product: on the CPU call by call, on a CUDA device as a recorded graph."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

REPEATS = 3
# Seconds after which one run says enough.
LONG = 0.1
# Calls in one recording: single ones of a small product would be lost in the launch of the graph.
RECORDED = 10


def median_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The median time of a few calls.

    On a CUDA device the calls are recorded and replayed, for so they run in the epochs of a small graph: one by one
    they would measure the host that launches them.

    Args:
        run: the work; called before, so that nothing is made or compiled while it is timed.
        device: where it computes.

    Returns:
        Seconds a call.
    """
    calls, times = 1, []
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(RECORDED):
                run()
        run, calls = graph.replay, RECORDED
        run()
    for _ in range(REPEATS):
        start = _now(device)
        run()
        times.append((_now(device) - start) / calls)
        if times[-1] > LONG:
            break
    return sorted(times)[len(times) // 2]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
