"""Folds of real sets: the given test graphs, validation graphs of each class, and one that is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gebt.data import load_graph
from gebt.data.graph_folds import fold_of
from gebt.data.readers.tu import GraphDataset
from gebt.graph.graph import GraphError
from gebt.graph.graph_sets import GraphClassificationFold


def small(folds: int = 2) -> GraphDataset:
    """Twenty graphs of two nodes, the first twelve of class 0; fold 0 tests the first four, fold 1 the last four."""
    graphs = torch.arange(20)
    nodes = torch.arange(40).view(20, 2)
    given = ((graphs[4:], graphs[:4]), (graphs[:16], graphs[16:]))[:folds]
    return GraphDataset("SMALL", nodes.t(), nodes.flatten() // 2, torch.ones(40, 1), (graphs >= 12).long(), 2, given)


def test_a_fold_keeps_its_test_graphs_and_validates_on_some_of_each_class() -> None:
    graphs = small()
    fold = fold_of(graphs, 1, val_share=0.25)
    assert (fold.num_graphs, fold.num_nodes, fold.num_pairs, fold.name) == (20, 40, 20, "small")
    assert fold.test_mask.nonzero().flatten().tolist() == [16, 17, 18, 19]
    assert torch.bincount(fold.labels[fold.val_mask]).tolist() == [3, 1]
    assert torch.equal(fold.train_mask, ~(fold.val_mask | fold.test_mask))
    assert torch.equal(fold_of(graphs, 1, val_share=0.25).val_mask, fold.val_mask)
    assert int(fold_of(graphs, 0).val_mask.sum()) == 2  # at least one of each class


def test_folds_that_are_not_there_are_refused() -> None:
    for number in (-1, 2):
        with pytest.raises(GraphError, match=rf"fold \(got {number}\), expected 0 to 1, the folds of 'SMALL'"):
            fold_of(small(), number)
    with pytest.raises(GraphError, match=r"class 1 of 'SMALL' \(got 4 training graphs in fold 1\), expected more"):
        fold_of(small(), 1, val_share=0.95)


def test_mutag_is_loaded_by_name() -> None:
    if not (Path(os.environ.get("GEBT_DATA", "")) / "graph_classification" / "MUTAG").is_dir():
        pytest.skip("no MUTAG under $GEBT_DATA")
    folds = [load_graph("mutag", split_seed=number, download=False) for number in (0, 9)]
    for fold in folds:
        assert isinstance(fold, GraphClassificationFold)
        assert (fold.num_graphs, int(fold.test_mask.sum()), int(fold.val_mask.sum())) == (188, 18, 17)
    assert folds[0].fingerprint != folds[1].fingerprint
    with pytest.raises(GraphError, match=r"split seed \(got 10\), expected 0 to 9, the splits of 'mutag'"):
        load_graph("mutag", split_seed=10)
