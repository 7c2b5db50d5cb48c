"""Jobs of a sweep on Ray (extra "ray"): on this machine, or on the cluster that RAY_ADDRESS names."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any, Self

from gebt.experiments.sweep.engine import JobResult
from gebt.experiments.sweep.jobs import Job, attempt


class Ray:
    """Ray's workers. On a cluster the sweep's folder and the data must have the same paths everywhere.

    Args:
        workers: number of jobs that run at a time.
        threads: CPU threads of a job.

    Raises:
        ValueError: when Ray is not installed.
    """

    def __init__(self, workers: int, threads: int) -> None:
        if find_spec("ray") is None:
            raise ValueError("--engine (got ray, which is not installed), expected pool here; pip install 'gebt[ray]'")
        self.workers, self.threads = workers, threads
        self._busy: dict[Any, Job] = {}

    def __enter__(self) -> Self:
        # Read when Ray is imported: by default it sends usage reports, and where it assumes a cluster it listens on all
        # network interfaces (it replaces `_node_ip_address="127.0.0.1"` by the address of the machine).
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        if not os.environ.get("RAY_ADDRESS"):
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        import ray

        local = {"address": "local", "num_cpus": self.workers * self.threads, "include_dashboard": False}
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else local), log_to_driver=False, logging_level="warning")
        self._ray = ray
        self._attempt = ray.remote(attempt)
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def submit(self, job: Job) -> None:
        """Starts the work on a job."""
        gpus = 1 if job.options.device == "cuda" else 0
        self._busy[self._attempt.options(num_cpus=self.threads, num_gpus=gpus, max_retries=0).remote(job)] = job

    def wait(self) -> JobResult:
        """Waits for the next job that ends, or whose worker does, and returns its result."""
        done = self._ray.wait(list(self._busy), num_returns=1)[0][0]
        job = self._busy.pop(done)
        try:
            return JobResult(job, self._ray.get(done))
        except self._ray.exceptions.RayError as error:
            return JobResult(job, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", died=True)
