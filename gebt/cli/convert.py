"""The command `gebt convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import App

from gebt.cli.console import log, print_result, progress_bar
from gebt.cli.flags import AsJson, Flag
from gebt.data.mapped.convert import convert
from gebt.data.mapped.mapped_graph import open_mapped
from gebt.experiments.option_groups import DATA


def add_to(app: App) -> None:
    """Adds the command to `app`."""
    app.command(convert_command, name="convert")


def convert_command(
    source: str,
    target: Path,
    /,
    *,
    memory_gib: Annotated[float, DATA] = 1.0,
    ogb: Annotated[str | None, DATA] = None,
    force: Flag = False,
    as_json: AsJson = False,
) -> None:
    """Writes a graph of any size as memory-mapped files, for training batch by batch.

    Args:
        source: A folder of plain files, a folder of OGB, or the name of a data set.
        target: The folder to write.
        memory_gib: Memory to work in, besides a few numbers for each node; the result does not depend on it.
        ogb: Name of the OGB data set in the folder, where the folder is named otherwise.
        force: Replace the mapped graph in the folder.
        as_json: Print one JSON object to standard output, everything else to standard error.
    """
    with progress_bar(1, f"convert {source}", unit="row") as shown:

        def progress(step: str, done: int, total: int) -> None:
            shown.set_postfix_str(step, refresh=False)
            shown.total, shown.n = total, done
            shown.refresh() if done == total else shown.update(0)

        convert(source, target, memory=int(memory_gib * 2**30), force=force, ogb=ogb, progress=progress)
    graph = open_mapped(target)
    size = sum(file["bytes"] for file in graph.header.files.values())
    show = log if as_json else print_result
    show(f"{target}: {graph.num_nodes} nodes, {graph.num_pairs} pairs, {graph.num_features} features, {size} bytes")
    if as_json:
        counts = {"nodes": graph.num_nodes, "pairs": graph.num_pairs, "features": graph.num_features, "bytes": size}
        more = {"classes": graph.num_classes, "structure": graph.structure, "fingerprint": graph.fingerprint}
        print_result(json.dumps({"command": "convert", "data": source, "target": str(target), **counts, **more}))
