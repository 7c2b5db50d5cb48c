"""Jobs of a sweep in processes of this machine."""

from __future__ import annotations

import multiprocessing
import signal
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Self, cast

from gebt.experiments.sweep.engine import JobResult
from gebt.experiments.sweep.jobs import Job, attempt

# Seconds that a worker has to end when it is asked to.
PATIENCE = 5.0


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection


class Pool:
    """Processes of this machine, each started afresh and used for one job after the other.

    Each has a pipe, which ends when it dies: `concurrent.futures` gives up all workers when one is killed, and cannot
    say which job it had.

    Args:
        workers: number of jobs that run at a time.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, tuple[_Worker, Job]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join(PATIENCE)
            worker.process.kill()

    def submit(self, job: Job) -> None:
        """Starts the work on a job, in a worker that is idle or in a new one."""
        worker = self._idle.pop() if self._idle else _started()
        self._busy[worker.connection] = worker, job
        with suppress(ConnectionError):  # that it is dead is found at the other end of the pipe
            worker.connection.send(job)

    def wait(self) -> JobResult:
        """Waits for the next job that ends, or whose worker does, and returns its result."""
        ready = cast(Connection, wait(list(self._busy))[0])
        worker, job = self._busy.pop(ready)
        try:
            fault = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            return JobResult(job, _ended(worker.process.exitcode or 0), died=True)
        self._idle.append(worker)
        return JobResult(job, fault)


def _started() -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there,), daemon=True)
    # Ctrl-C reaches every process of a terminal; only the sweep handles it and ends its workers. They inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    return _Worker(process, here)


def _serve(connection: Connection) -> None:
    while True:
        try:
            job = connection.recv()
        except EOFError:  # the sweep is gone
            return
        connection.send(attempt(job))


def _ended(code: int) -> str:
    if code >= 0:
        return f"its worker ended with status {code}"
    name = signal.Signals(-code).name
    return f"its worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
