"""Where the cells of a sweep run: engines, and the one loop that feeds them."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Literal, Protocol, Self, cast

from gebt.experiments.sweep.jobs import Cell, attempt

EngineName = Literal["pool", "ray"]
# Seconds that a worker has to end when it is asked to.
PATIENCE = 5.0


@dataclass(frozen=True)
class End:
    """How the work on a cell ended: `fault` "" is well; `died`: not by a fault of the cell's options or data."""

    cell: Cell
    fault: str = ""
    died: bool = False


class Engine(Protocol):
    """Runs `workers` cells at a time; as a context it ends all of its processes with it."""

    workers: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def submit(self, cell: Cell) -> None:
        """Starts the work on a cell; called while fewer than `workers` are at work."""
        ...

    def wait(self) -> End:
        """Returns as soon as the work on a cell has ended."""
        ...


def run_cells(cells: Sequence[Cell], engine: Engine, told: Callable[[End, bool], object]) -> dict[str, str]:
    """Runs all cells; returns why each one that is missing afterwards is, by name.

    A cell whose worker died is tried once more, after all others. `told(end, again)` hears of every end, and whether
    the cell will be tried again.
    """
    waiting, running = deque(cells), 0
    retried, missing = set[str](), dict[str, str]()
    while waiting or running:
        while waiting and running < engine.workers:
            engine.submit(waiting.popleft())
            running += 1
        end = engine.wait()
        running -= 1
        if end.cell.finished:  # whatever became of its worker then
            end = End(end.cell)
        elif not end.fault:
            end = End(end.cell, f"its worker wrote no record into {end.cell.folder}")
        again = end.died and end.cell.name not in retried
        if again:
            retried.add(end.cell.name)
            waiting.append(end.cell)
        elif end.fault:
            missing[end.cell.name] = end.fault
        told(end, again)
    return missing


def engine(name: EngineName, workers: int, threads: int) -> Engine:
    """The engine of that name; raises `ValueError` where it is not installed."""
    if name == "pool":
        return Pool(workers)
    from gebt.experiments.sweep.ray import Ray

    return Ray(workers, threads)


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection


class Pool:
    """Processes of this machine, each started afresh and used for one cell after the other.

    Each has a pipe of its own, which ends when it dies: `concurrent.futures` gives up all workers when one is killed,
    and cannot say which cell it had.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Cell]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()

    def submit(self, cell: Cell) -> None:
        """Starts the work on a cell, in a worker that is idle or in a new one."""
        worker = self._idle.pop() if self._idle else _started()
        self._busy[worker.connection] = worker, cell
        with suppress(ConnectionError):  # that it is dead is found at the other end of the pipe
            worker.connection.send(cell)

    def wait(self) -> End:
        """The next cell that ended, or whose worker did."""
        ready = cast(Connection, wait(list(self._busy))[0])
        worker, cell = self._busy.pop(ready)
        try:
            fault = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            return End(cell, _ended(worker.process.exitcode or 0), died=True)
        self._idle.append(worker)
        return End(cell, fault)


def _started() -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    # A Ctrl-C reaches every process of a terminal; it is for the sweep, which ends its workers. They inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _serve(connection: Connection) -> None:
    while True:
        try:
            cell = connection.recv()
        except EOFError:  # the sweep is gone
            return
        connection.send(attempt(cell))


def _ended(code: int) -> str:
    if code >= 0:
        return f"its worker ended with status {code}"
    name = signal.Signals(-code).name
    return f"its worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
