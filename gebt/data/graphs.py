"""Graphs by name: found or fetched, read, checked against the manifest, in canonical form."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gebt.data.digits import read_digits
from gebt.data.download import download_file, sha256_of
from gebt.data.fold import fold_of
from gebt.data.folder import read_folder
from gebt.data.heterophilous import read_heterophilous
from gebt.data.manifest import CHECKOUT_DATASETS, DatasetInfo, FileInfo, dataset_info
from gebt.data.npz import read_npz
from gebt.data.planetoid import read_planetoid
from gebt.data.raw import RawGraph, row_scaled
from gebt.data.splits import seeded_split
from gebt.data.surrogate import generate
from gebt.data.tu import read_graph_set
from gebt.graph.canonical import Graph, GraphError, canonical_graph
from gebt.sparse.pattern import SparseMatrix


def load_graph(
    name: str,
    root: str | Path | None = None,
    *,
    split_seed: int = 0,
    download: bool = True,
    symmetrise: bool = False,
) -> Graph:
    """The data set `name`, or the graph in the folder of that path, in canonical form.

    Files of named sets lie under `root` (default: `data_root()`), those of a folder as `gebt.data.folder` says.
    `split_seed` draws the split, or is its number where the files hold several; sets with a public split have only seed
    0, and a set of graphs is its fold of that number (`gebt.data.fold`). Missing files are downloaded and verified
    unless `download` is False. `symmetrise` accepts one-way edges also where the manifest expects none. A surrogate has
    no files: it is generated at every call. Raises `GraphError` for an unknown name, missing or unsound files, or
    counts other than the manifest's.
    """
    info = dataset_info(name)
    if info.surrogate is not None:
        return generate(info.surrogate, info.seed, name, split_seed)
    if info.split == "fixed" and not 0 <= split_seed < info.splits:
        raise GraphError(f"split seed (got {split_seed}), expected 0 to {info.splits - 1}, the splits of {name!r}")
    if info.format == "graphs":
        folder = data_root(root) / info.folder
        _complete(info, folder, download=False)  # the folds were packed by hand: no address has the archive
        fold = fold_of(read_graph_set(folder), split_seed)
        _check_counts(fold, fold.labels, info)
        return replace(fold, name=info.name, metric=info.metric)
    raw = _read(info, data_root(root), download, split_seed)
    masks = _masks(info, raw, split_seed)
    features = raw.features
    if info.features_scaling == "row" and isinstance(features, SparseMatrix):
        features = row_scaled(features)
    one_way = symmetrise or info.one_way_edges
    graph = canonical_graph(info.name, raw.edge_index, features, raw.labels, masks, info.classes or None, one_way)
    if info.format != "folder":
        _check_counts(graph, raw.labels, info)
    return replace(graph, metric=info.metric)


def data_root(root: str | Path | None = None) -> Path:
    """Where raw files lie: `root`, else $GEBT_DATA, else `datasets/` of a checkout, else the user's cache."""
    chosen = root or os.environ.get("GEBT_DATA")
    if chosen:
        return Path(chosen).expanduser()
    # The manifest is the proof: beside an installed package `datasets` may be somebody else's.
    if (CHECKOUT_DATASETS / "manifest.toml").is_file():
        return CHECKOUT_DATASETS
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gebt"


def check_dataset(name: str, root: str | Path | None = None) -> list[tuple[Path, str]]:
    """Each raw file of a data set and its status: "present", "missing" or "sha256 differs".

    A file that differs can still load: other releases hold the same arrays in other bytes. Sets that are embedded or
    generated have no files.
    """
    info = dataset_info(name)
    folder = data_root(root) / info.folder
    return [(folder / file.name, _status(file, folder / file.name)) for file in info.files]


def _status(file: FileInfo, path: Path) -> str:
    if not path.is_file():
        return "missing"
    return "present" if sha256_of(path) == file.sha256 else "sha256 differs"


def _read(info: DatasetInfo, root: Path, download: bool, split: int) -> RawGraph:
    if info.format == "digits":
        return read_digits()
    if info.format == "folder":
        return read_folder(Path(info.folder))
    folder = root / info.folder
    _complete(info, folder, download)
    if info.format == "planetoid":
        return read_planetoid(folder, info.name)
    path = folder / info.files[0].name
    return read_heterophilous(path, split) if info.format == "heterophilous" else read_npz(path)


def _complete(info: DatasetInfo, folder: Path, download: bool) -> None:
    missing = [file for file in info.files if not (folder / file.name).is_file()]
    if not missing:
        return
    by_hand = f"; place by hand in {folder}:" + "".join(f"\n  {file.name} from {file.url}" for file in missing)
    if not download:
        names = ", ".join(file.name for file in missing)
        raise GraphError(f"data set {info.name!r} (got no {names}), expected {len(info.files)} files{by_hand}")
    for file in missing:
        try:
            download_file(file, folder)
        except GraphError as error:
            raise GraphError(f"{error}{by_hand}") from error


def _masks(info: DatasetInfo, raw: RawGraph, split_seed: int) -> tuple[Tensor, Tensor, Tensor]:
    if info.split == "seeded":
        per_class = info.train_per_class, info.val_per_class
        return seeded_split(info.name, raw.labels, info.classes, *per_class, seed=split_seed)
    if info.split == "fixed" and raw.masks is not None:
        return raw.masks
    if split_seed or raw.masks is None:
        raise GraphError(f"split seed (got {split_seed}), expected 0: {info.name!r} has one public split")
    return raw.masks


def _check_counts(graph: Graph, labels: Tensor, info: DatasetInfo) -> None:
    found = {
        "nodes": graph.num_nodes,
        "pairs": graph.num_pairs,
        "features": graph.num_features,
        "classes": int(labels.max()) + 1,
    }
    for what, count in found.items():
        if count != getattr(info, what):
            raise GraphError(
                f"{what} of {info.name!r} (got {count}), expected {getattr(info, what)}; "
                "the files are not those of the manifest: 'gebt data check' tells which, delete it and load again"
            )
