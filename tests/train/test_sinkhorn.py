"""The Wasserstein term: closed forms of transport, zero between equal clouds, gradients that separate."""

from __future__ import annotations

import torch

from gebt.train.sinkhorn import Separation, divergence, sinkhorn_plan


def test_a_plan_carries_all_mass_and_moves_it_where_it_is_cheap() -> None:
    cost = torch.tensor([[0.0, 9.0], [9.0, 0.0]])
    torch.testing.assert_close(sinkhorn_plan(cost, 0.05, 10), torch.eye(2) / 2)
    plan = sinkhorn_plan(torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0)), 0.1, 50)
    torch.testing.assert_close(plan.sum(1), torch.full((3, 4), 0.25))
    torch.testing.assert_close(plan.sum(2), torch.full((3, 5), 0.2), atol=1e-3, rtol=0)


def test_equal_clouds_are_at_distance_zero_whatever_their_order() -> None:
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(1))
    assert abs(float(divergence(x, x.flip(0)))) < 1e-6


def test_two_points_are_at_their_squared_distance_and_pull_apart() -> None:
    x, y = torch.tensor([[0.0, 1.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    found = divergence(x, y)
    assert abs(float(found.detach()) - 2.0) < 1e-6
    found.backward()
    torch.testing.assert_close(x.grad, torch.tensor([[-2.0, 2.0]]))


def test_the_term_falls_as_a_network_tells_classes_apart() -> None:
    labels = torch.arange(40) % 4
    separation = Separation(0.1, 16, seed=0)
    vague, sure = (separation(scale * torch.eye(4)[labels]) for scale in (0.5, 8.0))
    assert float(sure) < float(vague) < 0
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    separation(logits).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad.abs().sum()) > 0


def test_a_class_nobody_or_everybody_is_taken_for_has_no_term() -> None:
    assert float(Separation(0.1, 4, seed=0)(torch.eye(3)[torch.zeros(5, dtype=torch.long)])) == 0
