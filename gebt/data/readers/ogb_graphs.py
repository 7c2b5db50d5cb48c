"""What is learnt on a set of OGB: the classes or tasks of its nodes, or its links."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gebt.data.readers.ogb import OgbGraph
from gebt.data.readers.reading import RawGraph, known_labels, reading
from gebt.graph.graph import Graph, GraphError, canonical_graph, checked_features, undirected_pairs
from gebt.graph.links import LinkGraph
from gebt.graph.metrics import Metric, Target
from gebt.sparse.memory import check_room


def ogb_graph(found: OgbGraph) -> Graph:
    """The canonical graph of a node set, measured as OGB does; one-way edges are read as undirected.

    One label a node is its class; many tasks of two classes are a "multilabel" target. Nodes without features get the
    mean of those of their edges, as in OGB's example for ogbn-proteins. Raises `GraphError` for any other set.
    """
    raw, info = raw_graph(found), found.info
    outputs = info.classes if raw.target == "class" else info.tasks
    graph = canonical_graph(
        info.name,
        raw.edge_index,
        raw.features,
        raw.labels,
        found.masks(),
        outputs,
        to_undirected=True,
        target=raw.target,
    )
    return replace(graph, metric=_METRICS[info.metric, raw.target])


def ogb_links(found: OgbGraph) -> LinkGraph:
    """The link task of a set: its training edges, its held-out edges and negatives, its metric.

    Edges of several years are one pair; weights and years are not read. A pair that is held out for a later year may be
    a training edge too, as published. Raises `GraphError` for a set of nodes, or without features or negatives.
    """
    info, nodes = found.info, found.num_nodes
    held = [found.links.get(part, {}).get(name) for part in ("valid", "test") for name in ("edge", "edge_neg")]
    if found.features is None or any(part is None for part in held):
        lacking = "no features" if found.features is None else "no edges and negatives of valid and test"
        raise GraphError(f"set {info.name!r} (got {lacking}), expected both to predict links")
    none, labels = torch.zeros(nodes, dtype=torch.bool), torch.zeros(nodes, dtype=torch.long)
    pairs, notes = undirected_pairs(info.name, found.links["train"]["edge"].t(), nodes, to_undirected=True)
    features = checked_features(info.name, found.features, nodes)
    val, val_negatives, test, test_negatives = (part.t().long().contiguous() for part in held if part is not None)
    return LinkGraph(
        info.name, pairs, features, labels, none, none, none, 1, tuple(notes), info.metric,  # type: ignore[arg-type]
        val_edges=val, val_negatives=val_negatives, test_edges=test, test_negatives=test_negatives,
    )  # fmt: skip


_METRICS: dict[tuple[str, Target], Metric] = {
    ("acc", "class"): "accuracy", ("rocauc", "class"): "roc_auc", ("rocauc", "multilabel"): "mean_roc_auc",
    ("acc", "multilabel"): "micro_f1",
}  # fmt: skip
# About what bringing a directed entry to canonical form takes at once.
_BYTES_AN_EDGE = 64


def raw_graph(found: OgbGraph) -> RawGraph:
    """What `ogb_graph` makes a canonical graph of."""
    info, edge_features = found.info, found.edge.get("edge_feat")
    features = found.features
    if features is None and edge_features is not None:
        features = _mean_of_edges(found, edge_features)
    if features is None or found.labels is None or (info.tasks > 1 and info.classes != 2):
        got = f"{info.tasks} tasks of {info.classes} classes, {info.features} features of nodes and "
        got += f"{info.edge_features} of edges"
        raise GraphError(
            f"set {info.name!r} (got {got}), expected features and one label a node, or tasks of two classes; "
            "use read_ogb"
        )
    check_room(f"graph {info.name!r}", _BYTES_AN_EDGE * found.edges.shape[1], torch.device("cpu"))
    masks = found.masks()
    if info.tasks > 1:
        return RawGraph(found.edges, features, found.labels, masks, "multilabel")
    with reading(Path(info.name), "labels of all nodes of the split"):
        return RawGraph(found.edges, features, known_labels(found.labels[:, 0], masks), masks)


def _mean_of_edges(found: OgbGraph, edge_features: Tensor) -> Tensor:
    """[N, F]: the mean over the edges at each node, both ends of an edge alike; 0 where there is none."""
    total = torch.zeros(found.num_nodes, edge_features.shape[1])
    for ends in found.edges:
        total.index_add_(0, ends, edge_features.float())
    count = torch.bincount(found.edges.flatten(), minlength=found.num_nodes)
    return total / count.clamp(min=1)[:, None]
