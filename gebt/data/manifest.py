"""The typed entries of `datasets/manifest.toml`: counts, splits, files and settings of every data set."""

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

# What is learned: labels of nodes, missing links, or labels of graphs.
TaskName = Literal["nodes", "links", "graphs"]

CHECKOUT_DATASETS = Path(__file__).parents[2] / "datasets"


@dataclass(frozen=True)
class FileInfo:
    """One raw file of a data set.

    Attributes:
        name: file name in the data set's folder.
        bytes: exact size.
        sha256: hexadecimal digest.
        url: address it is downloaded from.
    """

    name: str
    bytes: int
    sha256: str
    url: str


@dataclass(frozen=True)
class RecordedSettings:
    """The settings a network starts from on a data set.

    Attributes:
        hidden: width H of the hidden layers.
        depth: number of layers.
        dropout: dropout rate of the layers.
        learning_rate: of the optimizer.
        weight_decay: of the optimizer.
        epochs: length of a training.
        input_dropout: dropout rate of the features, where it is not that of the layers.
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
    """One data set: the counts of its canonical graph, its split and scaling, and where its files are.

    Attributes:
        name: what `load_graph` takes.
        title: a line for people.
        format: which reader reads it; "graphs": labels and splits (folds) are of many small graphs; "folder": a custom
            graph, of which nothing is known before it is read, so that all counts are 0.
        folder: relative to the data root, or the path of the folder of a custom graph.
        nodes: N.
        pairs: P, undirected edges without self-loops; of a data set in a `PUBLISHED` format the publisher's count,
            repeats included.
        features: F.
        classes: C.
        split: "public": one, in the files; "fixed": several, in the files; "seeded": drawn by seed.
        features_scaling: "row": every row divided by its sum.
        license: of the data.
        source: where the data set is described.
        training: settings a network starts from.
        files: raw files, where they come one by one.
        train_per_class: training nodes of each class of a "seeded" split, else 0.
        val_per_class: validation nodes of each class of a "seeded" split, else 0.
        one_way_edges: whether the files name some edges in one direction only and mean both.
        surrogate: what to generate where `format` is "surrogate".
        seed: seed to generate it with.
        splits: number of splits where `split` is "fixed".
        metric: what is measured.
        archive: address of the zip file that becomes `folder`, where files do not come one by one; such data sets are
            large, and not looked for unless named.
        task: what is learned: "nodes", "links" or "graphs".
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


# Formats whose `pairs` in the manifest are the publisher's counts of edges.
PUBLISHED = ("ogb", "pyg")
_CUSTOM: dict[str, Any] = {
    "title": "a custom graph",
    "format": "folder",
    **dict.fromkeys(("nodes", "pairs", "features", "classes"), 0),
    "split": "public",
    "features_scaling": "none",
    "license": "not stated",
    "source": "the folder",
    "training": RecordedSettings(hidden=64, depth=2, dropout=0.5, learning_rate=0.01, weight_decay=5e-4, epochs=200),
    "one_way_edges": True,
}


def dataset_names() -> tuple[str, ...]:
    """The names `load_graph` knows, in the manifest's order.

    Returns:
        Names of data sets.

    Example:
        >>> dataset_names()[:4]
        ('digits', 'cora', 'citeseer', 'pubmed')
    """
    return tuple(_manifest())


def dataset_info(name: str) -> DatasetInfo:
    """The manifest's entry of one data set, or the entry of the custom graph in the folder `name`.

    Args:
        name: one of `dataset_names()`, or the path of a folder (`gebt.data.readers.folder`).

    Returns:
        The entry.

    Raises:
        GraphError: for an unknown name, with the nearest ones.

    Example:
        >>> info = dataset_info("cora")
        >>> info.nodes, info.pairs, info.features, info.classes, info.split
        (2708, 5278, 1433, 7, 'public')
    """
    known = _manifest()
    if name not in known:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return DatasetInfo(name=folder.resolve().name, folder=str(folder), **_CUSTOM)
        near = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise GraphError(
            f"data set (got {name!r}), expected one of {', '.join(known)}, or a folder; {hint}see 'gebt data list'"
        )
    return known[name]


def manifest_path() -> Path:
    """The manifest next to this module in an installed package, else that of the checkout.

    Returns:
        Path of manifest.toml.
    """
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
