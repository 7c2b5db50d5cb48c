"""The command `gebt sweep`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from gebt.cli.console import advance, answer, bar, say
from gebt.cli.flags import Flag
from gebt.experiments.record import RECORD, RunFolder, machine
from gebt.experiments.sweep import report
from gebt.experiments.sweep.engine import End, Engine, run_cells
from gebt.experiments.sweep.jobs import Cell, SweepOptions, plan
from gebt.experiments.sweep.pool import Pool
from gebt.experiments.sweep.ray import Ray

# Options that a sweep may be gone on with differently: they say how its cells are run.
FREE = ("threads", "data_root")
Shared = Annotated[SweepOptions, Parameter(name="*")]


def add_to(app: App) -> None:
    """Makes it a command of `app`."""
    app.command(sweep)


def sweep(
    options: Shared | None = None,
    *,
    out: Annotated[Path | None, Parameter(name="--out")] = None,
    engine_name: Annotated[Literal["pool", "ray"], Parameter(name="--engine")] = "pool",
    workers: int = 1,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
    force: Flag = False,
    resume: Flag = False,
) -> None:
    """Compares tickets with dense and random ones over data sets, networks, ratios and seeds, several at a time.

    Parameters
    ----------
    out
        Folder of the sweep; default: a new one under runs/.
    engine_name
        Where cells run: "pool", processes of this machine, or "ray", this machine or the cluster at $RAY_ADDRESS.
    workers
        Cells that run at a time.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    force
        Replace the sweep that the folder holds.
    resume
        Go on with the sweep that the folder holds: run the cells that are missing.
    """
    chosen = options or SweepOptions()
    if workers < 1:
        raise ValueError(f"--workers (got {workers}), expected at least 1")
    if force and resume:
        raise ValueError("--force, --resume (got both), expected at most one of them")
    runs, path = chosen.runs(), (out or RunFolder.named("sweep")).resolve()
    threads = chosen.threads or max(1, len(os.sched_getaffinity(0)) // workers)
    # What cannot be had is said before a folder is made.
    cells = plan(runs, threads, path)
    with_engine: Engine = Pool(workers) if engine_name == "pool" else Ray(workers, threads)
    folder = RunFolder(path, force=force, resume=resume)
    if resume:
        folder.refuse_another(chosen.given(), FREE)
    folder.write_config(json.dumps(chosen.given(), indent=1) + "\n")
    missing = _run([cell for cell in cells if not cell.finished], with_engine)
    record: dict[str, Any] = {"command": "sweep", "complete": not missing, "config": chosen.given()}
    record |= {"machine": {**machine(), "threads": threads}, "engine": engine_name, "workers": workers}
    record |= {"rows": report.rows_of(cells), "missing": missing}
    folder.write(record)
    _tell(record, folder.path, as_json)
    if missing:
        for name, fault in missing.items():
            say(f"missing: {name}: {fault}")
        say(f"gebt: error: {len(missing)} of {len(cells)} cells are missing; --resume runs them")
        raise SystemExit(1)


def _run(cells: list[Cell], with_engine: Engine) -> dict[str, str]:
    """Runs the cells with a bar over them; returns why each missing one is."""
    if not cells:
        return {}
    with bar(len(cells), "sweep", "cell") as shown, with_engine:

        def told(end: End, again: bool) -> None:
            if end.fault:
                shown.write(f"{end.cell.name}: {end.fault}" + ("; tried again" if again else ""), file=sys.stderr)
            if not again:
                advance(shown, end.cell.name)

        return run_cells(cells, with_engine, told)


def _tell(record: dict[str, Any], folder: Path, as_json: bool) -> None:
    tell = say if as_json else answer
    if record["rows"]:
        drawn = report.picture(record["rows"], folder)
        tell(report.table(record["rows"]))
        tell("\n± of accuracies: unbiased std over seeds; of the difference: 95 % interval, paired by seed")
        tell(f"picture   {drawn}")
    tell(f"record    {folder / RECORD}")
    if as_json:
        answer(json.dumps({key: record[key] for key in ("complete", "rows", "missing")}))
