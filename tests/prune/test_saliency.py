"""SNIP, Taylor and GraSP against finite differences and explicit Hessians; models are left as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.prune.saliency import grasp, snip, taylor

SCORES = (snip, taylor, grasp)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    draw = lambda: (torch.randn(5, 3, generator=generator).double(), torch.randint(2, (5,), generator=generator))  # noqa: E731
    return [draw() for _ in range(count)]


def test_snip_is_the_change_of_the_loss_with_a_gate() -> None:
    model, data, step = small(), batches(), 1e-6
    scores = snip(model, data)
    flat = torch.cat([score.flatten() for score in scores.values()])
    assert float(flat.sum()) == pytest.approx(1)
    weights, moved = dict(model.named_parameters()), []
    for name in scores:
        for place in range(weights[name].numel()):
            losses = []
            for gate in (1 + step, 1 - step):
                twin = copy.deepcopy(model)
                dict(twin.named_parameters())[name].data.view(-1)[place] *= gate
                losses.append(sum(float(F.cross_entropy(twin(x), y).detach()) for x, y in data))
            moved.append(abs(losses[0] - losses[1]) / (2 * step))
    torch.testing.assert_close(flat, torch.tensor(moved).double() / sum(moved), atol=1e-6, rtol=1e-4)


def test_taylor_averages_squares_over_batches() -> None:
    model, data = small(), batches()
    one, two = (taylor(model, [batch]) for batch in data)
    both = taylor(model, data)
    for name, score in both.items():
        torch.testing.assert_close(score, (one[name] + two[name]) / 2)
    weight = model[0].weight
    gradient = torch.autograd.grad(F.cross_entropy(model(data[0][0]), data[0][1]), weight)[0]
    torch.testing.assert_close(one["0.weight"], (weight * gradient).square().detach())


def test_grasp_is_the_weight_times_hessian_times_gradient() -> None:
    model, (data,) = small(), batches(1)
    names = ["0.weight", "2.weight"]
    weights = [dict(model.named_parameters())[name] for name in names]

    def loss(*values: Tensor) -> Tensor:
        state = dict(model.named_parameters()) | dict(zip(names, values, strict=True))
        return F.cross_entropy(torch.func.functional_call(model, state, data[0]) / 200.0, data[1])

    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(*weights), weights)])
    blocks = torch.autograd.functional.hessian(loss, tuple(weights))
    rows = [torch.cat([b.reshape(w.numel(), -1) for b in row], 1) for row, w in zip(blocks, weights, strict=True)]
    expected = torch.cat([w.flatten() for w in weights]).detach() * (torch.cat(rows) @ gradient)
    scores = torch.cat([score.flatten() for score in grasp(model, [data]).values()])
    torch.testing.assert_close(scores, (expected / (expected.sum().abs() + 1e-10)).detach())
    assert float(scores.min()) < 0


@pytest.mark.parametrize("score", SCORES)
def test_the_model_is_left_as_it_was(score: Any) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).train()
    model[4].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    data = [(torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2)]
    scores = score(model, data)
    assert list(scores) == ["0.weight", "4.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert bool((model[0].weight.grad == 1).all())
    assert model[4].weight.grad is None
    assert (model[1].training, model[4].training) == (True, False)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("score", SCORES)
def test_layers_of_any_kind_have_one_call(score: Any) -> None:
    class Every(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped, self.depthwise = nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4)
            self.transposed, self.rnn = nn.ConvTranspose2d(4, 4, 2), nn.GRU(4, 4, batch_first=True)
            self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.transposed(self.depthwise(self.grouped(x))).flatten(2).transpose(1, 2)
            x = self.rnn(x)[0]
            return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    model = Every().train(score is not grasp)  # attention's fast path in evaluation has no second derivative
    model.train()
    scores = score(model, [(torch.randn(3, 4, 8, 8), torch.tensor([0, 1, 0]))])
    expected = {"grouped.weight", "depthwise.weight", "transposed.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    expected |= {"attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}
    assert set(scores) == expected
    assert all(bool(torch.isfinite(score).all()) for score in scores.values())


@pytest.mark.parametrize("score", SCORES)
def test_no_batch_and_a_weight_out_of_reach_are_refused(score: Any) -> None:
    with pytest.raises(ValueError, match=r"batches \(got none\)"):
        score(small(), [])
    model = small()
    model.aside = nn.Linear(2, 2)
    forward = nn.Sequential.forward
    model.forward = lambda x: forward(model[:3], x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"weight 'aside.weight' \(got no gradient"):
        score(model, batches())
