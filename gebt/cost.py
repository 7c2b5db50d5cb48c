"""What things cost: multiply-adds as the papers count them, flops our kernels did, seconds, bytes."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def macs_paper(*, nodes: int, pairs: float, features: int, weights: float, depth: int, heads: int = 1) -> float:
    """Multiply-adds of one inference, by the convention behind the tables of GEBT (AAAI 2022).

    heads * (L M F + N W): L layers (`depth`), M kept undirected `pairs`, F *input* features for every layer's
    aggregation, N `nodes`, W kept entries of the weight matrices; X counts as dense; biases, activations and
    attention scores are free. GCN and GIN have one head. An epoch of training costs three inferences.
    Source: derived in docs/method.md from the paper's printed tables.
    """
    return heads * (depth * pairs * features + nodes * weights)


def weight_entries(features: int, hidden: int, classes: int, depth: int = 2) -> int:
    """Entries of the weight matrices of a network of L = `depth` layers: F H + (L - 2) H^2 + H C (F C for one)."""
    if depth == 1:
        return features * classes
    return features * hidden + (depth - 2) * hidden**2 + hidden * classes


def macs_paper_sampled(*, nodes: int, weights: float, neighbours: int) -> float:
    """The convention's cost of a sampling network (GraphSAGE, FastGCN): r N W, r sampled `neighbours` of a node in all.

    r is 100 for GraphSAGE on the citation sets (10 a layer, two layers), 1000 on PPI and Reddit. Edges are free.
    """
    return neighbours * nodes * weights


def flops_executed(work: Callable[[], object]) -> int:
    """Flops (2 a multiply-add) of the products that `work` runs: dense ones by shape, sparse ones by their entries."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Seconds:
    """Repeated timings of one piece of work."""

    median: float
    lowest: float
    highest: float
    repeats: int


def measure_seconds(work: Callable[[], object], *, repeats: int = 20, warmup: int = 3) -> Seconds:
    """Wall-clock seconds of `work`, after `warmup` untimed calls; a device is synchronised around each call."""
    for _ in range(warmup):
        work()
    times = []
    for _ in range(repeats):
        _synchronise()
        start = time.perf_counter()
        work()
        _synchronise()
        times.append(time.perf_counter() - start)
    return Seconds(statistics.median(times), min(times), max(times), repeats)


@dataclass
class PeakMemory:
    """`bytes`: the peak inside a `peak_memory` block; `what`: of the device, or resident memory of the process."""

    bytes: int = 0
    what: str = ""


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measures the peak of allocated device memory (CUDA) or of the process's resident memory inside the block.

    Where the kernel does not let the peak be reset, it is the peak since the process began, and `what` says so.
    """
    peak = PeakMemory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes, peak.what = torch.cuda.max_memory_allocated(), "device memory"
        return
    reset = _reset_peak_resident()
    yield peak
    if reset:
        peak.bytes, peak.what = _high_water_mark(), "resident memory"
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak.bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        peak.what = "resident memory since the process began"


def state_bytes(model: nn.Module) -> int:
    """Bytes of the model's tensors as stored densely."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak_resident() -> bool:
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return STATUS.is_file()


def _high_water_mark() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
