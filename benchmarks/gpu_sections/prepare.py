"""The background process that makes the large graphs while the device is busy with other sections."""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path

import torch

from gebt.data import load_graph
from gebt.data.manifest import dataset_info
from gebt.data.surrogate import generate
from gebt.graph import Graph

LARGE = ("ogbn-arxiv-surrogate", "reddit-surrogate")
# Nodes, pairs and features of a rehearsal.
SMALL = (150, 600, 12)


def prepare(folder: Path, pretend: bool) -> None:
    """Writes the graphs to NAME.pt in the folder; a failure is left there as the file "failed".

    Args:
        folder: exists.
        pretend: graphs of a rehearsal, with the skews of the large ones.
    """
    torch.set_num_threads(1)
    try:
        for name in LARGE:
            graph = _small(name) if pretend else load_graph(name)
            fields = {field.name: getattr(graph, field.name) for field in dataclasses.fields(graph)}
            torch.save(fields, folder / f"{name}.part")
            (folder / f"{name}.part").rename(folder / f"{name}.pt")
    except Exception:
        (folder / "failed").write_text(traceback.format_exc())
        raise


def _small(name: str) -> Graph:
    spec = dataset_info(name).surrogate
    assert spec is not None
    nodes, pairs, features = SMALL
    more = {"nodes": nodes, "pairs": pairs, "features": features, "classes": 5, "split_sizes": None}
    return generate(dataclasses.replace(spec, **more), 0, name)
