"""A graph that goes to PyG and comes back is the same graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch_geometric.utils import is_undirected

from gebt.data import SurrogateSpec, from_pyg, generate, to_pyg
from gebt.graph.graph import Graph, canonical_graph

SPEC = SurrogateSpec(nodes=30, pairs=60, features=8, classes=3)


def labeled(kind: str) -> Graph:
    graph = generate(SPEC, seed=1)
    if kind == "multilabel":
        tasks = torch.stack((graph.labels % 2, graph.labels // 2), 1)
        tasks[graph.test_mask.nonzero()[0]] = torch.tensor([1, -1])
        return replace(graph, labels=tasks, num_classes=2, target="multilabel", metric="mean_roc_auc")
    if kind == "regression":
        return replace(graph, labels=graph.features[:, 0].clone(), num_classes=1, target="regression", metric="r2")
    return graph


@pytest.mark.parametrize("kind", ["class", "multilabel", "regression"])
def test_a_round_trip_gives_the_same_graph(kind: str) -> None:
    graph = labeled(kind)
    back = from_pyg(to_pyg(graph), graph.name)
    assert (back.fingerprint, back.target, back.num_classes) == (graph.fingerprint, kind, graph.num_classes)


def test_sparse_features_become_dense_and_every_edge_has_both_directions() -> None:
    graph = generate(SPEC, seed=1)
    sparse = torch.eye(30, 20)
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    graph = canonical_graph("sparse", graph.pairs, sparse, graph.labels, masks, to_undirected=True)
    data = to_pyg(graph)
    assert torch.equal(data.x, sparse)
    assert data.num_edges == 2 * graph.num_pairs
    assert is_undirected(data.edge_index)
    assert from_pyg(data).fingerprint == graph.fingerprint
