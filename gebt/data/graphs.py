"""Graphs by name: looked up or downloaded, read, checked against the manifest, in canonical form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from gebt.data.fetch.archive import check_sums, check_unchanged, fetch_folder, is_there
from gebt.data.fetch.download import download_file, sha256_of
from gebt.data.graph_folds import fold_of
from gebt.data.manifest import CHECKOUT_DATASETS, PUBLISHED, DatasetInfo, FileInfo, dataset_info, dataset_names
from gebt.data.readers.digits import read_digits
from gebt.data.readers.folder import read_folder
from gebt.data.readers.heterophilous import read_heterophilous
from gebt.data.readers.npz import read_npz
from gebt.data.readers.ogb import needed_files, read_ogb
from gebt.data.readers.ogb_graphs import ogb_links, raw_graph
from gebt.data.readers.ogb_sets import OGB
from gebt.data.readers.planetoid import read_planetoid
from gebt.data.readers.pyg_sets import FILES, read_pyg_set
from gebt.data.readers.reading import RawGraph, row_scaled
from gebt.data.readers.splits import seeded_split
from gebt.data.readers.tu import read_graph_dataset
from gebt.data.surrogate import generate
from gebt.graph.graph import Graph, GraphError, canonical_graph
from gebt.sparse.pattern import SparseMatrix


def load_graph(
    name: str,
    root: str | Path | None = None,
    *,
    split_seed: int = 0,
    download: bool = True,
    to_undirected: bool = False,
) -> Graph:
    """The data set `name`, or the custom graph in the folder of that path, in canonical form.

    A surrogate has no files: it is generated at every call. A link set of OGB is a `LinkGraph`.

    Args:
        name: one of `dataset_names()`, or the path of a folder laid out as `gebt.data.readers.folder` says.
        root: folder of the raw files of named data sets; default `data_root()`.
        split_seed: draws the split, or is its number where the files hold several. Data sets with a public split have
            only seed 0; a set of graphs for graph classification is its fold of that number (`gebt.data.graph_folds`).
        download: whether missing files are downloaded and verified.
        to_undirected: accepts one-way edges also where the manifest expects none.

    Returns:
        The graph, its counts those of the manifest.

    Raises:
        GraphError: for an unknown name, missing or unsound files, or counts other than the manifest's.

    Example:
        >>> graph = load_graph("digits")
        >>> graph.num_nodes, graph.num_pairs, graph.num_features, graph.num_classes
        (1797, 9929, 64, 10)
        >>> int(graph.train_mask.sum()), graph.metric
        (50, 'accuracy')
    """
    info = dataset_info(name)
    if info.surrogate is not None:
        return generate(info.surrogate, info.seed, name, split_seed)
    if info.task == "links":
        folder = data_root(root) / info.folder
        _require_folder(info, folder, download)
        return ogb_links(read_ogb(folder, info.name))
    if info.split == "fixed" and not 0 <= split_seed < info.splits:
        raise GraphError(f"split seed (got {split_seed}), expected 0 to {info.splits - 1}, the splits of {name!r}")
    if info.format == "graphs":
        folder = data_root(root) / info.folder
        _require_files(info, folder, download=False)  # the archive of the folds has no address to download from
        fold = fold_of(read_graph_dataset(folder), split_seed)
        _check_counts(fold, fold.labels, info)
        return replace(fold, name=info.name, metric=info.metric)
    raw = _read(info, data_root(root), download, split_seed)
    masks = _masks(info, raw, split_seed)
    features = raw.features
    if info.features_scaling == "row" and isinstance(features, SparseMatrix):
        features = row_scaled(features)
    one_way = to_undirected or info.one_way_edges
    classes = info.classes or None
    graph = canonical_graph(info.name, raw.edge_index, features, raw.labels, masks, classes, one_way, raw.target)
    if info.format == "folder":
        return graph
    if info.format != "ogb":  # the reader of OGB has checked the counts already
        _check_counts(graph, raw.labels, info)
    return replace(graph, metric=info.metric)


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the raw files: `root`, else $GEBT_DATA, else `datasets/` of a checkout, else the user's cache.

    Args:
        root: a folder that takes precedence; a leading ~ is expanded.

    Returns:
        The folder, whether it is there or not.

    Example:
        >>> data_root("/data/graphs").as_posix()
        '/data/graphs'
    """
    chosen = root or os.environ.get("GEBT_DATA")
    if chosen:
        return Path(chosen).expanduser()
    # Only with the manifest: next to an installed package `datasets` may be an unrelated folder.
    if (CHECKOUT_DATASETS / "manifest.toml").is_file():
        return CHECKOUT_DATASETS
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gebt"


def check_dataset(name: str, root: str | Path | None = None) -> list[tuple[Path, str]]:
    """Each raw file of a data set and its status.

    A file that differs can still load: other releases hold the same arrays in other bytes; not so one that came in a
    zip file, whose sha256 was stored.

    Args:
        name: one of `dataset_names()`, or the path of a folder.
        root: folder of the raw files; default `data_root()`.

    Returns:
        Pairs of path and "present", "missing" or "sha256 differs"; none for data sets that are embedded or generated.

    Example:
        >>> check_dataset("digits")
        []
        >>> [(path.name, status) for path, status in check_dataset("amazon-photo", "/nowhere")]
        [('amazon_electronics_photo.npz', 'missing')]
    """
    info = dataset_info(name)
    folder = data_root(root) / info.folder
    sums = check_sums(folder)
    statuses = [(folder / name, sums.get(name) or _there(folder / name)) for name in _needed(info)]
    statuses += [(folder / name, status) for name, status in sums.items() if name not in _needed(info)]
    return statuses + [(folder / file.name, _status(file, folder / file.name)) for file in info.files]


def check_folder(folder: str | Path) -> str:
    """The counts of the custom graph in a folder (`gebt.data.readers.folder`), in one line, after reading all of it.

    Args:
        folder: the folder; a leading ~ is expanded.

    Returns:
        Nodes, pairs, features and classes, sizes of the split, and what canonical form changed.

    Raises:
        GraphError: naming the file and what is wrong with it.

    Example:
        >>> import tempfile
        >>> from gebt.data import save_graph_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_folder(save_graph_folder(folder, load_graph("digits")))
        '1797 nodes, 9929 pairs, 64 features, 10 classes; 50 training, 300 validation, 1447 test nodes; ...'
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise GraphError(f"folder (got {str(folder)!r}), expected one that is there")
    graph = load_graph(str(path.resolve()))  # absolute: never the name of a data set
    kind = {"class": "classes", "multilabel": "tasks", "regression": "number a node"}[graph.target]
    counts = {"nodes": graph.num_nodes, "pairs": graph.num_pairs, "features": graph.num_features}
    parts = {"training": graph.train_mask, "validation": graph.val_mask, "test": graph.test_mask}
    sizes = [f"{count} {what}" for what, count in counts.items()] + [f"{graph.num_classes} {kind}"]
    split = ", ".join(f"{int(mask.sum())} {part}" for part, mask in parts.items())
    return "; ".join((", ".join(sizes), f"{split} nodes", *graph.notes))


def names_here(root: str | Path | None = None) -> tuple[str, ...]:
    """All data sets but the large ones of which nothing has been downloaded.

    Args:
        root: folder of the raw files; default `data_root()`.

    Returns:
        Names, in the manifest's order.
    """
    infos = map(dataset_info, dataset_names())
    return tuple(i.name for i in infos if i.format not in PUBLISHED or is_there(data_root(root) / i.folder))


def _needed(info: DatasetInfo) -> Sequence[str]:
    """The files that a set which comes as a folder must hold."""
    if info.format == "ogb":
        return needed_files(OGB[info.name])
    return FILES[info.name] if info.format == "pyg" else ()


def _there(path: Path) -> str:
    return "present" if path.is_file() else "missing"


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
    if info.format in PUBLISHED:
        _require_folder(info, folder, download)
        return raw_graph(read_ogb(folder, info.name)) if info.format == "ogb" else read_pyg_set(info.name, folder)
    _require_files(info, folder, download)
    if info.format == "planetoid":
        return read_planetoid(folder, info.name)
    path = folder / info.files[0].name
    return read_heterophilous(path, split) if info.format == "heterophilous" else read_npz(path)


def _require_folder(info: DatasetInfo, folder: Path, download: bool) -> None:
    """Downloads the folder of a data set that comes as one archive, or checks that it is as downloaded."""
    if is_there(folder):
        check_unchanged(folder)
        return
    address = OGB[info.name].address if info.format == "ogb" else info.archive
    by_hand = f"by hand, make {folder} of {address or info.source}"
    if not download or not address:
        raise GraphError(f"data set {info.name!r} (got no folder {folder}), expected its files there; {by_hand}")
    try:
        fetch_folder(address, folder)
    except GraphError as error:
        raise GraphError(f"{error}; {by_hand}") from error


def _require_files(info: DatasetInfo, folder: Path, download: bool) -> None:
    """Downloads the files that a data set still lacks."""
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
    counts = {
        "nodes": graph.num_nodes,
        "pairs": graph.num_pairs,
        "features": graph.num_features,
        "classes": int(labels.max()) + 1 if graph.target == "class" else graph.num_classes,
    }
    for what, count in counts.items():
        if what == "pairs" and info.format in PUBLISHED:
            continue
        if count != getattr(info, what):
            raise GraphError(
                f"{what} of {info.name!r} (got {count}), expected {getattr(info, what)}; "
                "the files are not those of the manifest: 'gebt data check' tells which, delete it and load again"
            )
