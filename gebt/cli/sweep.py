"""The command `gebt sweep`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from gebt.cli.console import log, print_result, progress_bar, tick
from gebt.cli.flags import AsJson, Flag, Out
from gebt.experiments.option_groups import RUN
from gebt.experiments.record import RECORD, RunFolder, machine
from gebt.experiments.sweep import report
from gebt.experiments.sweep.engine import Engine, JobResult, run_jobs
from gebt.experiments.sweep.jobs import Job, SweepOptions, plan_jobs
from gebt.experiments.sweep.pool import Pool
from gebt.experiments.sweep.ray import Ray

# Options that may differ where a sweep is resumed: they say how its jobs are run.
FREE = ("threads", "data_root")
Shared = Annotated[SweepOptions, Parameter(name="*")]


def add_to(app: App) -> None:
    """Adds the command to `app`."""
    app.command(sweep)


def sweep(
    options: Shared | None = None,
    *,
    out: Out = None,
    engine_name: Annotated[Literal["pool", "ray"], RUN, Parameter(name="--engine")] = "pool",
    workers: Annotated[int, RUN] = 1,
    as_json: AsJson = False,
    force: Flag = False,
    resume: Flag = False,
) -> None:
    """Runs many comparisons in parallel: over data sets, networks, ratios and seeds.

    Args:
        out: Folder of the sweep; default: a new one under runs/.
        engine_name: Where jobs run.
            pool: processes of this machine.
            ray: Ray, on this machine or the cluster at $RAY_ADDRESS.
        workers: Number of jobs that run at a time.
        as_json: Print one JSON object to standard output, everything else to standard error.
        force: Replace the sweep in the folder.
        resume: Continue the sweep in the folder: run the jobs that are missing.
    """
    chosen = options or SweepOptions()
    if workers < 1:
        raise ValueError(f"--workers (got {workers}), expected at least 1")
    if force and resume:
        raise ValueError("--force, --resume (got both), expected at most one of them")
    runs, path = chosen.runs(), (out or RunFolder.named("sweep")).resolve()
    threads = chosen.threads or max(1, len(os.sched_getaffinity(0)) // workers)
    # Errors come before a folder is made.
    jobs = plan_jobs(runs, threads, path)
    with_engine: Engine = Pool(workers) if engine_name == "pool" else Ray(workers, threads)
    folder = RunFolder(path, force=force, resume=resume)
    if resume:
        folder.refuse_another(chosen.given(), FREE)
    folder.write_config(json.dumps(chosen.given(), indent=1) + "\n")
    missing = _run([job for job in jobs if not job.finished], with_engine)
    record: dict[str, Any] = {"command": "sweep", "complete": not missing, "config": chosen.given()}
    record |= {"machine": {**machine(chosen.device), "threads": threads}, "engine": engine_name, "workers": workers}
    record |= {"rows": report.rows_of(jobs), "missing": missing}
    folder.write(record)
    _show(record, folder.path, as_json)
    if missing:
        for name, fault in missing.items():
            log(f"missing: {name}: {fault}")
        log(f"gebt: error: {len(missing)} of {len(jobs)} jobs are missing; --resume runs them")
        raise SystemExit(1)


def _run(jobs: list[Job], with_engine: Engine) -> dict[str, str]:
    """Runs the jobs with a progress bar; returns why a job is missing, for those that are."""
    if not jobs:
        return {}
    with progress_bar(len(jobs), "sweep", "job") as shown, with_engine:

        def on_end(result: JobResult, again: bool) -> None:
            if result.fault:
                shown.write(f"{result.job.name}: {result.fault}" + ("; tried again" if again else ""), file=sys.stderr)
            if not again:
                tick(shown, result.job.name)

        return run_jobs(jobs, with_engine, on_end)


def _show(record: dict[str, Any], folder: Path, as_json: bool) -> None:
    show = log if as_json else print_result
    if record["rows"]:
        drawn = report.picture(record["rows"], folder)
        show(report.table(record["rows"]))
        show("\n± of accuracies: unbiased std over seeds; of the difference: 95 % interval, paired by seed")
        show(f"picture   {drawn}")
    show(f"record    {folder / RECORD}")
    if as_json:
        print_result(json.dumps({key: record[key] for key in ("complete", "rows", "missing")}))
