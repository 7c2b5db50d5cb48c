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
# Options that may differ where a run is resumed: they change no level that is done.
FREE = ("controls", "seeds", "threads", "data_root")
Rows = Callable[[ImageOptions, Any, int, Path, runs.Tick], Iterator[runs.Row]]


def add_to(app: App) -> None:
    """Adds the commands to `app`."""
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
    """Prunes channels of image networks early in training (EB-Train).

    Compares early-bird tickets with the dense network and random channels.

    Args:
        out: Run folder; default: a new one under runs/.
        as_json: Print one JSON object to standard output, everything else to standard error.
        force: Replace the run in the folder.
    """
    search = watch or runs.Watch()
    resolved = (options or ImageOptions()).resolved("preresnet20")
    trainings = 1 + 1 + 2 * len(search.ratios)
    _run("early-bird", resolved, search, runs.early_bird, trainings, out, as_json, force)


def lottery(
    options: Shared | None = None,
    levels: Annotated[runs.Levels, Parameter(name="*")] | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
    resume: Flag = False,
) -> None:
    """Prunes weights of image networks by iterative magnitude pruning (lottery tickets).

    Trains, prunes and rewinds, level after level, and compares every level with its baselines.

    Args:
        out: Run folder; default: a new one under runs/.
        as_json: Print one JSON object to standard output, everything else to standard error.
        force: Replace the run in the folder.
        resume: Continue the run in the folder, after its last finished level.
    """
    pruning = levels or runs.Levels()
    resolved = (options or ImageOptions()).resolved("lenet")
    trainings = 1 + pruning.levels * (1 + len(pruning.controls))
    _run("lottery", resolved, pruning, runs.lottery_levels, trainings, out, as_json, force, resume)


def init_prune(
    options: Shared | None = None,
    at_init: Annotated[runs.AtInit, Parameter(name="*")] | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
) -> None:
    """Prunes weights of image networks at initialization (SynFlow, SNIP, GraSP, ...).

    Compares the trained networks with the dense one and random masks.

    Args:
        out: Run folder; default: a new one under runs/.
        as_json: Print one JSON object to standard output, everything else to standard error.
        force: Replace the run in the folder.
    """
    pruning = at_init or runs.AtInit()
    resolved = (options or ImageOptions()).resolved("preresnet20")
    trainings = 1 + len(pruning.ratios) * sum(1 + (score == "gem-miner") for score in pruning.variants())
    _run("init-prune", resolved, pruning, runs.init_prune, trainings, out, as_json, force)


def _run(
    command: str, options: ImageOptions, pruning: Any, rows_of: Rows, trainings: int, out: Path | None, as_json: bool,
    force: bool, resume: bool = False,
) -> None:  # fmt: skip
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # Errors come before a folder is made.
    pruning.check(options, options.network(options.parts(0)[0], 0))
    folder = RunFolder(out or RunFolder.named(f"{Path(options.data).name}-{command}"), force=force, resume=resume)
    config = json.loads(json.dumps({**json.loads(options.to_json()), **dataclasses.asdict(pruning)}))
    if resume:
        folder.refuse_another(config, FREE)
    folder.write_config(json.dumps(config, indent=1) + "\n")
    record: dict[str, Any] = {"command": command, "complete": False, "config": config, "machine": machine()}
    record |= {"rows": [], "summary": []}
    with progress_bar(options.seeds * trainings * int(options.epochs or 0), f"{command} {options.data}") as shown:
        for seed in range(options.seeds):
            for row in rows_of(options, pruning, seed, folder.path, lambda where: tick(shown, where)):
                record["rows"].append(row)
                record["summary"] = report.summarized(record["rows"])
                folder.write(record)
    folder.write({**record, "complete": True})
    drawn = report.pictures(record, folder.path)
    show = log if as_json else print_result
    show(report.table(record))
    show(f"\nrecord    {folder.path / RECORD}")
    show(f"pictures  {' '.join(str(path) for path in drawn)}")
    if as_json:
        print_result(json.dumps({"command": command, "data": options.data, "summary": record["summary"]}))
