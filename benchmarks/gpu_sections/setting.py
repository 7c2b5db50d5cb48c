"""What every section of the GPU benchmark is given: a device, a clock, sizes, graphs, and where rows go."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gebt.data import load_graph
from gebt.graph import Graph
from gebt.sparse import SparseMatrix

WARMUP, REPEATS, LONG_MS, REPEATS_OF_LONG = 5, 20, 20.0, 5


class Clock(Protocol):
    """Times work that leaves nothing for the host to wait for."""

    def ms(self, work: Callable[[], object]) -> float:
        """Milliseconds of one call, a median."""


class DeviceClock:
    """CUDA events around each call: what the device takes, launches hidden where they can be."""

    def ms(self, work: Callable[[], object]) -> float:
        """Median of 20 calls after 5 warm ones; of 5 where a call takes more than 20 ms."""
        for _ in range(WARMUP):
            work()
        first = self._one(work)
        return statistics.median(
            [first, *(self._one(work) for _ in range((REPEATS_OF_LONG if first > LONG_MS else REPEATS) - 1))]
        )

    def _one(self, work: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)


class HostClock:
    """The clock of a rehearsal: two calls, whose times mean nothing."""

    def ms(self, work: Callable[[], object]) -> float:
        """Milliseconds of the second call."""
        work()
        start = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - start)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    copied_bytes: int
    square: int
    rows: int
    entries_a_row: int
    widths: tuple[int, ...]
    epochs: int
    seeds: int
    many_seeds: int
    hidden: tuple[int, ...]
    arxiv_hidden: int
    metered_s: float
    searched: int


FULL = Sizes(1 << 30, 8192, 10**6, 16, (64, 128, 256), 100, 3, 10, (256, 1024, 2048), 256, 5.0, 30)
REHEARSED = Sizes(1 << 20, 64, 80, 4, (8, 16), 6, 1, 2, (16,), 8, 0.05, 6)


@dataclass
class Setting:
    """What a section is given.

    Args:
        folder: where the background process leaves the large graphs.
        out: rows are appended to it as JSON lines, so that a stop loses none.
        pretend: a rehearsal on the pretend device; no time is judged.
        data_root: of the raw data.
    """

    folder: Path
    out: Path
    pretend: bool
    data_root: Path | None = None
    section: str = ""
    known: dict[str, float] = field(default_factory=dict)

    @cached_property
    def clock(self) -> Clock:
        """The clock of this device."""
        return HostClock() if self.pretend else DeviceClock()

    @property
    def sizes(self) -> Sizes:
        """How much is measured."""
        return REHEARSED if self.pretend else FULL

    @property
    def bandwidth(self) -> float:
        """Bytes a second of a copy, from section "ceilings"; 3.0e12 (an H100 by its papers) where that was left out."""
        return self.known.get("copy", 3.0e12)

    @contextmanager
    def device(self) -> Iterator[None]:
        """Inside there is a CUDA device: this machine's, or the pretend one."""
        if not self.pretend:
            yield
            return
        from tests.pretend_cuda import pretend_cuda

        with pretend_cuda():
            yield

    def row(
        self,
        what: str,
        value: float | None,
        unit: str,
        *,
        floor: float | None = None,
        most: float | None = None,
        least: float | None = None,
        exact: bool = False,
        note: str = "",
    ) -> None:
        """Keeps one figure beside its floor and its pass line.

        Args:
            what: was measured.
            value: the figure; None: it was not taken, and the note says why.
            unit: of figure, floor and line.
            floor: the least that bytes and arithmetic allow.
            most: pass line: at most this.
            least: pass line: at least this.
            exact: a line that a rehearsal is judged by too; those of times and rates are not.
            note: what else there is to say.
        """
        line = f"<= {most:.4g}" if most is not None else f">= {least:.4g}" if least is not None else None
        passed = None
        if line is not None and value is not None and (exact or not self.pretend):
            passed = value <= most if most is not None else value >= float(least or 0)
        finite = None if value is None or not math.isfinite(value) else value
        found = {
            "section": self.section,
            "what": what,
            "value": finite,
            "unit": unit,
            "floor": floor,
            "times_floor": finite / floor if finite is not None and floor else None,
            "pass_line": line,
            "passed": passed,
            "note": note if finite is not None or value is None else f"{value} {note}".strip(),
        }
        self.write({"row": found})

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What is inside may raise: a failed row says so, and the section goes on.

        Args:
            what: is measured.
        """
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            why = f"raised {type(error).__name__}: {error}".splitlines()[0]
            row = {"section": self.section, "what": what, "value": None, "unit": "", "floor": None}
            self.write({"row": row | {"times_floor": None, "pass_line": None, "passed": False, "note": why}})
            self.forget()

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line and says it."""
        text = json.dumps(line)
        with self.out.open("a") as file:
            file.write(text + "\n")
        print(text, flush=True)

    def note(self, name: str, value: float) -> None:
        """Keeps a number that later sections need."""
        self.known[name] = value
        self.write({"known": {name: value}})

    @property
    def home(self) -> str:
        """Where tensors lie that cannot be pretended: CSR tensors, and memory that Triton's interpreter reads."""
        return "cpu" if self.pretend else "cuda"

    def graph(self, name: str, device: str = "cuda") -> Graph:
        """A large graph, once the background process has made it."""
        path = self.folder / f"{name}.pt"
        while not path.is_file():
            failed = self.folder / "failed"
            if failed.is_file():
                raise RuntimeError(f"graph {name!r} was not prepared: {failed.read_text()}")
            time.sleep(0.2)
        made = torch.load(path, weights_only=True)
        return Graph(**made).to(device)

    def small_graphs(self, *names: str) -> list[Graph]:
        """The data sets that are there, on the device; digits where none is."""
        found = []
        for name in names:
            with contextlib.suppress(ValueError, OSError):
                found.append(load_graph(name, self.data_root, download=False).to("cuda"))
        if not found:
            self.row("data sets", None, "", note=f"none of {', '.join(names)} is here: digits in their place")
        return found or [_sparse_digits().to("cuda")]

    def forget(self) -> None:
        """Gives unused device memory back, and starts a new count of its peak."""
        if not self.pretend:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _sparse_digits() -> Graph:
    """The embedded graph; its features stored as those of the citation graphs are."""
    graph = load_graph("digits")
    features = graph.features
    return replace(graph, features=SparseMatrix.from_dense(features) if isinstance(features, Tensor) else features)


def relative_error(found: Tensor, right: Tensor) -> float:
    """Largest difference as a share of the largest entry, in double precision; NaN where `found` holds one."""
    scale = max(float(right.abs().max()), 1e-30)
    return float((found.double() - right).abs().max()) / scale


def synchronize() -> None:
    """Waits for the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
