"""The command `gebt`: the commands of the other modules, inspect and data."""

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
from gebt.cli.help_page import FORMATTER
from gebt.data import check_dataset, check_folder, data_root, dataset_info, dataset_names, names_here
from gebt.experiments.option_groups import DATA, RUN
from gebt.graph import GraphError
from gebt.graph.edges import EDGES
from gebt.sparse import backends
from gebt.sparse.memory import use_huge_pages
from gebt.ticket import Ticket
from gebt.ticket.old_names import renamed_options
from gebt.train.processes import LostProcessError

app = App(
    name="gebt",
    help="Sparse graph + model tickets: found early, trained alone, measured in seconds.",
    version=__version__,
    help_format="plaintext",
    help_formatter=FORMATTER,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app.meta.suppress_keyboard_interrupt = False
run.add_to(app)
image_commands.add_to(app)
convert.add_to(app)
sweep_commands.add_to(app)
data = App(name="data", help="Lists the data sets, and checks their files.")
app.command(data)


@app.command
def inspect(ticket: Path, /, *, as_json: AsJson = False) -> None:
    """Shows what a ticket keeps and prunes, tensor by tensor.

    Args:
        ticket: A ticket.safetensors.
        as_json: Print one JSON object to standard output, everything else to standard error.
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
            why = "kept: one dimension (biases and scales are not masked)"
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
    """Lists the data sets, with sizes, splits and licenses.

    Args:
        as_json: Print one JSON object to standard output, everything else to standard error.
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
def data_check(*names: str, root: Annotated[Path | None, DATA, Parameter(name="--data-root")] = None) -> None:
    """Checks the files of data sets and custom graphs.

    Raw files are compared with the manifest. The exit status is 1 where one is missing or unsound.

    Args:
        names: Data sets, or folders with a graph; default: all data sets, large ones only where they are present.
        root: Folder of the raw data; default: $GEBT_DATA.
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
    config: Annotated[
        Path | None,
        RUN,
        Parameter(name="--config", help="JSON file of options; the command line overrides it."),
    ] = None,
) -> None:
    if config is not None:
        app.config = (_options_of(config),)
    app(tokens, exit_on_error=False, print_error=False)


def _options_of(path: Path) -> Dict:
    """The options of a configuration file, also of one by version 0.1.0."""
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {path} (got broken JSON: {error}), expected a JSON object of options") from error
    if not isinstance(options, dict):
        raise ValueError(f"--config {path} (got {type(options).__name__}), expected a JSON object of options")
    return Dict(renamed_options(options), use_commands_as_keys=False, source=str(path))


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command.

    Args:
        arguments: words of the command line; default: those of the process.

    Raises:
        SystemExit: with status 2 and one line of text for a user's mistake, with 130 for an interrupt.
    """
    use_huge_pages()
    _log_backends()
    app.config = ()  # an earlier call in this process may have set one
    try:
        app.meta(list(arguments) if arguments is not None else None, exit_on_error=False, print_error=False)
    except LostProcessError as error:
        log(f"gebt: error: {error}")
        sys.stdout.flush()
        sys.stderr.flush()
        # Without destructors: torch's reducer would wait, holding the interpreter, for a thread of gloo that waits for
        # the interpreter to release the tensors of the interrupted call.
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


class _Handler(logging.Handler):
    """Prints log records of the package to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        log(record.getMessage())


def _log_backends() -> None:
    # "auto" logs which engine it takes; without a handler that would be lost.
    if not backends.log.handlers:
        backends.log.addHandler(_Handler())
        backends.log.setLevel(logging.INFO)
