"""The released scripts' oddities, each shown: ties by position, one weight too many, a dense network at the end."""

from __future__ import annotations

import torch

from gebt.graph import Graph
from gebt.models import GCN
from gebt.recipes import gebt_released_code
from gebt.recipes.gebt_released_code import RETRAIN_EPOCHS, _Search, kept_by_position
from gebt.train import NodeTask, TrainingSettings


def model_of(graph: Graph) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes, seed=1)


def test_ties_go_by_the_larger_end() -> None:
    pairs = torch.tensor([[0, 0, 1, 0, 2], [4, 1, 2, 3, 3]])
    kept = kept_by_position(torch.ones(5), pairs, 0.6)
    assert pairs[:, ~kept].t().tolist() == [[0, 1], [1, 2], [0, 3]]
    best_first = torch.tensor([0.1, 2.0, 2.0, 2.0, 2.0])
    assert kept_by_position(best_first, pairs, 0.2).tolist() == [False, True, True, True, True]


def test_weights_are_zeroed_in_place_one_too_many_and_may_grow_back(sparse: Graph) -> None:
    model = model_of(sparse)
    search = _Search(model, sparse, 0.2, 0.5, 0.1)
    search.update(1)
    total = sum(weight.numel() for weight in search.weights.values())
    assert sum(int((weight == 0).sum()) for weight in search.weights.values()) == int(0.5 * total) + 1


def test_distances_are_relative_to_the_first_that_was_not_zero(sparse: Graph) -> None:
    search = _Search(model_of(sparse), sparse, 0.5, 0.0, 0.1)
    search.update(1)
    for epoch in range(2, 6):
        search.values.data.copy_(torch.rand(sparse.num_pairs, generator=torch.Generator().manual_seed(epoch)))
        assert not search.update(epoch)
    for epoch in (6, 7, 8):
        stopped = search.update(epoch)
    # Weights never moved: 0 / 0, which is below nothing.
    assert not stopped
    search._first[1] = 5.0
    assert search.update(9)


def test_what_is_retrained_is_dense_and_fresh_and_reported_at_its_last_epoch(sparse: Graph) -> None:
    model = model_of(sparse)
    training = TrainingSettings(learning_rate=0.02)
    found = gebt_released_code.run(model, sparse, edge_ratio=0.3, weight_ratio=0.9, training=training, seed=2)
    assert found.ticket.weight_sparsity == 0
    assert found.ticket.edge_mask.kept == sparse.num_pairs - int(0.3 * sparse.num_pairs)
    assert found.edges.fixed is not None
    assert float((found.edges.fixed - 1).abs().max()) < 0.2
    assert found.history.best_epoch == len(found.history.losses) == RETRAIN_EPOCHS
    assert found.test_accuracy == NodeTask(sparse, found.edges).evaluate(model)[2]
