"""SGCN: exact projections, a dual that is a constant for the edge values, frozen weights, a hard ticket."""

from __future__ import annotations

import pytest
import torch

from gebt.graph import Graph
from gebt.models import GCN
from gebt.prune.tie_breaking import TieBreaker
from gebt.recipes import sgcn
from gebt.recipes.sgcn import Admm, SgcnSettings, _edge_values
from gebt.train import NodeTask, TrainingSettings
from gebt.train.loop import copy_state
from gebt.train.result import Phase

SETTINGS = SgcnSettings(outer=2, inner=3, training=TrainingSettings(epochs=4, learning_rate=0.02))


def model_of(graph: Graph) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes, seed=1)


def test_z_is_the_exact_projection_and_u_what_it_leaves() -> None:
    admm, values = Admm(5, 0.6, 1e-3, TieBreaker(0)), torch.tensor([0.1, -3.0, 2.0, 0.5, -0.2])
    admm.update(values)
    assert admm.z.tolist() == [0.0, -3.0, 2.0, 0.0, 0.0]
    torch.testing.assert_close(admm.u, torch.tensor([0.1, 0.0, 0.0, 0.5, -0.2]))
    admm.update(values)
    torch.testing.assert_close(admm.u, torch.tensor([0.2, 0.0, 0.0, 1.0, -0.4]))


def test_the_gradient_of_the_penalty_does_not_grow_with_the_updates() -> None:
    admm, rho = Admm(4, 0.5, 0.01, TieBreaker(0)), 0.01
    values = torch.tensor([1.0, 0.9, 1.1, 0.5], requires_grad=True)
    for _ in range(4):
        (gradient,) = torch.autograd.grad(admm.penalty(values), values)
        torch.testing.assert_close(gradient, 4 * rho * (values.detach() - admm.z + admm.u))
        admm.update(values)


def test_edge_values_train_and_weights_stay(sparse: Graph) -> None:
    model = model_of(sparse)
    before = copy_state(model)
    values = _edge_values(model, NodeTask(sparse), Admm(sparse.num_pairs, 0.3, 1e-3, TieBreaker(0)), SETTINGS, 0, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert not torch.equal(values, torch.ones_like(values))


def test_the_ticket_has_its_ratios_and_the_initial_weights(sparse: Graph) -> None:
    model = model_of(sparse)
    found = sgcn.run(model, sparse, edge_ratio=0.3, weight_ratio=0.6, settings=SETTINGS, seed=2)
    weights = sum(conv.lin.weight.numel() for conv in model.layers)
    assert found.ticket.edge_mask.kept == found.edges.num_pairs == sparse.num_pairs - int(0.3 * sparse.num_pairs)
    assert found.ticket.weight_mask.kept == weights - int(0.6 * weights)
    assert found.test_accuracy == NodeTask(sparse, found.edges).evaluate(model)[2]
    assert found.phases[:2] == (Phase(4, sparse.num_pairs, weights), Phase(6, sparse.num_pairs, weights, gated=True))
    fresh, twin = copy_state(model_of(sparse)), model_of(sparse)
    found.ticket.start(twin, "rewind")
    for name, kept in found.ticket.weight_mask.items():
        assert torch.equal(twin.state_dict()[name], fresh[name] * kept)


def test_bad_ratios_and_settings_are_refused_before_training(sparse: Graph) -> None:
    for ratios in ((1.0, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match=r"prune ratio \(got 1.0\)"):
            sgcn.run(model_of(sparse), sparse, edge_ratio=ratios[0], weight_ratio=ratios[1])
    with pytest.raises(ValueError, match=r"outer, inner \(got \(0, 25\)\)"):
        SgcnSettings(outer=0)
    with pytest.raises(ValueError, match=r"rho, edge learning rate \(got \(-1, 0.001\)\)"):
        SgcnSettings(rho=-1)
