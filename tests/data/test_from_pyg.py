from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

from gebt.data import from_pyg
from gebt.graph.graph import GraphError
from gebt.sparse.pattern import SparseMatrix


def path_of_four(**changed):
    """0 - 1 - 2 - 3, both directions given."""
    edges = torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    mask = torch.eye(4, dtype=torch.bool)
    parts = {"x": torch.arange(8.0).reshape(4, 2), "edge_index": edges, "y": torch.tensor([0, 1, 1, 2])}
    parts |= {"train_mask": mask[0], "val_mask": mask[1], "test_mask": mask[2] | mask[3]}
    return Data(**parts | changed)


def test_a_graph_comes_over_whole():
    graph = from_pyg(path_of_four(), "path")
    assert (graph.name, graph.num_classes, graph.notes) == ("path", 3, ())
    assert graph.pairs.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert torch.equal(graph.features, torch.arange(8.0).reshape(4, 2))
    assert graph.test_mask.tolist() == [False, False, True, True]


@pytest.mark.parametrize("layout", ["to_sparse_coo", "to_sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta", "ignore:Sparse invariant checks")
def test_sparse_features_are_those_of_the_dense_ones(layout):
    dense = torch.zeros(4, 20)
    dense[torch.arange(4), torch.tensor([19, 3, 7, 3])] = torch.tensor([0.5, 2, -1, 4])
    ours = from_pyg(path_of_four(x=getattr(dense, layout)()))
    assert isinstance(ours.features, SparseMatrix)
    assert torch.equal(ours.features.to_dense(), dense)
    assert ours.fingerprint == from_pyg(path_of_four(x=dense)).fingerprint


def test_labels_in_a_column_are_flattened():
    assert from_pyg(path_of_four(y=torch.tensor([[0], [1], [1], [2]]))).labels.tolist() == [0, 1, 1, 2]


def test_split_picks_a_column_of_the_masks():
    mask = torch.eye(4, dtype=torch.bool)
    data = path_of_four(train_mask=mask[:, :2], val_mask=mask[:, 2:], test_mask=mask[:, [3, 3]])
    with pytest.raises(GraphError, match="1 nodes in two parts"):
        from_pyg(data, split=1)
    assert from_pyg(data, split=0).train_mask.tolist() == [True, False, False, False]
    with pytest.raises(GraphError, match=r"split \(got 2\), expected 0 to 1"):
        from_pyg(data, split=2)
    with pytest.raises(GraphError, match=r"split \(got 1\), expected 0: the masks of 'pyg' hold one split only"):
        from_pyg(path_of_four(), split=1)


@pytest.mark.parametrize("key", ["x", "edge_index", "y", "train_mask", "val_mask", "test_mask"])
def test_a_missing_attribute_is_named(key):
    data = path_of_four()
    del data[key]
    with pytest.raises(GraphError, match=rf"attribute '{key}' of 'pyg' \(got NoneType\), expected a tensor"):
        from_pyg(data)


def test_directed_edges_are_refused_unless_symmetrized():
    one_way = torch.tensor([[0, 1, 2], [1, 2, 3]])
    with pytest.raises(GraphError, match=r"3 edges in one direction only.*to_undirected=True"):
        from_pyg(path_of_four(edge_index=one_way))
    both = from_pyg(path_of_four(edge_index=one_way), to_undirected=True)
    assert torch.equal(both.pairs, one_way)
    assert both.notes == ("3 one-way edges made undirected",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.full((4, 2), torch.nan)}, "got 8 NaN or infinite"),
        ({"edge_index": torch.tensor([[0, 4], [4, 0]])}, "got node 4"),
        ({"y": torch.tensor([0, 1, 1, -1])}, r"labels of 'pyg' \(got -1\)"),
        ({"y": torch.tensor([0.0, 1, 1, torch.nan])}, "got 1 NaN or infinite"),
        ({"y": torch.tensor([[0.0, 1], [1, 0.5], [1, 1], [0, 0]])}, r"labels of 'pyg' \(got 0\.5\), expected 0 or 1"),
        ({"y": torch.tensor([[0, 1], [1, 2], [1, 1], [0, 0]])}, r"labels of 'pyg' \(got 2\), expected 0 or 1"),
        ({"train_mask": torch.zeros(4, dtype=torch.bool)}, "train mask.*got no node"),
        ({"y": torch.zeros(0, dtype=torch.long)}, "got 0 nodes"),
        ({"x": torch.ones(3, 2)}, r"got shape \(3, 2\)"),
        ({"train_mask": torch.tensor([0, 2])}, "train mask"),
    ],
)
def test_what_cannot_be_used_is_refused(changed, message):
    with pytest.raises(GraphError, match=message):
        from_pyg(path_of_four(**changed))


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(GraphError, match=r"labels of 'pyg' \(got 2\), expected 0 to 1"):
        from_pyg(path_of_four(), num_classes=2)
