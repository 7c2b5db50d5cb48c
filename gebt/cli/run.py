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
from gebt.experiments.option_groups import RUN
from gebt.experiments.options import RunOptions
from gebt.experiments.record import MODEL, RECORD, RunFolder, read_record
from gebt.experiments.setup import DrawLog, epochs_of, find_tickets, graph_for, graphs_for, groups, model_for, opening
from gebt.recipes import retrain
from gebt.sparse import backends
from gebt.sparse.precision import using
from gebt.ticket import Ticket
from gebt.train.processes import processes

Options = Annotated[RunOptions, Parameter(name="*")]


def add_to(app: App) -> None:
    """Adds the commands to `app`."""
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
    """Finds, retrains and measures tickets, against dense and random networks.

    Args:
        out: Run folder; default: a new one under runs/.
        as_json: Print one JSON object to standard output, everything else to standard error.
        force: Replace the run in the folder.
        resume: Continue the run with --batching in the folder, after its last checkpoint.
    """
    chosen = (options or RunOptions()).resolved()
    if compare_in_batches.wanted(chosen):
        _run_in_batches(chosen, out, as_json, force, compare_in_batches.resumes(resume))
        return
    if resume:
        raise ValueError("--resume (got it without --batching), expected --batching: other runs have no checkpoints")
    resolved, folder = _prepare(chosen, out, force, "")
    with progress_bar(epochs_of(resolved), f"{resolved.dataset}, {resolved.seeds} seed(s)") as shown:
        record = run(resolved, folder, lambda variant, seed: tick(shown, f"seed {seed} {variant}"))
    _show_run(resolved, record, folder, as_json)


def _run_in_batches(options: RunOptions, out: Path | None, as_json: bool, force: bool, resume: bool) -> None:
    """A run batch by batch, in this process or all that torchrun started; the first one prints."""
    if options.batching is None:
        options = dataclasses.replace(options, batching="cluster").resolved()
    _set_up(options)
    with processes(options.device, options.timeout) as ranks:
        if out is None and ranks.count > 1:
            raise ValueError("--out (got none under torchrun), expected a folder, which a restart finds again")
        path = out or RunFolder.named(_stem(options, ""))
        folder = compare_in_batches.open_folder(options, path, ranks, force, resume)
        what = f"{options.dataset}, {options.seeds} seed(s), {ranks.count} process(es)"
        with progress_bar(epochs_of(options), what) if ranks.first else nullcontext() as shown:
            on_epoch = (
                (lambda variant, seed: tick(shown, f"seed {seed} {variant}"))
                if shown is not None
                else lambda variant, seed: None
            )
            record = compare_in_batches.run(options, folder, ranks, on_epoch)
        if ranks.first:
            _show_run(options, record, folder, as_json)


def _show_run(resolved: RunOptions, record: dict[str, Any], folder: RunFolder, as_json: bool) -> None:
    drawn = report.pictures(record, folder.path)
    show = log if as_json else print_result
    show(report.table(record))
    show(f"\nrecord    {folder.path / RECORD}")
    show(f"pictures  {' '.join(str(path) for path in drawn)}")
    if as_json:
        print_result(json.dumps(_summary_of(resolved, record)))


def search_command(
    options: Options | None = None, *, out: Out = None, as_json: AsJson = False, force: Flag = False
) -> None:
    """Finds tickets, one for each seed, and saves them.

    Args:
        out: Folder of the tickets; default: a new one under runs/.
        as_json: Print one JSON object to standard output, everything else to standard error.
        force: Replace the run in the folder.
    """
    resolved, folder = _prepare(options, out, force, "-search")
    folder.write_config(resolved.to_json())
    rows: list[dict[str, Any]] = []
    searched: list[dict[str, Any]] = []
    draws = DrawLog()
    epochs = resolved.seeds * resolved.max_epochs  # type: ignore[operator]
    with progress_bar(epochs, f"search {resolved.dataset}") as shown, using(resolved.precision, resolved.device):
        for seeds in groups(resolved):
            graphs = graphs_for(resolved, seeds)
            models = [model_for(resolved, graph, seed) for graph, seed in zip(graphs, seeds, strict=True)]
            on_epoch = lambda number, *_, group=seeds: tick(shown, f"seed {group[number]}")  # noqa: E731
            watch = None if rows else draws
            for seed, ticket in zip(seeds, find_tickets(resolved, graphs, models, seeds, watch, on_epoch), strict=True):
                path = ticket.save(folder.ticket(seed, resolved.seeds))
                rows.append({"ticket": str(path), "seed": seed, **_ticket_facts(ticket)})
                searched.append({"seed": seed, "ticket": {**rows[-1], "trajectory": ticket.provenance["trajectory"]}})
            folder.write(
                {
                    **opening(resolved, graphs[0], complete=len(rows) == resolved.seeds),
                    "per_seed": searched,
                    "pairwise": draws.pairwise(),
                }
            )
    report.pictures(read_record(folder.path), folder.path)
    _show(rows, as_json)


def retrain_command(
    ticket: Path,
    /,
    options: Options | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
) -> None:
    """Trains a ticket on its graph, without the pruned edges and weights.

    Args:
        ticket: A ticket.safetensors. Data set, network and settings must be those of its search.
        out: Folder of the result; default: a new one under runs/.
        as_json: Print one JSON object to standard output, everything else to standard error.
        force: Replace the run in the folder.
    """
    loaded = Ticket.load(ticket)
    seed = loaded.provenance["seed"]
    resolved, folder = _prepare(options, out, force, "-retrain")
    graph = graph_for(resolved, seed)
    model = model_for(resolved, graph, seed)
    epochs: Any = resolved.retrain_epochs
    with progress_bar(epochs, f"retrain {resolved.dataset}") as shown, using(resolved.precision, resolved.device):
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
    repeats: Annotated[int, RUN] = 3,
    out: Out = None,
    as_json: AsJson = False,
    force: Flag = False,
) -> None:
    """Measures time, memory and energy of a ticket, against the dense network and PyG.

    Args:
        ticket: A ticket.safetensors. Data set, network and settings must be those of its search.
        repeats: How often full runs are timed.
        out: Folder of the result; default: a new one under runs/.
        as_json: Print one JSON object to standard output, everything else to standard error.
        force: Replace the run in the folder.
    """
    from gebt.experiments.bench import bench  # PyG, which it measures too, takes seconds to import

    Ticket.load(ticket)  # its errors come before a folder is made
    resolved, folder = _prepare(options, out, force, "-bench")
    measured, graph = bench(resolved, ticket, repeats, lambda what: log(f"bench {resolved.dataset}: {what}"))
    folder.write_config(resolved.to_json())
    record = {**opening(resolved, graph, complete=True), "ticket": str(ticket), "bench": measured}
    folder.write(record)
    drawn = report.bench_picture(record, folder.path)
    show = log if as_json else print_result
    show(report.bench_table(record))
    show(f"\nrecord    {folder.path / RECORD}")
    show(f"picture   {drawn}")
    if as_json:
        print_result(json.dumps({"dataset": resolved.dataset, "ticket": str(ticket), **measured}))


def _prepare(options: RunOptions | None, out: Path | None, force: bool, kind: str) -> tuple[RunOptions, RunFolder]:
    resolved = (options or RunOptions()).resolved()
    if resolved.batching is not None:
        raise ValueError(
            f"--batching (got {resolved.batching!r}), expected none: 'gebt{kind.replace('-', ' ')}' works on the whole "
            "graph; 'gebt run --batching ...' searches and retrains in batches"
        )
    _set_up(resolved)
    graph_for(resolved, 0)  # its errors come before a folder is made
    return resolved, RunFolder(out or RunFolder.named(_stem(resolved, kind)), force=force)


def _set_up(options: RunOptions) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    backends.use(options.backend)


def _stem(options: RunOptions, kind: str) -> str:
    name = dataset_info(options.dataset).name
    return f"{name}-g{100 * options.edge_ratio:g}-w{100 * options.weight_ratio:g}{kind}"


def _summary_of(options: RunOptions, record: dict[str, Any]) -> dict[str, Any]:
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
