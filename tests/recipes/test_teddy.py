"""TEDDY: the degree score in closed form, exact zeros after every step, a teacher that sees the whole graph."""

from __future__ import annotations

import math

import pytest
import torch

from gebt.graph import Graph
from gebt.graph.edges import EDGES
from gebt.models import GCN
from gebt.prune.tie_breaking import TieBreaker
from gebt.recipes import teddy
from gebt.recipes.teddy import TeddySettings, _Projection, degree_score
from gebt.train import NodeTask, TrainingSettings

SETTINGS = TeddySettings(TrainingSettings(epochs=8, learning_rate=0.05))


def model_of(graph: Graph) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes, seed=1)


def test_on_a_star_all_edges_are_worth_the_same() -> None:
    pairs = torch.tensor([[0, 0, 0], [1, 2, 3]])
    # hub: d = 3, g = (3 * 1) / 9; leaf: d = 1, g = 3^-1/2
    torch.testing.assert_close(degree_score(pairs, 4), torch.full((3,), 1 / 3 * 3**-0.5, dtype=torch.float64))


def test_on_a_path_the_ends_are_kept_first() -> None:
    # 0-1-2-3: g_0 = 2^-1/2, g_1 = (1 + 2^-1/2) / 4
    inner = (1 + 2**-0.5) / 4
    expected = torch.tensor([2**-0.5 * inner, inner * inner, 2**-0.5 * inner], dtype=torch.float64)
    torch.testing.assert_close(degree_score(torch.tensor([[0, 1, 2], [1, 2, 3]]), 5), expected)


@pytest.mark.parametrize("ratio", [0.0, 0.35, 0.9])
def test_every_step_leaves_exactly_the_smallest_parameters_zero(sparse: Graph, ratio: float) -> None:
    model = model_of(sparse)
    before = torch.cat([p.detach().abs().flatten() for p in model.parameters()])
    _Projection(model, ratio, TieBreaker(0))()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    zeros, count = int((after == 0).sum()), math.ceil(ratio * before.numel())
    # Biases begin as zeros: they are among the smallest, or stay zero beside them.
    assert zeros == max(count, int((before == 0).sum()))
    if count:
        assert float(before[after != 0].min()) >= float(before.sort().values[count - 1])


def test_the_ticket_is_what_was_trained_on_the_graph_that_is_left(sparse: Graph) -> None:
    model = model_of(sparse)
    found = teddy.run(model, sparse, edge_ratio=0.3, weight_ratio=0.6, settings=SETTINGS, seed=2)
    total = sum(p.numel() for p in model.parameters())
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    assert zeros == math.ceil(0.6 * total)
    assert found.ticket.edge_mask.kept == sparse.num_pairs - int(0.3 * sparse.num_pairs)
    score = degree_score(sparse.pairs, sparse.num_nodes)
    kept = found.ticket.edge_mask[EDGES]
    assert float(score[kept].min()) >= float(score[~kept].max())
    assert found.test_accuracy == NodeTask(sparse, found.edges).evaluate(model)[2]
    assert found.edges.num_pairs == found.ticket.edge_mask.kept
    twin = teddy.run(model_of(sparse), sparse, edge_ratio=0.3, weight_ratio=0.6, settings=SETTINGS, seed=2)
    assert twin.history.losses == found.history.losses


def test_ratios_outside_zero_to_one_are_refused_before_training(sparse: Graph) -> None:
    for ratios in ((1.0, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match=r"prune ratio \(got 1.0\)"):
            teddy.run(model_of(sparse), sparse, edge_ratio=ratios[0], weight_ratio=ratios[1], settings=SETTINGS)
