"""The prediction tasks on data sets of OGB: classes or tasks of nodes, or links."""

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


def ogb_graph(dataset: OgbGraph) -> Graph:
    """The canonical graph of a node set, measured as OGB does; one-way edges are read as undirected.

    One label a node is its class; many tasks of two classes are a "multilabel" target. Nodes without features get the
    mean of those of their edges, as in OGB's example for ogbn-proteins.

    Args:
        dataset: a node set.

    Returns:
        The graph.

    Raises:
        GraphError: for any other set.
    """
    raw, info = raw_graph(dataset), dataset.info
    outputs = info.classes if raw.target == "class" else info.tasks
    graph = canonical_graph(
        info.name,
        raw.edge_index,
        raw.features,
        raw.labels,
        dataset.masks(),
        outputs,
        to_undirected=True,
        target=raw.target,
    )
    return replace(graph, metric=_METRICS[info.metric, raw.target])


def ogb_links(dataset: OgbGraph) -> LinkGraph:
    """The link task of a set: its training edges, its held-out edges and negatives, its metric.

    Edges of several years are one pair; weights and years are not read. A pair that is held out for a later year may be
    a training edge too, as published.

    Args:
        dataset: a link set.

    Returns:
        The graph of the training edges, with validation and test edges and negatives.

    Raises:
        GraphError: for a set of nodes, or without features or negatives.
    """
    info, nodes = dataset.info, dataset.num_nodes
    held_out = [dataset.links.get(part, {}).get(name) for part in ("valid", "test") for name in ("edge", "edge_neg")]
    if dataset.features is None or any(part is None for part in held_out):
        lacking = "no features" if dataset.features is None else "no edges and negatives of valid and test"
        raise GraphError(f"set {info.name!r} (got {lacking}), expected both to predict links")
    none, labels = torch.zeros(nodes, dtype=torch.bool), torch.zeros(nodes, dtype=torch.long)
    pairs, notes = undirected_pairs(info.name, dataset.links["train"]["edge"].t(), nodes, to_undirected=True)
    features = checked_features(info.name, dataset.features, nodes)
    val, val_negatives, test, test_negatives = (part.t().long().contiguous() for part in held_out if part is not None)
    return LinkGraph(
        info.name, pairs, features, labels, none, none, none, 1, tuple(notes), info.metric,  # type: ignore[arg-type]
        val_edges=val, val_negatives=val_negatives, test_edges=test, test_negatives=test_negatives,
    )  # fmt: skip


_METRICS: dict[tuple[str, Target], Metric] = {
    ("acc", "class"): "accuracy", ("rocauc", "class"): "roc_auc", ("rocauc", "multilabel"): "mean_roc_auc",
    ("acc", "multilabel"): "micro_f1",
}  # fmt: skip
# About what a directed entry takes in memory while it is brought to canonical form.
_BYTES_AN_EDGE = 64


def raw_graph(dataset: OgbGraph) -> RawGraph:
    """The node set as an unchecked graph, of which `ogb_graph` makes a canonical one.

    Args:
        dataset: a node set.

    Returns:
        The graph with its split.

    Raises:
        GraphError: for a set without features, or without labels that a network can be trained on.
    """
    info, edge_features = dataset.info, dataset.edge.get("edge_feat")
    features = dataset.features
    if features is None and edge_features is not None:
        features = _mean_of_edges(dataset, edge_features)
    if features is None or dataset.labels is None or (info.tasks > 1 and info.classes != 2):
        got = f"{info.tasks} tasks of {info.classes} classes, {info.features} features of nodes and "
        got += f"{info.edge_features} of edges"
        raise GraphError(
            f"set {info.name!r} (got {got}), expected features and one label a node, or tasks of two classes; "
            "use read_ogb"
        )
    check_room(f"graph {info.name!r}", _BYTES_AN_EDGE * dataset.edges.shape[1], torch.device("cpu"))
    masks = dataset.masks()
    if info.tasks > 1:
        return RawGraph(dataset.edges, features, dataset.labels, masks, "multilabel")
    with reading(Path(info.name), "labels of all nodes of the split"):
        return RawGraph(dataset.edges, features, known_labels(dataset.labels[:, 0], masks), masks)


def _mean_of_edges(dataset: OgbGraph, edge_features: Tensor) -> Tensor:
    """[N, F]: the mean over the edges at each node, both ends of an edge alike; 0 where there is none."""
    total = torch.zeros(dataset.num_nodes, edge_features.shape[1])
    for ends in dataset.edges:
        total.index_add_(0, ends, edge_features.float())
    count = torch.bincount(dataset.edges.flatten(), minlength=dataset.num_nodes)
    return total / count.clamp(min=1)[:, None]
