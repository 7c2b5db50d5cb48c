from __future__ import annotations

import numpy as np
import pytest
import torch

from gebt.data.readers.heterophilous import read_heterophilous
from gebt.graph.graph import GraphError


def arrays(**changes):
    split = np.arange(4) % 3
    given = {
        "node_features": np.array([[1.0, 0], [0, 2], [0, 0], [3, 4]], dtype=np.float32),
        "node_labels": np.array([0, 1, 1, 0]),
        "edges": np.array([[0, 1], [2, 1], [2, 3]]),
        **{
            f"{part}_masks": np.stack((split == n, split == (n + 1) % 3))
            for n, part in enumerate(("train", "val", "test"))
        },
    }
    return {name: value for name, value in (given | changes).items() if value is not None}


def test_arrays_give_the_graph_they_describe(tmp_path):
    np.savez_compressed(tmp_path / "g.npz", **arrays())
    first, second = (read_heterophilous(tmp_path / "g.npz", split) for split in (0, 1))
    assert first.edge_index.tolist() == [[0, 2, 2, 1, 1, 3], [1, 1, 3, 0, 2, 2]]
    assert first.features.to_dense().tolist() == [[1, 0], [0, 2], [0, 0], [3, 4]]
    assert first.labels.tolist() == [0, 1, 1, 0]
    assert first.masks[0].tolist() == [True, False, False, True]
    assert second.masks[0].tolist() == [False, True, False, False]
    assert torch.stack(second.masks).sum(0).eq(1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": np.array([[0, 1, 2]])}, r"edges int64 \(1, 3\), expected two integers each"),
        ({"edges": np.array([[0.0, 1.0]])}, r"edges float64 \(1, 2\)"),
        ({"node_labels": np.array([0.5, 1, 1, 0])}, r"labels float64 \(4,\)"),
        ({"node_features": np.ones((3, 2), np.float32)}, r"features \(3, 2\), expected one row a node"),
        ({"val_masks": np.ones((2, 4), int)}, r"val_masks int64 \(2, 4\), expected a bool \[splits, 4\] with split 1"),
        ({"test_masks": np.ones((1, 4), bool)}, r"test_masks bool \(1, 4\)"),
        ({"train_masks": None}, "train_masks"),
        ({"node_labels": np.array([{}] * 4, dtype=object)}, "expected numbers"),
    ],
)
def test_unsound_arrays_are_refused_with_the_file(tmp_path, changes, message):
    np.savez(tmp_path / "g.npz", **arrays(**changes))
    with pytest.raises(GraphError, match=rf"file .*g\.npz \(got: .*{message}.*\), expected a graph as edges"):
        read_heterophilous(tmp_path / "g.npz", 1)
