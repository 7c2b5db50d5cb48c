"""Writer of folders in OGB's layout: to hand a graph to the `ogb` package, or to read it back with `read_ogb`."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gebt.data.readers.ogb import PARTS, UNKNOWN, OgbGraph, read_ogb
from gebt.data.readers.ogb_sets import OgbSet
from gebt.graph.graph import Graph, GraphError

_TASKS = {"acc": "multiclass classification", "rocauc": "binary classification"}


def write_ogb(folder: str | Path, graph: OgbGraph) -> dict[str, str]:
    """Writes a data set into a new folder in OGB's layout, and reads it back.

    float32 values are exact. With the `ogb` package, `NodePropPredDataset(name, meta_dict=...)` then reads the folder,
    once: its cache of what it read is a pickle that newer torch refuses.

    Args:
        folder: a new or an empty folder.
        graph: the data set.

    Returns:
        What ogb takes as `meta_dict`.

    Raises:
        GraphError: for a folder with files.

    Example:
        >>> import tempfile
        >>> from gebt.data import load_graph, ogb_graph
        >>> digits = load_graph("digits")
        >>> dataset = as_ogb(digits)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     meta = write_ogb(folder, dataset)
        ...     back = ogb_graph(read_ogb(folder, dataset.info))
        >>> meta["num classes"], back.fingerprint == digits.fingerprint
        ('10', True)
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise GraphError(f"folder {folder} (got one with files in it), expected a new or an empty one")
    info = graph.info
    for name in ("raw", "processed", f"split/{info.split}"):
        (folder / name).mkdir(parents=True)
    (folder / "RELEASE_v1.txt").write_text(f"# Release note for {info.name}\n\n### v1\n", encoding="ascii")
    (_write_binary if info.binary else _write_csv)(folder / "raw", graph)
    for part in PARTS:
        at = folder / "split" / info.split / part
        if info.links:
            torch.save(graph.links[part], at.with_suffix(".pt"))
        else:
            _save(at.with_suffix(".csv.gz"), graph.split[part][:, None])
    read_ogb(folder, info)
    return _meta(folder, info)


def as_ogb(graph: Graph, name: str = "ogbn-mine") -> OgbGraph:
    """A canonical graph as a node set of OGB: each pair once, dense features, a column of labels a task.

    Args:
        graph: labels are classes, or 0 and 1 in each of several tasks.
        name: of the set.

    Returns:
        The data set.

    Raises:
        GraphError: for labels that are numbers, for which OGB has no place.
    """
    if graph.target == "regression":
        raise GraphError(f"graph {graph.name!r} (got labels of the kind 'regression'), expected classes or tasks")
    features = graph.features if isinstance(graph.features, Tensor) else graph.features.to_dense()
    masks = zip(PARTS, (graph.train_mask, graph.val_mask, graph.test_mask), strict=True)
    split = {part: mask.nonzero()[:, 0] for part, mask in masks}
    many = graph.target == "multilabel"
    tasks, metric = (graph.num_classes, "rocauc") if many else (1, "acc")
    classes = 2 if many else graph.num_classes
    info = OgbSet(name, classes, graph.num_features, tasks=tasks, metric=metric, both_ways=True)
    labels = graph.labels if many else graph.labels[:, None]
    return OgbGraph(info, graph.pairs, graph.num_nodes, features, labels, split=split)


def _write_csv(raw: Path, graph: OgbGraph) -> None:
    edges = graph.edges.t()
    tables = {
        "edge": edges,
        "num-node-list": torch.tensor([[graph.num_nodes]]),
        "num-edge-list": torch.tensor([[len(edges)]]),
    }
    tables |= graph.node | {name: values for name, values in graph.edge.items() if name != "edge_feat"}
    named = {"node-feat": graph.features, "node-label": graph.labels, "edge-feat": graph.edge.get("edge_feat")}
    for name, table in (tables | {name: values for name, values in named.items() if values is not None}).items():
        _save(raw / f"{name}.csv.gz", table)


def _save(path: Path, table: Tensor) -> None:
    """Rows of numbers without a header; nine digits name every float32."""
    form = "%.9g" if table.is_floating_point() else "%d"
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as stream:
        np.savetxt(stream, table.numpy(), form, ",")


def _write_binary(raw: Path, graph: OgbGraph) -> None:
    arrays = graph.node | graph.edge | ({} if graph.features is None else {"node_feat": graph.features})
    counts = {"num_nodes_list": np.array([graph.num_nodes]), "num_edges_list": np.array([graph.edges.shape[1]])}
    columns = {name: values.numpy() for name, values in arrays.items()}
    arrays_of_edges = {"edge_index": graph.edges.numpy()} | counts | columns
    np.savez_compressed(raw / "data.npz", **arrays_of_edges)  # type: ignore[arg-type]
    if graph.labels is not None:
        labels = graph.labels.double().masked_fill(graph.labels == UNKNOWN, torch.nan)
        np.savez_compressed(raw / "node-label.npz", node_label=labels.float().numpy())


def _meta(folder: Path, info: OgbSet) -> dict[str, str]:
    """The row of OGB's master.csv, all of it text."""
    return {
        "dir_path": str(folder),
        "download_name": folder.name,
        "version": "1",
        "url": info.address,
        "num tasks": str(info.tasks),
        "num classes": str(info.classes),
        "eval metric": info.metric,
        "task type": _TASKS.get(info.metric, "link prediction"),
        "add_inverse_edge": str(info.both_ways),
        "has_node_attr": str(info.features > 0),
        "has_edge_attr": str(info.edge_features > 0),
        "split": info.split,
        "additional node files": ",".join(info.node_more) or "None",
        "additional edge files": ",".join(info.edge_more) or "None",
        "is hetero": "False",
        "binary": str(info.binary),
    }
