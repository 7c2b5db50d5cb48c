"""The engine that runs the jobs of a sweep (a protocol), and the one loop that feeds it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from gebt.experiments.sweep.jobs import Job


@dataclass(frozen=True)
class JobResult:
    """How the work on a job ended.

    Attributes:
        job: the job.
        fault: what went wrong; "": nothing.
        died: whether its worker died, which is no fault of the job's options or data.
    """

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


def run_jobs(jobs: Sequence[Job], engine: Engine, on_end: Callable[[JobResult, bool], object]) -> dict[str, str]:
    """Runs all jobs; one whose worker died is tried once more, after all others.

    Args:
        jobs: to run.
        engine: runs them.
        on_end: called with the result of every attempt, and whether the job will be tried again.

    Returns:
        Why a job is missing, by name, for those that are.
    """
    waiting, running = deque(jobs), 0
    retried, missing = set[str](), dict[str, str]()
    while waiting or running:
        while waiting and running < engine.workers:
            engine.submit(waiting.popleft())
            running += 1
        result = engine.wait()
        running -= 1
        if result.job.finished:  # even if its worker died afterwards
            result = JobResult(result.job)
        elif not result.fault:
            result = JobResult(result.job, f"its worker wrote no record into {result.job.folder}")
        again = result.died and result.job.name not in retried
        if again:
            retried.add(result.job.name)
            waiting.append(result.job)
        elif result.fault:
            missing[result.job.name] = result.fault
        on_end(result, again)
    return missing
