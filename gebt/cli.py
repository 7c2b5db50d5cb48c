"""The command `gebt`: run, search, retrain, bench, inspect, data."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from cyclopts.config import Json
from cyclopts.exceptions import CycloptsError
from safetensors.torch import save

from gebt import __version__, report
from gebt.comparison import run
from gebt.config import RunOptions
from gebt.data import check_dataset, check_folder, data_root, dataset_info, dataset_names, names_here
from gebt.experiment import DrawLog, epochs_of, find_tickets, graph_for, graphs_for, groups, model_for, opening
from gebt.files import write_atomically
from gebt.graph import GraphError
from gebt.image_runs import commands as image_commands
from gebt.recipes import retrain
from gebt.record import MODEL, RECORD, RunFolder, read_record
from gebt.sparse import backends
from gebt.sparse.memory import use_huge_pages
from gebt.ticket import EDGES, Ticket
from gebt.voice import advance, answer, bar, say

Options = Annotated[RunOptions, Parameter(name="*")]
Out = Annotated[Path | None, Parameter(name="--out")]
AsJson = Annotated[bool, Parameter(name="--json", negative="")]
Force = Annotated[bool, Parameter(negative="")]

app = App(
    name="gebt",
    help="Sparse graph + model tickets: found early, trained alone, measured in seconds.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False
image_commands.add_to(app)
data = App(name="data", help="The data sets: list them, check their files.")
app.command(data)


@app.command(name="run")
def run_command(
    options: Options | None = None, *, out: Out = None, as_json: AsJson = False, force: Force = False
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
    """
    resolved, folder = _prepare(options, out, force, "")
    with bar(epochs_of(resolved), f"{resolved.dataset}, {resolved.seeds} seed(s)") as shown:
        record = run(resolved, folder, lambda arm, seed: advance(shown, f"seed {seed} {arm}"))
    drawn = report.pictures(record, folder.path)
    tell = say if as_json else answer
    tell(report.table(record))
    tell(f"\nrecord    {folder.path / RECORD}")
    tell(f"pictures  {' '.join(str(path) for path in drawn)}")
    if as_json:
        answer(json.dumps(_answer(resolved, record)))


@app.command(name="search")
def search_command(
    options: Options | None = None, *, out: Out = None, as_json: AsJson = False, force: Force = False
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
    with bar(resolved.seeds * resolved.max_epochs, f"search {resolved.dataset}") as shown:  # type: ignore[operator]
        for seeds in groups(resolved):
            graphs = graphs_for(resolved, seeds)
            models = [model_for(resolved, graph, seed) for graph, seed in zip(graphs, seeds, strict=True)]
            tick = lambda number, *_, own=seeds: advance(shown, f"seed {own[number]}")  # noqa: E731
            watch = None if found else draws
            for seed, ticket in zip(seeds, find_tickets(resolved, graphs, models, seeds, watch, tick), strict=True):
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


@app.command(name="retrain")
def retrain_command(
    ticket: Path,
    /,
    options: Options | None = None,
    *,
    out: Out = None,
    as_json: AsJson = False,
    force: Force = False,
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
    with bar(resolved.retrain_epochs, f"retrain {resolved.dataset}") as shown:  # type: ignore[arg-type]
        trained = retrain.run(
            loaded, model, graph, resolved.retraining(), seed=seed, on_epoch=lambda *_: advance(shown, "")
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


@app.command(name="bench")
def bench_command(
    ticket: Path,
    /,
    options: Options | None = None,
    *,
    repeats: int = 3,
    out: Out = None,
    as_json: AsJson = False,
    force: Force = False,
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
    from gebt.bench import bench  # PyG, which it measures too, takes seconds to load

    Ticket.load(ticket)  # a ticket that cannot be read is said before a folder is made
    resolved, folder = _prepare(options, out, force, "-bench")
    found, graph = bench(resolved, ticket, repeats, lambda what: say(f"bench {resolved.dataset}: {what}"))
    folder.write_config(resolved.to_json())
    record = {**opening(resolved, graph, complete=True), "ticket": str(ticket), "bench": found}
    folder.write(record)
    drawn = report.bench_picture(record, folder.path)
    tell = say if as_json else answer
    tell(report.bench_table(record))
    tell(f"\nrecord    {folder.path / RECORD}")
    tell(f"picture   {drawn}")
    if as_json:
        answer(json.dumps({"dataset": resolved.dataset, "ticket": str(ticket), **found}))


@app.command
def inspect(ticket: Path, /, *, as_json: AsJson = False) -> None:
    """Shows every tensor of a ticket: kept, pruned, and why.

    Parameters
    ----------
    ticket
        A ticket.safetensors.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    """
    loaded = Ticket.load(ticket)
    settings = loaded.provenance.get("settings")
    alone = isinstance(settings, dict) and settings.get("scope") == "tensor"
    ranked = "each tensor ranked alone" if alone else "all masked weights ranked together"
    tensors = [_mask_row(EDGES, loaded.edge_mask[EDGES], f"pruned to edge_ratio {loaded.provenance['edge_ratio']:g}")]
    for name, tensor in loaded.drawn.items():
        if name in loaded.weight_mask:
            why = f"pruned to weight_ratio {loaded.provenance['weight_ratio']:g}, {ranked}"
            tensors.append(_mask_row(name, loaded.weight_mask[name], why))
        else:
            why = "kept whole: one dimension (biases and scales are not masked)"
            tensors.append(_mask_row(name, torch.ones(tensor.shape, dtype=torch.bool), why))
    facts = {key: value for key, value in loaded.provenance.items() if key != "trajectory"}
    if as_json:
        answer(json.dumps({**facts, "tensors": tensors}))
        return
    for key, value in facts.items():
        answer(f"{key:13} {value}")
    for row in tensors:
        shape = " x ".join(str(size) for size in row["shape"])
        answer(f"{row['name']:24} {shape:>14} {row['kept']:>9} kept {row['pruned']:>9} pruned   {row['why']}")


@data.command(name="list")
def data_list(*, as_json: AsJson = False) -> None:
    """Lists the data sets.

    Parameters
    ----------
    as_json
        Print one JSON object on standard output, everything else on standard error.
    """
    infos = [dataset_info(name) for name in dataset_names()]
    keys = ("name", "nodes", "pairs", "features", "classes", "split", "licence")
    rows = [{key: getattr(info, key) for key in keys} for info in infos]
    if as_json:
        answer(json.dumps(rows))
        return
    answer(f"{'name':24}{'nodes':>10}{'pairs':>11}{'features':>10}{'classes':>9}  {'split':8} licence")
    for row in rows:
        counts = f"{row['nodes']:>10}{row['pairs']:>11}{row['features']:>10}{row['classes']:>9}"
        answer(f"{row['name']:24}{counts}  {row['split']:8} {row['licence']}")


@data.command(name="check")
def data_check(*names: str, root: Annotated[Path | None, Parameter(name="--data-root")] = None) -> None:
    """Checks raw files against the manifest, and folders of your own; exits with 1 when one is missing or unsound.

    Parameters
    ----------
    names
        Data sets, or folders with a graph; default: all data sets, of the large ones those that are there.
    root
        Folder of the raw data; default $GEBT_DATA.
    """
    sound = True
    say(f"under {data_root(root)}")
    for name in names or names_here(root):
        if name not in dataset_names() and Path(name).is_dir():
            try:
                answer(f"{name:24} {'sound':15} {check_folder(name)}")
            except GraphError as error:
                answer(f"{name:24} {'unsound':15} {error}")
                sound = False
            continue
        files = check_dataset(name, root)
        if not files:
            made = "generated" if dataset_info(name).format == "surrogate" else "embedded"
            answer(f"{name:24} {made}")
        for path, status in files:
            sound &= status == "present"
            answer(f"{name:24} {status:15} {path}")
    if not sound:
        raise SystemExit(1)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(name="--config", help="JSON file of options; the shell's win.")] = None,
) -> None:
    if config is not None:
        app.config = (Json(config, must_exist=True, use_commands_as_keys=False),)
    app(tokens, exit_on_error=False, print_error=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; a user's mistake ends in one line and exit status 2, an interrupt in 130."""
    use_huge_pages()
    _tell_choices()
    app.config = ()  # what an earlier call in this process may have set
    try:
        app.meta(list(arguments) if arguments is not None else None, exit_on_error=False, print_error=False)
    except (CycloptsError, ValueError, OSError) as error:
        say(f"gebt: error: {error}")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        say("gebt: interrupted; the seeds that were finished are on disk")
        raise SystemExit(130) from None


def _prepare(options: RunOptions | None, out: Path | None, force: bool, kind: str) -> tuple[RunOptions, RunFolder]:
    resolved = (options or RunOptions()).resolved()
    if resolved.threads is not None:
        torch.set_num_threads(resolved.threads)
    backends.use(resolved.backend)
    graph_for(resolved, 0)  # data that cannot be had is said before a folder is made
    stem = (
        f"{dataset_info(resolved.dataset).name}-g{100 * resolved.edge_ratio:g}-w{100 * resolved.weight_ratio:g}{kind}"
    )
    return resolved, RunFolder(out or RunFolder.named(stem), force=force)


def _answer(options: RunOptions, record: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": options.dataset, "seeds": options.seeds, **record["summary"]}


def _ticket_facts(ticket: Ticket) -> dict[str, Any]:
    return {
        "epoch_drawn": ticket.epoch_drawn,
        "fired": ticket.fired,
        "edge_sparsity": ticket.edge_sparsity,
        "weight_sparsity": ticket.weight_sparsity,
    }


def _mask_row(name: str, kept: torch.Tensor, why: str) -> dict[str, Any]:
    count = int(kept.sum())
    return {"name": name, "shape": list(kept.shape), "kept": count, "pruned": kept.numel() - count, "why": why}


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        answer(json.dumps(rows[0] if len(rows) == 1 else {"tickets": rows}))
        return
    for row in rows:
        answer("\n".join(f"{key:16} {value}" for key, value in row.items()))


class _Voice(logging.Handler):
    """Says on standard error what the package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _tell_choices() -> None:
    # "auto" says which engine it takes; without the command's handler nobody would hear it.
    if not backends.log.handlers:
        backends.log.addHandler(_Voice())
        backends.log.setLevel(logging.INFO)
