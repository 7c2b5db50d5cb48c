"""The commands `gebt early-bird`, `gebt lottery` and `gebt init-prune`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from gebt.cli.console import log, print_result, progress_bar, tick
from gebt.cli.flags import AsJson, Flag, Out
from gebt.experiments.images import report, runs
from gebt.experiments.images.options import ImageOptions
from gebt.experiments.record import RECORD, RunFolder, machine

Shared = Annotated[ImageOptions, Parameter(name="*")]
# Options that a run may be gone on with differently: they change no level that is there.
FREE = ("controls", "seeds", "threads", "data_root")
Rows = Callable[[ImageOptions, Any, int, Path, runs.Tick], Iterator[runs.Row]]


def add_to(app: App) -> None:
    """Makes them commands of `app`."""
    app.command(early_bird, name="early-bird")
    app.command(lottery, name="lottery")
    app.command(init_prune, name="init-prune")


def early_bird(
    options: Shared | None = None,
    watch: Annotated[runs.Watch, Parameter(name="*")] | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
) -> None:
    """Finds early-bird tickets of channels, takes the others out for real, trains the rest, beside dense and random.

    Parameters
    ----------
    out
        Run folder; default: a new one under runs/.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    force
        Replace the run that the folder holds.
    """
    own = watch or runs.Watch()
    resolved = (options or ImageOptions()).resolved("preresnet20")
    most = 1 + 1 + 2 * len(own.ratios)
    _run("early-bird", resolved, own, runs.early_bird, most, out, as_json, force)


def lottery(
    options: Shared | None = None,
    levels: Annotated[runs.Levels, Parameter(name="*")] | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
    resume: Flag = False,
) -> None:
    """Finds lottery tickets: trains, prunes the smallest weights, rewinds, level after level, beside their controls.

    Parameters
    ----------
    out
        Run folder; default: a new one under runs/.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    force
        Replace the run that the folder holds.
    resume
        Go on with the run that the folder holds, after its last finished level.
    """
    own = levels or runs.Levels()
    resolved = (options or ImageOptions()).resolved("lenet")
    most = 1 + own.levels * (1 + len(own.controls))
    _run("lottery", resolved, own, runs.lottery_levels, most, out, as_json, force, resume)


def init_prune(
    options: Shared | None = None,
    at_init: Annotated[runs.AtInit, Parameter(name="*")] | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
) -> None:
    """Prunes a network before its training by SynFlow or another score, and trains it beside dense and random.

    Parameters
    ----------
    out
        Run folder; default: a new one under runs/.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    force
        Replace the run that the folder holds.
    """
    own = at_init or runs.AtInit()
    resolved = (options or ImageOptions()).resolved("preresnet20")
    most = 1 + len(own.ratios) * sum(1 + (score == "gem-miner") for score in own.variants())
    _run("init-prune", resolved, own, runs.init_prune, most, out, as_json, force)


def _run(
    command: str, options: ImageOptions, own: Any, rows_of: Rows, most: int, out: Path | None, as_json: bool,
    force: bool, resume: bool = False,
) -> None:  # fmt: skip
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # What cannot be had is said before a folder is made.
    own.check(options, options.network(options.parts(0)[0], 0))
    folder = RunFolder(out or RunFolder.named(f"{Path(options.data).name}-{command}"), force=force, resume=resume)
    config = json.loads(json.dumps({**json.loads(options.to_json()), **dataclasses.asdict(own)}))
    if resume:
        folder.refuse_another(config, FREE)
    folder.write_config(json.dumps(config, indent=1) + "\n")
    record: dict[str, Any] = {"command": command, "complete": False, "config": config, "machine": machine()}
    record |= {"rows": [], "summary": []}
    with progress_bar(options.seeds * most * int(options.epochs or 0), f"{command} {options.data}") as shown:
        for seed in range(options.seeds):
            for row in rows_of(options, own, seed, folder.path, lambda where: tick(shown, where)):
                record["rows"].append(row)
                record["summary"] = report.summarized(record["rows"])
                folder.write(record)
    folder.write({**record, "complete": True})
    drawn = report.pictures(record, folder.path)
    tell = log if as_json else print_result
    tell(report.table(record))
    tell(f"\nrecord    {folder.path / RECORD}")
    tell(f"pictures  {' '.join(str(path) for path in drawn)}")
    if as_json:
        print_result(json.dumps({"command": command, "data": options.data, "summary": record["summary"]}))
