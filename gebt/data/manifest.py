"""What `datasets/manifest.toml` says of each data set, typed."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from gebt.data.surrogate import SurrogateSpec
from gebt.graph.graph import GraphError
from gebt.graph.metrics import Metric

# What is learnt on a graph: what its nodes are, or which links it lacks.
TaskName = Literal["nodes", "links", "graphs"]

CHECKOUT_DATASETS = Path(__file__).parents[2] / "datasets"


@dataclass(frozen=True)
class FileInfo:
    """One raw file: its name in the data set's folder, its exact size and sha256, and where it can be had."""

    name: str
    bytes: int
    sha256: str
    url: str


@dataclass(frozen=True)
class RecordedSettings:
    """The settings a model starts from on this data set; `depth` counts layers.

    `input_dropout`: the rate for the features where it is not that of the layers.
    """

    hidden: int
    depth: int
    dropout: float
    learning_rate: float
    weight_decay: float
    epochs: int
    input_dropout: float | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """One data set: what its canonical graph must count, how it is split and scaled, where its files lie.

    `folder` is relative to the data root, or where `format` is "folder" a graph of the user's own, of which nothing is
    known before: counts of 0. `archive`: the zip file that becomes `folder`, where it does not come file by file; such
    sets are large, and not looked for unless named. `pairs` are undirected edges without self-loops; of a set in
    `PUBLISHED` formats those that its publisher counts, whatever is repeated among them. `train_per_class`
    and `val_per_class` are 0 where `split` is "public". `one_way_edges`: the files name some edges in one
    direction only and mean both. `splits`: how many the files hold where `split` is "fixed". `metric`: what is
    measured, `task`: what is learnt. `surrogate`: what to generate with `seed` where `format` is "surrogate". Where
    that is "graphs", labels and splits (folds) are of many small graphs.
    """

    name: str
    title: str
    format: Literal["digits", "planetoid", "npz", "heterophilous", "graphs", "surrogate", "folder", "ogb", "pyg"]
    folder: str
    nodes: int
    pairs: int
    features: int
    classes: int
    split: Literal["public", "seeded", "fixed"]
    features_scaling: Literal["row", "none"]
    license: str
    source: str
    training: RecordedSettings
    files: tuple[FileInfo, ...] = ()
    train_per_class: int = 0
    val_per_class: int = 0
    one_way_edges: bool = False
    surrogate: SurrogateSpec | None = None
    seed: int = 0
    splits: int = 1
    metric: Metric = "accuracy"
    archive: str = ""
    task: TaskName = "nodes"


# Formats of which the manifest has the publisher's counts of edges.
PUBLISHED = ("ogb", "pyg")
_OWN: dict[str, Any] = {
    "title": "a graph of your own",
    "format": "folder",
    **dict.fromkeys(("nodes", "pairs", "features", "classes"), 0),
    "split": "public",
    "features_scaling": "none",
    "license": "your own",
    "source": "the folder",
    "training": RecordedSettings(hidden=64, depth=2, dropout=0.5, learning_rate=0.01, weight_decay=5e-4, epochs=200),
    "one_way_edges": True,
}


def dataset_names() -> tuple[str, ...]:
    """The names `load_graph` knows, in the manifest's order."""
    return tuple(_manifest())


def dataset_info(name: str) -> DatasetInfo:
    """The manifest's entry of one data set, else that of the folder at the path `name` (`gebt.data.readers.folder`).

    Raises `GraphError` for an unknown name, with the nearest ones.
    """
    known = _manifest()
    if name not in known:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return DatasetInfo(name=folder.resolve().name, folder=str(folder), **_OWN)
        near = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise GraphError(
            f"data set (got {name!r}), expected one of {', '.join(known)}, or a folder; {hint}see 'gebt data list'"
        )
    return known[name]


def manifest_path() -> Path:
    """The manifest beside this module in an installed package, else the one of the checkout."""
    packaged = Path(__file__).with_name("manifest.toml")
    return packaged if packaged.is_file() else CHECKOUT_DATASETS / "manifest.toml"


@cache
def _manifest() -> dict[str, DatasetInfo]:
    tables = tomllib.loads(manifest_path().read_text(encoding="utf-8"))
    return {name: _entry(name, table) for name, table in tables.items()}


def _entry(name: str, table: dict[str, Any]) -> DatasetInfo:
    files = tuple(FileInfo(**file) for file in table.pop("files", ()))
    training = RecordedSettings(**table.pop("training"))
    surrogate = _surrogate(table, table.pop("surrogate")) if table["format"] == "surrogate" else None
    return DatasetInfo(name=name, files=files, training=training, surrogate=surrogate, **table)


def _surrogate(table: dict[str, Any], skews: dict[str, Any]) -> SurrogateSpec:
    counts = {what: table[what] for what in ("nodes", "pairs", "features", "classes")}
    return SurrogateSpec(**counts, **skews | {"split_sizes": tuple(skews["split_sizes"])})
