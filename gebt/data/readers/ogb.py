"""Reader of the folders of the Open Graph Benchmark (Hu et al. 2020), without its package and without pickles."""

from __future__ import annotations

import math
import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.data.readers.npz import arrays_of
from gebt.data.readers.ogb_sets import OGB, OgbSet
from gebt.data.readers.reading import UnsafeFileError, check_nodes, indices_mask, reading, single
from gebt.data.readers.tables import read_numbers, read_table
from gebt.graph.graph import GraphError
from gebt.sparse.pattern import INT32_LIMIT

PARTS = ("train", "valid", "test")
UNKNOWN = -1
MOST_EDGES = 1 << 36
_ROWS = 1 << 16


@dataclass(frozen=True, eq=False)
class OgbGraph:
    """A data set of OGB as read from its files.

    Attributes:
        info: description of the data set.
        edges: [2, E] int64, in the files' order; where the set is `both_ways`, each undirected edge once.
        num_nodes: N.
        features: [N, F] float32, where the set has any.
        labels: [N, T] int64, `UNKNOWN` where there is none; None in a link set.
        node: further columns of nodes by name, [N, k], int64 where all of it is, else float32.
        edge: further columns of edges by name, [E, k], likewise.
        split: numbers of nodes, by part.
        links: by part "edge" [n, 2], and as the files have them "weight", "year" [n] and "edge_neg" [m, 2].
    """

    info: OgbSet
    edges: Tensor
    num_nodes: int
    features: Tensor | None = None
    labels: Tensor | None = None
    node: dict[str, Tensor] = field(default_factory=dict)
    edge: dict[str, Tensor] = field(default_factory=dict)
    split: dict[str, Tensor] = field(default_factory=dict)
    links: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def masks(self) -> tuple[Tensor, Tensor, Tensor]:
        """The split as masks.

        Returns:
            Train, validation and test masks, each [N] bool.
        """
        train, valid, test = (indices_mask(part, self.split[part].numpy(), self.num_nodes) for part in PARTS)
        return train, valid, test


def read_ogb(folder: str | Path, info: OgbSet | str) -> OgbGraph:
    """The data set in a folder of OGB's layout, with `raw` and `split` in it.

    Only the files that the set has are opened, none as an unrestricted pickle, and none further than the numbers of
    nodes and edges, which come first, allow.

    Args:
        folder: the folder.
        info: a name of `OGB`, or the description of another data set.

    Returns:
        The data set.

    Raises:
        GraphError: naming file and row, for what is missing, cut short, out of range, not finite or in two parts of
            the split.
        OutOfRoomError: before more is allocated than is free.

    Source:
        Hu et al. 2020, "Open Graph Benchmark".
    """
    info = ogb_set(info) if isinstance(info, str) else info
    folder = Path(folder)
    check_files(folder, info)
    content = _read_binary(folder / "raw", info) if info.binary else _read_csv(folder / "raw", info)
    at = folder / "split" / info.split
    if info.links:
        return OgbGraph(
            info, **content, links={part: _links(at / f"{part}.pt", content["num_nodes"]) for part in PARTS}
        )
    graph = OgbGraph(
        info, **content, split={part: split_part(at / f"{part}.csv.gz", content["num_nodes"]) for part in PARTS}
    )
    with reading(at, "a split"):
        masks = graph.masks()
        twice = (masks[0].int() + masks[1].int() + masks[2].int() > 1).nonzero()
        if len(twice):
            raise ValueError(f"{len(twice)} nodes in two parts, the first of them {int(twice[0])}")
    return graph


def ogb_set(name: str) -> OgbSet:
    """The description of a data set of OGB.

    Args:
        name: one of `OGB`.

    Returns:
        The description.

    Raises:
        GraphError: for a name that `OGB` has not.
    """
    if name not in OGB:
        raise GraphError(f"set (got {name!r}), expected one of {', '.join(OGB)}, or an OgbSet that describes it")
    return OGB[name]


def needed_files(info: OgbSet) -> list[str]:
    """The files of a data set that are read.

    Args:
        info: description of the data set.

    Returns:
        Paths in its folder.
    """
    columns = [*(["node-feat"] if info.features else []), *(["edge-feat"] if info.edge_features else [])]
    labels = [] if info.links else ["node-label"]
    if info.binary:
        needed = ["raw/data.npz", *(f"raw/{name}.npz" for name in labels)]
    else:
        names = ("edge", "num-node-list", "num-edge-list", *columns, *labels, *info.edge_more)
        needed = [f"raw/{name}.csv.gz" for name in names]
    return needed + [f"split/{info.split}/{part}.{'pt' if info.links else 'csv.gz'}" for part in PARTS]


def check_files(folder: Path, info: OgbSet) -> None:
    """Checks that all files are there.

    Args:
        folder: folder of the data set.
        info: description of the data set.

    Raises:
        GraphError: naming all that are missing.
    """
    missing = [name for name in needed_files(info) if not (folder / name).is_file()]
    if missing:
        hint = f"; unpack {info.address}, whose folder this is" if info.address else ""
        raise GraphError(f"folder {folder} (got no {', '.join(missing)}), expected OGB's files of {info.name!r}{hint}")


def _read_csv(raw: Path, info: OgbSet) -> dict[str, Any]:
    nodes = declared_count(raw / "num-node-list.csv.gz", "nodes", info.nodes, INT32_LIMIT)
    edges = declared_count(raw / "num-edge-list.csv.gz", "edges", info.edges, MOST_EDGES)
    path = raw / "edge.csv.gz"
    pairs = read_table(path, np.int64, cols=2, rows=edges, most=edges)
    with reading(path, "edges"):
        check_nodes("edges", pairs, nodes)
    node = {name: read_numbers(_csv(raw, name), rows=nodes, most=nodes) for name in info.node_more}
    edge = {name: read_numbers(_csv(raw, name), rows=edges, most=edges) for name in info.edge_more}
    if info.edge_features:
        path = raw / "edge-feat.csv.gz"
        edge["edge_feat"] = read_table(path, np.float32, cols=info.edge_features, rows=edges, most=edges)
    features = labels = None
    if info.features:
        path = raw / "node-feat.csv.gz"
        features = read_table(path, np.float32, cols=info.features, rows=nodes, most=nodes)
    if not info.links:
        path = raw / "node-label.csv.gz"
        labels = labels_in_range(path, read_table(path, np.int64, cols=info.tasks, rows=nodes, most=nodes), info)
    return _tensors(pairs.T, nodes, features, labels, node, edge)


def _csv(raw: Path, name: str) -> Path:
    path = raw / f"{name}.csv.gz"
    # As ogbn-proteins was published; OGB renames the file when it reads it.
    return raw / "species.csv.gz" if name == "node_species" and not path.is_file() else path


def declared_count(path: Path, what: str, expected: int, most: int) -> int:
    """The one number in a text, checked as `checked_count` does.

    Args:
        path: the file.
        what: what is counted.
        expected: the count, 0 for any.
        most: largest count.

    Returns:
        The count.
    """
    return checked_count(path, what, read_table(path, np.int64, cols=1, rows=1, most=1), expected, most)


def checked_count(path: Path, what: str, counts: NDArray[Any], expected: int, most: int) -> int:
    """The one number in an array.

    Args:
        path: file it is from.
        what: what is counted.
        counts: the array.
        expected: the count, 0 for any.
        most: largest count.

    Returns:
        The count.

    Raises:
        GraphError: where it is none, above `most`, or not `expected`.
    """
    if counts.size != 1 or counts.dtype.kind not in "iu" or not 0 <= counts.item() <= most:
        raise GraphError(f"number of {what} in {path} (got {counts.ravel()[:3].tolist()}), expected one, up to {most}")
    if expected and counts.item() != expected:
        raise GraphError(f"number of {what} in {path} (got {counts.item()}), expected {expected}; it is another set's")
    return int(counts.item())


def _read_binary(raw: Path, info: OgbSet) -> dict[str, Any]:
    path = raw / "data.npz"
    names = [*(["node_feat"] if info.features else []), *info.node_more, *info.edge_more]
    names += ["edge_feat"] if info.edge_features else []
    needed = ("edge_index", "num_nodes_list", "num_edges_list", *names)
    with reading(path, f"the arrays {', '.join(needed)}"), zipfile.ZipFile(path) as archive:
        sizes = arrays_of(archive, needed[1:3])
        nodes = checked_count(path, "nodes", sizes["num_nodes_list"], info.nodes, INT32_LIMIT)
        edges = checked_count(path, "edges", sizes["num_edges_list"], info.edges, MOST_EDGES)
        # Row counts are known: no array may claim more than 64-bit numbers of so many columns.
        widths = 2 * edges + nodes * (info.features + len(info.node_more))
        widths += edges * (info.edge_features + len(info.edge_more))
        arrays = arrays_of(archive, ("edge_index", *names), 8 * widths + 1024 * len(needed))
        pairs = arrays.pop("edge_index")
        _expect("edge_index", pairs, (2, edges))
        check_nodes("edge_index", pairs.T, nodes)
        for name in names:
            columns = {"node_feat": info.features, "edge_feat": info.edge_features}.get(name, 1)
            _expect(name, arrays[name], (nodes if name.startswith("node_") else edges, columns))
            arrays[name] = _finite(name, arrays[name])
    labels = None if info.links else binary_labels(raw / "node-label.npz", nodes, info)
    node = {name: arrays[name] for name in info.node_more}
    edge = {name: arrays[name] for name in names if name.startswith("edge_")}
    return _tensors(pairs, nodes, arrays.get("node_feat"), labels, node, edge)


def _expect(name: str, values: NDArray[Any], shape: tuple[int, int]) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} of shape {values.shape}, expected {shape}")


def _finite(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """`values` as int64 or float32; raises with the number of the first row with anything but finite numbers."""
    if values.dtype.kind in "iu":
        return values.astype(np.int64, copy=False)
    stored = values if values.dtype == np.float32 else single(values)
    for start in range(0, len(stored), _ROWS):
        sound = np.isfinite(stored[start : start + _ROWS]).all(1)
        if not sound.all():
            raise ValueError(f"{name} with NaN or infinite numbers in row {start + int(np.argmin(sound)) + 1}")
    return stored


def binary_labels(path: Path, nodes: int, info: OgbSet) -> NDArray[Any]:
    """The labels of a binary set.

    Args:
        path: node-label.npz.
        nodes: N.
        info: description of the data set.

    Returns:
        [N, T] int64, NaN as `UNKNOWN`.

    Raises:
        GraphError: for labels that are no classes.
    """
    with reading(path, "the array node_label"), zipfile.ZipFile(path) as archive:
        labels = arrays_of(archive, ("node_label",), 8 * nodes * info.tasks + 1024)["node_label"]
        _expect("node_label", labels, (nodes, info.tasks))
        if labels.dtype.kind != "f":
            return labels_in_range(path, labels.astype(np.int64), info)
        with np.errstate(invalid="ignore"):
            classes = np.where(np.isnan(labels), UNKNOWN, labels)
            uneven = np.argwhere(~np.isfinite(classes) | (classes != np.trunc(classes)))
        if len(uneven):
            raise ValueError(f"label {classes[tuple(uneven[0])]} in row {uneven[0, 0] + 1}, expected a class or NaN")
        return labels_in_range(path, classes.astype(np.int64), info)


def labels_in_range(path: Path, labels: NDArray[Any], info: OgbSet) -> NDArray[Any]:
    """The labels, after a check.

    Args:
        path: file they are from.
        labels: [N, T] int64.
        info: description of the data set.

    Returns:
        The same labels.

    Raises:
        GraphError: naming the line of one that is no class of the set.
    """
    if not UNKNOWN <= labels.min() <= labels.max() < info.classes:
        row, task = np.argwhere((labels < UNKNOWN) | (labels >= info.classes))[0]
        got = f"label {labels[row, task]} in line {row + 1}"
        raise GraphError(f"file {path} (got {got}), expected 0 to {info.classes - 1}, or {UNKNOWN} for unknown")
    return labels


def _tensors(
    pairs: NDArray[Any],
    nodes: int,
    features: NDArray[Any] | None,
    labels: NDArray[Any] | None,
    node: dict[str, NDArray[Any]],
    edge: dict[str, NDArray[Any]],
) -> dict[str, Any]:
    return {
        "edges": torch.from_numpy(pairs.astype(np.int64, copy=False)),
        "num_nodes": nodes,
        "features": None if features is None else torch.from_numpy(features.astype(np.float32, copy=False)),
        "labels": None if labels is None else torch.from_numpy(labels),
        "node": {name: torch.from_numpy(values) for name, values in node.items()},
        "edge": {name: torch.from_numpy(values) for name, values in edge.items()},
    }


def split_part(path: Path, nodes: int) -> Tensor:
    """The nodes of one part of the split, each once.

    Args:
        path: the file.
        nodes: N.

    Returns:
        Numbers of nodes [n].
    """
    indices = read_table(path, np.int64, cols=1, most=nodes)[:, 0]
    with reading(path, "the numbers of nodes"):
        indices_mask(path.name.partition(".")[0], indices, nodes)
    return torch.from_numpy(indices)


# What a pickled numpy array of numbers names, as numpy 1 and 2 spell it; torch's own unpickler builds nothing else.
_BUILD = np.empty(0).__reduce__()[0]
_ARRAYS: list[Any] = [(_BUILD, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
_ARRAYS += [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in ("i4", "i8", "f4", "f8")}]


def _links(path: Path, nodes: int) -> dict[str, Tensor]:
    """The edges of one part of a link split, which OGB keeps as a pickled dict of arrays or tensors."""
    with reading(path, "a dict of tensors or numpy arrays"):
        try:
            with torch.serialization.safe_globals(_ARRAYS), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of protocols that it then refuses
                loaded = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's unpickler lets through whatever broken bytes make Python raise
            # Of what went wrong inside, the first sentence: the rest advises to load without this protection.
            cause = error.__context__ if isinstance(error, pickle.UnpicklingError) else error
            reason = f"{cause or 'a pickle that torch cannot read'}".split(". ")[0].partition("\n")[0]
            raise UnsafeFileError(
                f"file {path} (got: {reason}), expected only tensors and numpy arrays in pickle protocol 2; nothing "
                "else was built: delete it, or save its arrays anew as tensors with torch.save"
            ) from error
        if not isinstance(loaded, dict) or "edge" not in loaded or not all(map(_is_numbers, loaded.values())):
            raise ValueError(f"a {type(loaded).__name__}")
        part = {str(name): torch.as_tensor(values) for name, values in loaded.items()}
        for name in part.keys() & {"edge", "edge_neg"}:
            _expect(name, part[name].numpy(), (len(part[name]), 2))
            check_nodes(name, part[name].numpy(), nodes)
        for name in part.keys() - {"edge", "edge_neg"}:
            if part[name].shape != part["edge"].shape[:1] or not bool(torch.isfinite(part[name]).all()):
                raise ValueError(f"{name} of shape {tuple(part[name].shape)}, expected a finite number for each edge")
        return part


def _is_numbers(values: Any) -> bool:
    if isinstance(values, Tensor):
        return values.layout == torch.strided and not values.is_complex()
    return isinstance(values, np.ndarray) and values.dtype.kind in "iuf" and math.prod(values.shape) == values.size
