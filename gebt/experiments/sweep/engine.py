"""The engine that runs the jobs of a sweep (a protocol), and the one loop that feeds it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from gebt.experiments.sweep.jobs import Job


@dataclass(frozen=True)
class JobResult:
    """How the work on a job ended: `fault` "" is well; `died`: not by a fault of the job's options or data."""

    job: Job
    fault: str = ""
    died: bool = False


class Engine(Protocol):
    """Runs `workers` jobs at a time; as a context it ends all of its processes with it."""

    workers: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def submit(self, job: Job) -> None:
        """Starts the work on a job; called while fewer than `workers` are at work."""
        ...

    def wait(self) -> JobResult:
        """Returns as soon as the work on a job has ended."""
        ...


def run_jobs(jobs: Sequence[Job], engine: Engine, told: Callable[[JobResult, bool], object]) -> dict[str, str]:
    """Runs all jobs; returns why each one that is missing afterwards is, by name.

    A job whose worker died is tried once more, after all others. `told(end, again)` hears of every end, and whether
    the job will be tried again.
    """
    waiting, running = deque(jobs), 0
    retried, missing = set[str](), dict[str, str]()
    while waiting or running:
        while waiting and running < engine.workers:
            engine.submit(waiting.popleft())
            running += 1
        end = engine.wait()
        running -= 1
        if end.job.finished:  # whatever became of its worker then
            end = JobResult(end.job)
        elif not end.fault:
            end = JobResult(end.job, f"its worker wrote no record into {end.job.folder}")
        again = end.died and end.job.name not in retried
        if again:
            retried.add(end.job.name)
            waiting.append(end.job)
        elif end.fault:
            missing[end.job.name] = end.fault
        told(end, again)
    return missing
