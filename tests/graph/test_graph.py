from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gebt.graph import Graph, GraphError, canonical_graph
from gebt.graph.graph import SPARSE_FEATURE_DENSITY
from gebt.sparse import SparseMatrix

PATH = [[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]


def build(**changed: Any) -> Graph:
    """A path of four nodes, with some arguments replaced."""
    part = torch.eye(4, dtype=torch.bool)
    arguments = {
        "name": "path",
        "edge_index": torch.tensor(PATH),
        "features": torch.ones(4, 3),
        "labels": torch.tensor([0, 1, 0, 1]),
        "masks": (part[0], part[1], part[2]),
    }
    return canonical_graph(**arguments | changed)


def edges(*pairs: tuple[int, int]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.long).t().reshape(2, -1)


def both_ways(*pairs: tuple[int, int]) -> Tensor:
    return torch.cat((edges(*pairs), edges(*pairs).flip(0)), 1)


def test_pairs_stand_once_in_order_whatever_the_entries_order() -> None:
    graph = build(edge_index=torch.tensor(PATH)[:, torch.tensor([5, 3, 1, 0, 2, 4])])
    assert graph.pairs.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert graph.pairs.dtype == graph.labels.dtype == torch.long
    assert (graph.num_nodes, graph.num_pairs, graph.num_features, graph.num_classes) == (4, 3, 3, 2)
    assert graph.notes == ()


def test_self_loops_and_repeats_are_removed_and_noted() -> None:
    extra = edges((1, 1), (3, 3), (0, 1), (0, 1))
    graph = build(edge_index=torch.cat((torch.tensor(PATH), extra), 1))
    assert graph.pairs.tolist() == build().pairs.tolist()
    assert graph.notes == ("2 self-loops removed", "2 repeated entries merged")
    assert graph.fingerprint == build().fingerprint


def test_one_way_edges_are_refused_or_made_undirected_and_noted() -> None:
    one_way = torch.cat((both_ways((0, 1)), edges((3, 2), (1, 2))), 1)
    with pytest.raises(GraphError, match=r"'path' \(got 2 edges in one direction only\).*pass to_undirected=True"):
        build(edge_index=one_way)
    graph = build(edge_index=one_way, to_undirected=True)
    assert graph.pairs.tolist() == build().pairs.tolist()
    assert graph.notes == ("2 one-way edges made undirected",)


def test_a_graph_may_have_no_edges() -> None:
    assert build(edge_index=torch.empty(2, 0, dtype=torch.long)).pairs.shape == (2, 0)


@pytest.mark.parametrize("as_given", ["dense", "sparse"])
@pytest.mark.parametrize(("nonzero", "stored"), [(15, SparseMatrix), (16, Tensor)])
def test_features_are_stored_sparse_up_to_the_measured_density(nonzero: int, stored: type, as_given: str) -> None:
    dense = torch.zeros(100, dtype=torch.float64)
    dense[:nonzero] = 1 + torch.arange(nonzero)
    dense = dense.view(4, 25)
    graph = build(features=dense if as_given == "dense" else SparseMatrix.from_dense(dense))
    assert isinstance(graph.features, stored)
    back = graph.features.to_dense() if isinstance(graph.features, SparseMatrix) else graph.features
    assert torch.equal(back, dense.float())
    assert SPARSE_FEATURE_DENSITY == 0.15


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": torch.empty(0, dtype=torch.long)}, r"graph 'path' \(got 0 nodes\), expected at least one"),
        ({"edge_index": torch.zeros(3, 2, dtype=torch.long)}, r"edge index .*\(got \(3, 2\) torch.int64\)"),
        ({"edge_index": torch.zeros(2, 2)}, r"edge index .*\(got \(2, 2\) torch.float32\), expected integers"),
        ({"edge_index": edges((0, 4))}, r"edge index of 'path' \(got node 4\), expected 0 to 3"),
        ({"edge_index": edges((-1, 9))}, r"edge index of 'path' \(got node -1\), expected 0 to 3"),
        ({"features": torch.ones(3, 3)}, r"features of 'path' \(got shape \(3, 3\)\), expected \(4, F >= 1\)"),
        ({"features": torch.ones(4, 0)}, r"features of 'path' \(got shape \(4, 0\)\)"),
        ({"features": torch.ones(4)}, r"features of 'path' \(got shape \(4,\)\)"),
        ({"features": torch.full((4, 3), float("nan"))}, r"features of 'path' \(got 12 NaN or infinite values\)"),
        (
            {"features": SparseMatrix.from_dense(torch.eye(4) / torch.zeros(1))},
            r"features of 'path' \(got 16 NaN or infinite values\)",
        ),
        ({"labels": torch.zeros(4)}, r"labels of 'path' \(got \(4,\) torch.float32\), expected one integer class"),
        ({"labels": torch.zeros(4, 2, dtype=torch.long)}, r"labels of 'path' \(got \(4, 2\) torch.int64\)"),
        ({"labels": torch.tensor([0, -1, 0, 1])}, r"labels of 'path' \(got -1\), expected 0 to 1"),
        ({"num_classes": 1}, r"labels of 'path' \(got 1\), expected 0 to 0"),
        (
            {"features": torch.full((4, 3), 1e300, dtype=torch.float64)},
            r"features of 'path' \(got 12 NaN or infinite values\)",
        ),
        ({"labels": torch.tensor(1)}, "'path'"),
    ],
)
def test_what_is_no_sound_graph_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        build(**changed)


@pytest.mark.parametrize("place", range(3))
def test_each_part_of_a_split_is_checked_by_name(place: int) -> None:
    part = ("train", "validation", "test")[place]
    for mask, got in (
        (torch.zeros(4, dtype=torch.bool), "no node"),
        (torch.ones(4), r"\(4,\) torch.float32"),
        (torch.ones(3, dtype=torch.bool), r"\(3,\) torch.bool"),
    ):
        masks = list(torch.eye(4, dtype=torch.bool)[:3])
        masks[place] = mask
        with pytest.raises(GraphError, match=rf"{part} mask of 'path' \(got {got}\)"):
            build(masks=tuple(masks))


@pytest.mark.parametrize("twice", [(0, 1), (0, 2), (1, 2)])
def test_overlapping_parts_are_refused(twice: tuple[int, int]) -> None:
    masks = list(torch.eye(4, dtype=torch.bool)[:3])
    masks[twice[0]] = masks[twice[0]] | masks[twice[1]]
    with pytest.raises(GraphError, match=r"split of 'path' \(got 1 nodes in two parts\), expected disjoint parts"):
        build(masks=tuple(masks))


def test_more_classes_than_labels_seen_are_allowed() -> None:
    assert build(num_classes=5).num_classes == 5


def test_equal_graphs_have_one_fingerprint_whatever_their_name_and_storage() -> None:
    sparse = torch.zeros(4, 20)
    sparse[1, 2] = 1
    assert build().fingerprint == build(name="other").fingerprint
    assert build(features=sparse).fingerprint == build(features=SparseMatrix.from_dense(sparse.double())).fingerprint


def test_stored_zeros_do_not_change_the_fingerprint() -> None:
    sparse = torch.zeros(4, 20)
    sparse[1, 2] = sparse[0, 0] = 1
    explicit = SparseMatrix.from_dense(sparse)
    explicit.values[0] = 0
    sparse[0, 0] = 0
    assert build(features=explicit).fingerprint == build(features=sparse).fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"edge_index": torch.tensor(PATH)[:, :4]},
        {"features": torch.ones(4, 3) + torch.eye(4)[:, :3] * 1e-7},
        {"labels": torch.tensor([0, 1, 1, 1])},
        {"masks": tuple(torch.eye(4, dtype=torch.bool)[1:])},
        {"masks": tuple(torch.eye(4, dtype=torch.bool)[[0, 2, 1]])},
        {"masks": tuple(torch.eye(4, dtype=torch.bool)[[1, 0, 2]])},
    ],
    ids=["edges", "features", "labels", "split", "validation and test", "training and validation"],
)
def test_any_change_of_the_data_changes_the_fingerprint(changed: dict[str, Any]) -> None:
    assert build(**changed).fingerprint != build().fingerprint


def test_a_changed_value_of_sparse_features_changes_the_fingerprint() -> None:
    one, two = torch.zeros(4, 20), torch.zeros(4, 20)
    one[0, 3], two[0, 4] = 1, 1
    prints = {build(features=features).fingerprint for features in (one, two, 2 * one)}
    assert len(prints) == 3


def test_a_moved_graph_is_the_same_graph(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph(share=0.1)
    assert graph.to("cpu").fingerprint == graph.fingerprint
    moved = graph.to("meta")
    assert moved.pairs.device.type == moved.train_mask.device.type == "meta"
    assert replace(graph, name="x").fingerprint == graph.fingerprint
