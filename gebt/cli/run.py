"""The commands `gebt run`, `gebt search`, `gebt retrain` and `gebt bench`."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from safetensors.torch import save

from gebt._files import write_atomically
from gebt.cli.console import log, print_result, progress_bar, tick
from gebt.cli.flags import AsJson, Flag, Out
from gebt.data import dataset_info
from gebt.experiments import compare_in_batches, report
from gebt.experiments.compare import run
from gebt.experiments.options import RunOptions
from gebt.experiments.record import MODEL, RECORD, RunFolder, read_record
from gebt.experiments.setup import DrawLog, epochs_of, find_tickets, graph_for, graphs_for, groups, model_for, opening
from gebt.recipes import retrain
from gebt.sparse import backends
from gebt.ticket import Ticket
from gebt.train.processes import processes

Options = Annotated[RunOptions, Parameter(name="*")]


def add_to(app: App) -> None:
    """Makes them commands of `app`."""
    app.command(run_command, name="run")
    app.command(search_command, name="search")
    app.command(retrain_command, name="retrain")
    app.command(bench_command, name="bench")


def run_command(
    options: Options | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
    resume: Flag = False,
) -> None:
    """Finds, retrains and measures tickets beside dense and random ones, seed by seed.

    Parameters
    ----------
    out
        Run folder; default: a new one under runs/.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    force
        Replace the run that the folder holds.
    resume
        Go on with the run in batches that the folder holds, after its last checkpoint.
    """
    given = (options or RunOptions()).resolved()
    if compare_in_batches.wanted(given):
        _run_in_batches(given, out, as_json, force, compare_in_batches.goes_on(resume))
        return
    if resume:
        raise ValueError("--resume (got it without --batching), expected --batching: other runs have no checkpoints")
    resolved, folder = _prepare(given, out, force, "")
    with progress_bar(epochs_of(resolved), f"{resolved.dataset}, {resolved.seeds} seed(s)") as shown:
        record = run(resolved, folder, lambda variant, seed: tick(shown, f"seed {seed} {variant}"))
    _tell_run(resolved, record, folder, as_json)


def _run_in_batches(options: RunOptions, out: Path | None, as_json: bool, force: bool, resume: bool) -> None:
    """A run batch by batch, by this process and those that torchrun has started beside it; the first one speaks."""
    if options.batching is None:
        options = dataclasses.replace(options, batching="cluster").resolved()
    _set_up(options)
    with processes(options.device, options.timeout) as own:
        if out is None and own.count > 1:
            raise ValueError("--out (got none under torchrun), expected a folder, which a restart finds again")
        path = out or RunFolder.named(_stem(options, ""))
        folder = compare_in_batches.open_folder(options, path, own, force, resume)
        what = f"{options.dataset}, {options.seeds} seed(s), {own.count} process(es)"
        with progress_bar(epochs_of(options), what) if own.first else nullcontext() as shown:
            told = (
                (lambda variant, seed: tick(shown, f"seed {seed} {variant}"))
                if shown is not None
                else lambda variant, seed: None
            )
            record = compare_in_batches.run(options, folder, own, told)
        if own.first:
            _tell_run(options, record, folder, as_json)


def _tell_run(resolved: RunOptions, record: dict[str, Any], folder: RunFolder, as_json: bool) -> None:
    drawn = report.pictures(record, folder.path)
    tell = log if as_json else print_result
    tell(report.table(record))
    tell(f"\nrecord    {folder.path / RECORD}")
    tell(f"pictures  {' '.join(str(path) for path in drawn)}")
    if as_json:
        print_result(json.dumps(_answer(resolved, record)))


def search_command(
    options: Options | None = None, *, out: Out = None, as_json: AsJson = False, force: Flag = False
) -> None:
    """Finds tickets, one a seed, and writes them.

    Parameters
    ----------
    out
        Folder of the tickets; default: a new one under runs/.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    force
        Replace the run that the folder holds.
    """
    resolved, folder = _prepare(options, out, force, "-search")
    folder.write_config(resolved.to_json())
    found: list[dict[str, Any]] = []
    searched: list[dict[str, Any]] = []
    draws = DrawLog()
    with progress_bar(resolved.seeds * resolved.max_epochs, f"search {resolved.dataset}") as shown:  # type: ignore[operator]
        for seeds in groups(resolved):
            graphs = graphs_for(resolved, seeds)
            models = [model_for(resolved, graph, seed) for graph, seed in zip(graphs, seeds, strict=True)]
            on_epoch = lambda number, *_, group=seeds: tick(shown, f"seed {group[number]}")  # noqa: E731
            watch = None if found else draws
            for seed, ticket in zip(seeds, find_tickets(resolved, graphs, models, seeds, watch, on_epoch), strict=True):
                path = ticket.save(folder.ticket(seed, resolved.seeds))
                found.append({"ticket": str(path), "seed": seed, **_ticket_facts(ticket)})
                searched.append({"seed": seed, "ticket": {**found[-1], "trajectory": ticket.provenance["trajectory"]}})
            folder.write(
                {
                    **opening(resolved, graphs[0], complete=len(found) == resolved.seeds),
                    "per_seed": searched,
                    "pairwise": draws.pairwise(),
                }
            )
    report.pictures(read_record(folder.path), folder.path)
    _show(found, as_json)


def retrain_command(
    ticket: Path,
    /,
    options: Options | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
) -> None:
    """Trains a ticket on the graph it was found on, its pruned edges and weights gone.

    Parameters
    ----------
    ticket
        A ticket.safetensors. Data set, network and settings must be those of its search.
    out
        Folder of the result; default: a new one under runs/.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    force
        Replace the run that the folder holds.
    """
    loaded = Ticket.load(ticket)
    seed = loaded.provenance["seed"]
    resolved, folder = _prepare(options, out, force, "-retrain")
    graph = graph_for(resolved, seed)
    model = model_for(resolved, graph, seed)
    with progress_bar(resolved.retrain_epochs, f"retrain {resolved.dataset}") as shown:  # type: ignore[arg-type]
        trained = retrain.run(
            loaded, model, graph, resolved.retraining(), seed=seed, on_epoch=lambda *_: tick(shown, "")
        )
    folder.write_config(resolved.to_json())
    result = {
        "ticket": str(ticket),
        "seed": seed,
        "accuracy": trained.test_accuracy,
        "best_epoch": trained.best_epoch,
        **_ticket_facts(loaded),
    }
    write_atomically(folder.path / MODEL, save(model.state_dict()))
    history = {name: getattr(trained.history, name) for name in ("losses", "val_accuracy", "test_accuracy")}
    folder.write({**opening(resolved, graph, complete=True), "retrained": result, "history": history})
    report.pictures(read_record(folder.path), folder.path)
    _show([result], as_json)


def bench_command(
    ticket: Path,
    /,
    options: Options | None = None,
    *,
    repeats: int = 3,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
) -> None:
    """Measures a ticket, masked and compacted, beside the dense network and PyG: work, seconds, memory, bytes, joules.

    Parameters
    ----------
    ticket
        A ticket.safetensors. Data set, network and settings must be those of its search.
    repeats
        Rounds of whole runs.
    out
        Folder of the result; default: a new one under runs/.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    force
        Replace the run that the folder holds.
    """
    from gebt.experiments.bench import bench  # PyG, which it measures too, takes seconds to load

    Ticket.load(ticket)  # a ticket that cannot be read is said before a folder is made
    resolved, folder = _prepare(options, out, force, "-bench")
    found, graph = bench(resolved, ticket, repeats, lambda what: log(f"bench {resolved.dataset}: {what}"))
    folder.write_config(resolved.to_json())
    record = {**opening(resolved, graph, complete=True), "ticket": str(ticket), "bench": found}
    folder.write(record)
    drawn = report.bench_picture(record, folder.path)
    tell = log if as_json else print_result
    tell(report.bench_table(record))
    tell(f"\nrecord    {folder.path / RECORD}")
    tell(f"picture   {drawn}")
    if as_json:
        print_result(json.dumps({"dataset": resolved.dataset, "ticket": str(ticket), **found}))


def _prepare(options: RunOptions | None, out: Path | None, force: bool, kind: str) -> tuple[RunOptions, RunFolder]:
    resolved = (options or RunOptions()).resolved()
    _set_up(resolved)
    graph_for(resolved, 0)  # data that cannot be had is said before a folder is made
    return resolved, RunFolder(out or RunFolder.named(_stem(resolved, kind)), force=force)


def _set_up(options: RunOptions) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    backends.use(options.backend)


def _stem(options: RunOptions, kind: str) -> str:
    name = dataset_info(options.dataset).name
    return f"{name}-g{100 * options.edge_ratio:g}-w{100 * options.weight_ratio:g}{kind}"


def _answer(options: RunOptions, record: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": options.dataset, "seeds": options.seeds, **record["summary"]}


def _ticket_facts(ticket: Ticket) -> dict[str, Any]:
    return {
        "epoch_drawn": ticket.epoch_drawn,
        "fired": ticket.fired,
        "edge_sparsity": ticket.edge_sparsity,
        "weight_sparsity": ticket.weight_sparsity,
    }


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_result(json.dumps(rows[0] if len(rows) == 1 else {"tickets": rows}))
        return
    for row in rows:
        print_result("\n".join(f"{key:16} {value}" for key, value in row.items()))
