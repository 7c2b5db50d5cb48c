"""Readers of the raw files of PyTorch Geometric's PPI, Reddit and Flickr, as its classes lay them under `raw`.

They are npy, npz and JSON files, of which no pickle is opened; the classes read the same from them.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.data.readers.npz import arrays_of, read_npy
from gebt.data.readers.reading import RawGraph, check_nodes, csr_entries, indices_mask, known_labels, reading, single
from gebt.graph.graph import GraphError
from gebt.sparse.memory import check_room

PPI_PARTS = ("train", "valid", "test")
FILES = {
    "ppi": tuple(
        f"{part}_{name}" for part in PPI_PARTS for name in ("feats.npy", "graph_id.npy", "graph.json", "labels.npy")
    ),
    "reddit": ("reddit_data.npz", "reddit_graph.npz"),
    "flickr": ("adj_full.npz", "feats.npy", "class_map.json", "role.json"),
}
# About how many bytes Python's objects of a JSON text take for each of its bytes.
_JSON_BYTES = 12


def read_pyg_set(name: str, folder: Path) -> RawGraph:
    """PPI, Reddit or Flickr from its raw files.

    Args:
        name: "ppi", "reddit" or "flickr".
        folder: where the files of `FILES` are.

    Returns:
        The graph with its split.

    Raises:
        GraphError: naming the file, for what is missing, cut short, or does not fit the others.
    """
    missing = [file for file in FILES[name] if not (folder / file).is_file()]
    if missing:
        raise GraphError(f"folder {folder} (got no {', '.join(missing)}), expected PyG's raw files of {name!r}")
    return {"ppi": _read_ppi, "reddit": _read_reddit, "flickr": _read_flickr}[name](folder)


def _read_ppi(folder: Path) -> RawGraph:
    """All 24 graphs of PPI (Zitnik & Leskovec 2017) side by side as one; the parts of its split are full graphs.

    `*_graph_id.npy` has the graph of each node; a link between two of them is refused.
    """
    parts = [_ppi_part(folder, part) for part in PPI_PARTS]
    nodes = [len(features) for _, features, _ in parts]
    firsts = np.cumsum([0, *nodes[:-1]])
    edges = np.concatenate([edges + first for (edges, _, _), first in zip(parts, firsts, strict=True)])
    features = np.concatenate([features for _, features, _ in parts])
    labels = np.concatenate([labels for _, _, labels in parts])
    of_part = torch.repeat_interleave(torch.arange(3), torch.tensor(nodes))
    masks = (of_part == 0, of_part == 1, of_part == 2)
    return RawGraph(torch.from_numpy(edges).t(), _dense(features), torch.from_numpy(labels), masks, "multilabel")


def _ppi_part(folder: Path, part: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    features, graph = read_npy(folder / f"{part}_feats.npy"), read_npy(folder / f"{part}_graph_id.npy")
    nodes = len(graph) if graph.ndim else 0
    labels_at = folder / f"{part}_labels.npy"
    labels = read_npy(labels_at)
    with reading(labels_at, f"0 or 1 in each task, a row for each of {nodes} nodes, as features and graph_id have"):
        if graph.shape != (nodes,) or graph.dtype.kind not in "iu" or features.ndim != 2 or labels.ndim != 2:
            raise ValueError(f"arrays of shapes {features.shape}, {graph.shape}, {labels.shape}")
        if not len(features) == len(labels) == nodes:
            raise ValueError(f"{len(labels)} labels, {len(features)} rows of features")
        if not np.isin(labels, (0, 1)).all():
            raise ValueError(f"label {labels[~np.isin(labels, (0, 1))][0]}")
    path = folder / f"{part}_graph.json"
    links = _json(path)
    with reading(path, f"a graph of {nodes} nodes as networkx writes it, its links within graphs"):
        edges = np.array([(link["source"], link["target"]) for link in links["links"]]).reshape(-1, 2)
        check_nodes("links", edges, nodes)
        across = np.flatnonzero(graph[edges[:, 0]] != graph[edges[:, 1]])
        if across.size:
            raise ValueError(f"link {edges[across[0]].tolist()} between two graphs")
    return edges.astype(np.int64), features, labels.astype(np.int64)


def _read_reddit(folder: Path) -> RawGraph:
    """Reddit (Hamilton et al. 2017): node_types 1, 2 and 3 are the parts of its split."""
    path = folder / "reddit_data.npz"
    with reading(path, "features, labels and node_types, one row a node"), zipfile.ZipFile(path) as archive:
        data = arrays_of(archive, ("feature", "label", "node_types"))
        features, labels, kinds = data.values()
        nodes = len(features)
        if features.ndim != 2 or labels.shape != (nodes,) or kinds.shape != (nodes,) or labels.dtype.kind not in "iu":
            raise ValueError(f"arrays {features.shape}, {labels.dtype} {labels.shape}, {kinds.shape}")
        masks = tuple(torch.from_numpy(kinds == number) for number in (1, 2, 3))
        known = known_labels(torch.from_numpy(labels.astype(np.int64)), masks)  # type: ignore[arg-type]
    path = folder / "reddit_graph.npz"
    with reading(path, f"a COO matrix of {nodes} rows and columns"), zipfile.ZipFile(path) as archive:
        entries = arrays_of(archive, ("row", "col", "shape"))
        if entries["shape"].tolist() != [nodes, nodes] or entries["row"].shape != entries["col"].shape:
            raise ValueError(f"a matrix {entries['shape'].tolist()}, rows {entries['row'].shape}")
        for name in ("row", "col"):
            check_nodes(name, entries[name], nodes)
        edges = torch.from_numpy(np.stack((entries["row"], entries["col"])).astype(np.int64))
    return RawGraph(edges, _dense(features), known, masks)  # type: ignore[arg-type]


def _read_flickr(folder: Path) -> RawGraph:
    """Flickr as in GraphSAINT (Zeng et al. 2020): a CSR matrix, features, classes and the split by name."""
    features = read_npy(folder / "feats.npy")
    nodes = len(features) if features.ndim == 2 else 0
    path = folder / "adj_full.npz"
    with reading(path, f"a CSR matrix of {nodes} rows and columns, one for each of feats.npy"):
        with zipfile.ZipFile(path) as archive:
            arrays = arrays_of(archive, ("indices", "indptr", "shape"))
        if arrays["shape"].tolist() != [nodes, nodes]:
            raise ValueError(f"a matrix {arrays['shape'].tolist()}")
        edges = torch.stack(csr_entries(arrays["indptr"], arrays["indices"], (nodes, nodes)))
    path = folder / "role.json"
    roles = _json(path)
    with reading(path, "the nodes of the parts tr, va and te"):
        masks = tuple(indices_mask(part, np.array(roles[part]), nodes) for part in ("tr", "va", "te"))
    path = folder / "class_map.json"
    classes = _json(path)
    with reading(path, f"a class for each of {nodes} nodes"):
        numbers = np.array([int(node) for node in classes])
        check_nodes("class_map", numbers, nodes)
        labels = torch.full((nodes,), -1)
        labels[torch.from_numpy(numbers)] = torch.from_numpy(_integers(list(classes.values())))
        known = known_labels(labels, masks)  # type: ignore[arg-type]
    return RawGraph(edges, _dense(features), known, masks)  # type: ignore[arg-type]


def _json(path: Path) -> dict[str, Any]:
    check_room(f"content of {path}", _JSON_BYTES * path.stat().st_size, torch.device("cpu"))
    with reading(path, "an object in JSON"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        return content


def _integers(values: list[Any]) -> NDArray[np.int64]:
    classes = np.array(values)
    if classes.ndim != 1 or classes.dtype.kind not in "iu":
        raise ValueError(f"classes {classes.dtype} {classes.shape}")
    return classes.astype(np.int64)


def _dense(features: NDArray[Any]) -> Tensor:
    return torch.from_numpy(single(features))
