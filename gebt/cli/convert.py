"""The command `gebt convert`."""

from __future__ import annotations

import json
from pathlib import Path

from cyclopts import App

from gebt.cli.console import log, print_result, progress_bar
from gebt.cli.flags import AsJson, Flag
from gebt.data.mapped.convert import convert
from gebt.data.mapped.mapped_graph import open_mapped


def add_to(app: App) -> None:
    """Makes it a command of `app`."""
    app.command(convert_command, name="convert")


def convert_command(
    source: str,
    target: Path,
    /,
    *,
    memory_gib: float = 1.0,
    ogb: str | None = None,
    force: Flag = False,
    as_json: AsJson = False,
) -> None:
    """Writes a graph of any size as a folder that is mapped, of which training reads a batch at a time.

    Parameters
    ----------
    source
        A folder of plain files, a folder of OGB, or the name of a data set.
    target
        The folder to write.
    memory_gib
        Memory to work in, beside a few numbers a node; the result does not depend on it.
    ogb
        Which of OGB's sets the folder is, where its name does not tell.
    force
        Replace the mapped graph that is there.
    as_json
        Print one JSON object on standard output, everything else on standard error.
    """
    with progress_bar(1, f"convert {source}", unit="row") as shown:

        def progress(step: str, done: int, whole: int) -> None:
            shown.set_postfix_str(step, refresh=False)
            shown.total, shown.n = whole, done
            shown.refresh() if done == whole else shown.update(0)

        convert(source, target, memory=int(memory_gib * 2**30), force=force, ogb=ogb, progress=progress)
    graph = open_mapped(target)
    size = sum(file["bytes"] for file in graph.header.files.values())
    tell = log if as_json else print_result
    tell(f"{target}: {graph.num_nodes} nodes, {graph.num_pairs} pairs, {graph.num_features} features, {size} bytes")
    if as_json:
        told = {"nodes": graph.num_nodes, "pairs": graph.num_pairs, "features": graph.num_features, "bytes": size}
        told |= {"classes": graph.num_classes, "structure": graph.structure, "fingerprint": graph.fingerprint}
        print_result(json.dumps({"command": "convert", "data": source, "target": str(target), **told}))
