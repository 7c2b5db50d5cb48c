"""The command `gebt`: what others add to it, and inspect and data."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter
from cyclopts.config import Dict
from cyclopts.exceptions import CycloptsError

from gebt._version import __version__
from gebt.cli import convert, run
from gebt.cli import images as image_commands
from gebt.cli import sweep as sweep_commands
from gebt.cli.console import log, print_result
from gebt.cli.flags import AsJson
from gebt.data import check_dataset, check_folder, data_root, dataset_info, dataset_names, names_here
from gebt.experiments.options import RunOptions
from gebt.graph import GraphError
from gebt.graph.edges import EDGES
from gebt.sparse import backends
from gebt.sparse.memory import use_huge_pages
from gebt.ticket import Ticket
from gebt.ticket.old_names import renamed_options
from gebt.train.processes import LostProcessError

Options = Annotated[RunOptions, Parameter(name="*")]

app = App(
    name="gebt",
    help="Sparse graph + model tickets: found early, trained alone, measured in seconds.",
    version=__version__,
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False
run.add_to(app)
image_commands.add_to(app)
convert.add_to(app)
sweep_commands.add_to(app)
data = App(name="data", help="The data sets: list them, check their files.")
app.command(data)


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
    alone = isinstance(settings, dict) and settings.get("scope") == "layer"
    ranked = "each tensor ranked alone" if alone else "all masked weights ranked together"
    tensors = [_mask_row(EDGES, loaded.edge_mask[EDGES], f"pruned to edge_ratio {loaded.provenance['edge_ratio']:g}")]
    for name, tensor in loaded.state_at_draw.items():
        if name in loaded.weight_mask:
            why = f"pruned to weight_ratio {loaded.provenance['weight_ratio']:g}, {ranked}"
            tensors.append(_mask_row(name, loaded.weight_mask[name], why))
        else:
            why = "kept whole: one dimension (biases and scales are not masked)"
            tensors.append(_mask_row(name, torch.ones(tensor.shape, dtype=torch.bool), why))
    facts = {key: value for key, value in loaded.provenance.items() if key != "trajectory"}
    if as_json:
        print_result(json.dumps({**facts, "tensors": tensors}))
        return
    for key, value in facts.items():
        print_result(f"{key:13} {value}")
    for row in tensors:
        shape = " x ".join(str(size) for size in row["shape"])
        print_result(f"{row['name']:24} {shape:>14} {row['kept']:>9} kept {row['pruned']:>9} pruned   {row['why']}")


@data.command(name="list")
def data_list(*, as_json: AsJson = False) -> None:
    """Lists the data sets.

    Parameters
    ----------
    as_json
        Print one JSON object on standard output, everything else on standard error.
    """
    infos = [dataset_info(name) for name in dataset_names()]
    keys = ("name", "nodes", "pairs", "features", "classes", "split", "license")
    rows = [{key: getattr(info, key) for key in keys} for info in infos]
    if as_json:
        print_result(json.dumps(rows))
        return
    print_result(f"{'name':24}{'nodes':>10}{'pairs':>11}{'features':>10}{'classes':>9}  {'split':8} license")
    for row in rows:
        counts = f"{row['nodes']:>10}{row['pairs']:>11}{row['features']:>10}{row['classes']:>9}"
        print_result(f"{row['name']:24}{counts}  {row['split']:8} {row['license']}")


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
    log(f"under {data_root(root)}")
    for name in names or names_here(root):
        if name not in dataset_names() and Path(name).is_dir():
            try:
                print_result(f"{name:24} {'sound':15} {check_folder(name)}")
            except GraphError as error:
                print_result(f"{name:24} {'unsound':15} {error}")
                sound = False
            continue
        files = check_dataset(name, root)
        if not files:
            made = "generated" if dataset_info(name).format == "surrogate" else "embedded"
            print_result(f"{name:24} {made}")
        for path, status in files:
            sound &= status == "present"
            print_result(f"{name:24} {status:15} {path}")
    if not sound:
        raise SystemExit(1)


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(name="--config", help="JSON file of options; the shell's win.")] = None,
) -> None:
    if config is not None:
        app.config = (_options_of(config),)
    app(tokens, exit_on_error=False, print_error=False)


def _options_of(path: Path) -> Dict:
    """The options of a configuration file, also of one that 0.1.0 wrote."""
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {path} (got broken JSON: {error}), expected a JSON object of options") from error
    if not isinstance(options, dict):
        raise ValueError(f"--config {path} (got {type(options).__name__}), expected a JSON object of options")
    return Dict(renamed_options(options), use_commands_as_keys=False, source=str(path))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; a user's mistake ends in one line and exit status 2, an interrupt in 130."""
    use_huge_pages()
    _tell_choices()
    app.config = ()  # what an earlier call in this process may have set
    try:
        app.meta(list(arguments) if arguments is not None else None, exit_on_error=False, print_error=False)
    except LostProcessError as error:
        log(f"gebt: error: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
        # Not by way of destructors: torch's reducer would wait, holding the interpreter, for a thread of gloo that
        # waits for the interpreter to let go of the tensors of what was cut off.
        os._exit(2)
    except (CycloptsError, ValueError, OSError) as error:
        log(f"gebt: error: {error}")
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        log("gebt: interrupted; the seeds that were finished are on disk")
        raise SystemExit(130) from None


def _mask_row(name: str, kept: torch.Tensor, why: str) -> dict[str, Any]:
    count = int(kept.sum())
    return {"name": name, "shape": list(kept.shape), "kept": count, "pruned": kept.numel() - count, "why": why}


class _Voice(logging.Handler):
    """Says on standard error what the package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        log(record.getMessage())


def _tell_choices() -> None:
    # "auto" says which engine it takes; without the command's handler nobody would hear it.
    if not backends.log.handlers:
        backends.log.addHandler(_Voice())
        backends.log.setLevel(logging.INFO)
