"""What things cost: multiply-adds as the papers count them, flops our kernels did, seconds, bytes."""

from __future__ import annotations

import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
# A budget of seconds never cuts the rounds of `measure_in_turn` below this number.
FEWEST_ROUNDS = 3
# What a process started by `in_fresh_process` runs: what it prints goes to standard error, the result alone to output.
_CHILD = """
import importlib, json, sys
request, answer, sys.stdout = json.load(sys.stdin), sys.stdout, sys.stderr
sys.path[:] = request["path"]
module, name = request["function"].split(":")
found = getattr(importlib.import_module(module), name)(**request["arguments"])
answer.write(json.dumps(found))
"""


def macs_paper(*, nodes: int, pairs: float, features: int, weights: float, depth: int, heads: int = 1) -> float:
    """Multiply-adds of one inference, by the convention behind the tables of GEBT (AAAI 2022).

    heads * (L M F + N W): L layers (`depth`), M kept undirected `pairs`, F *input* features for every layer's
    aggregation, N `nodes`, W kept entries of the weight matrices; X counts as dense; biases, activations and
    attention scores are free. GCN and GIN have one head. An epoch of training costs three inferences.
    Source: derived in docs/method.md from the paper's printed tables.
    """
    return heads * (depth * pairs * features + nodes * weights)


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

    @staticmethod
    def of(times: Sequence[float]) -> Seconds:
        """What several timings come to."""
        return Seconds(statistics.median(times), min(times), max(times), len(times))


def measure_seconds(work: Callable[[], object], *, repeats: int = 20, warmup: int = 3) -> Seconds:
    """Wall-clock seconds of `work`, after `warmup` untimed calls; a device is synchronised around each call."""
    for _ in range(warmup):
        work()
    return Seconds.of([_timed(work) for _ in range(repeats)])


def measure_in_turn(
    works: Mapping[str, Callable[[], object]], *, repeats: int = 20, warmup: int = 3, budget_s: float = math.inf
) -> dict[str, Seconds]:
    """`measure_seconds` of several works, called one after the other in every round, so that noise meets all.

    Rounds end at `repeats`, or after three once the timed ones have taken `budget_s`.
    """
    for _ in range(warmup):
        for work in works.values():
            work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for done in range(repeats):
        if done >= FEWEST_ROUNDS and sum(map(sum, times.values())) > budget_s:
            break
        for name, work in works.items():
            times[name].append(_timed(work))
    return {name: Seconds.of(values) for name, values in times.items()}


@dataclass
class PeakMemory:
    """`bytes`: the peak inside a `peak_memory` block; `what`: of the device, or resident memory of the process.

    `before`: bytes in use when the block began, interpreter and libraries among them where memory is the process's.
    """

    bytes: int = 0
    what: str = ""
    before: int = 0


@contextmanager
def peak_memory(device: str | None = None) -> Iterator[PeakMemory]:
    """Measures the peak of allocated device memory or of the process's resident memory inside the block.

    `device`: "cuda" or "cpu"; None: CUDA where there is one. Where the kernel does not let the peak be reset, it is the
    peak since the process began, and `what` says so.
    """
    peak = PeakMemory()
    if torch.cuda.is_available() and device in (None, "cuda"):
        torch.cuda.reset_peak_memory_stats()
        peak.before = torch.cuda.memory_allocated()
        yield peak
        peak.bytes, peak.what = torch.cuda.max_memory_allocated(), "device memory"
        return
    reset = _reset_peak_resident()
    peak.before = _status_bytes("VmRSS") if STATUS.is_file() else 0
    yield peak
    if reset:
        peak.bytes, peak.what = _status_bytes("VmHWM"), "resident memory"
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak.bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        peak.what = "resident memory since the process began"


def state_bytes(model: nn.Module) -> int:
    """Bytes of the model's tensors as stored densely."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def stored_bytes(model: nn.Module, pairs: int) -> int:
    """Bytes of a network and its graph on disk without a ticket: the tensors, and two int64 an undirected pair."""
    return state_bytes(model) + 16 * pairs


def in_fresh_process(function: str, /, **arguments: Any) -> Any:
    """What `function`, "module:name", returns for these arguments in a process of its own, so that its peak is its own.

    Arguments and result are plain JSON. Raises `RuntimeError` when the process fails, naming the signal that killed it
    (the system's, when memory runs out) or the last line that it said.
    """
    request = json.dumps({"path": sys.path, "function": function, "arguments": arguments})
    done = subprocess.run([sys.executable, "-c", _CHILD], input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        killed = f"signal {-done.returncode}" if done.returncode < 0 else ""
        said = done.stderr.strip().splitlines()
        got = killed or (said[-1] if said else f"exit status {done.returncode}")
        raise RuntimeError(f"process of {function} (got {got}), expected a result")
    return json.loads(done.stdout)


def _timed(work: Callable[[], object]) -> float:
    _synchronise()
    start = time.perf_counter()
    work()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak_resident() -> bool:
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return STATUS.is_file()


def _status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024
