"""Gem-Miner: exact counts at every freezing, weights untouched, straight-through gradients, and tickets that work."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

import gebt
from gebt.prune.gem_miner import _Miner, gem_miner, inverted
from gebt.prune.random_masks import random_mask
from gebt.prune.saliency import cross_entropy
from gebt.prune.scores import prunable_weights

X = torch.randn(256, 10, generator=torch.Generator().manual_seed(0))
Y = (X[:, :3].sum(1) > 0).long() + 2 * (X[:, 3] * X[:, 4] > 0).long()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second, last = (nn.Linear(*sizes, bias=False) for sizes in ((10, 64), (64, 64), (64, 4)))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def batches(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
    order = torch.randperm(256, generator=torch.Generator().manual_seed(epoch))
    return ((X[part], Y[part]) for part in order.split(64))


def mined(model: nn.Module, **changes: Any) -> Any:
    options: dict[str, Any] = {"ratio": 0.9, "epochs": 21, "period": 5, **changes}
    return gem_miner(model, batches, **options)


def test_counts_are_geometric_and_exact_and_weights_stay() -> None:
    model, reported = network(), []
    result = mined(model, on_epoch=lambda epoch, loss: reported.append((epoch, loss)))
    total = result.mask.size
    expected = [(5 * j, total - int((1 - 0.1 ** (j / 4)) * total)) for j in (1, 2, 3)] + [
        (20, total - int(0.9 * total))
    ]
    assert list(result.frozen) == expected
    assert result.mask.kept == total - int(0.9 * total)
    start = network()
    for name, weight in prunable_weights(model).items():
        before = dict(start.named_parameters())[name]
        torch.testing.assert_close(weight, before.sign() * (2 / before.shape[1]) ** 0.5)
    assert all(0 <= float(score.min()) <= float(score.max()) <= 1 for score in result.scores.values())
    assert [epoch for epoch, _ in reported] == list(range(1, 22))
    again = mined(network())
    assert again.mask == result.mask


def test_weights_can_stay_as_they_are() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    mined(model, signed_constant=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_the_gradient_of_a_score_is_the_weight_times_that_of_its_entry() -> None:
    model = network()
    miner = _Miner(model, prunable_weights(model), cross_entropy, 0.0, 0)
    miner.alive["2.weight"][0] = False
    effective = miner._effective()
    leaf = {name: tensor.detach().requires_grad_() for name, tensor in effective.items()}
    F.cross_entropy(torch.func.functional_call(model, leaf, X), Y).backward()
    F.cross_entropy(torch.func.functional_call(model, effective, X), Y).backward()
    for name, score in miner.scores.items():
        weight = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(score.grad, miner.alive[name] * weight * leaf[name].grad)
        assert bool((score.grad[(score <= 0.5) & miner.alive[name]] != 0).any())  # also where the entry is off
        assert bool((effective[name][score <= 0.5] == 0).all())


def accuracy(model: nn.Module, mask: gebt.Mask, epochs: int = 60) -> float:
    model = copy.deepcopy(model)
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    gebt.enforce_mask(model, mask, optimizer)
    for epoch in range(epochs):
        for x, y in batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    with torch.no_grad():
        return float((model(X).argmax(1) == Y).float().mean())


def test_a_mined_ticket_beats_random_shuffled_and_inverted_ones() -> None:
    model = network()
    ticket = mined(model, ratio=0.97, epochs=41, regularization=1e-5)
    generator = torch.Generator().manual_seed(1)
    baselines = {
        "random": random_mask(prunable_weights(model), ratio=0.97, generator=generator),
        "inverted": inverted(ticket.mask, generator=generator),
    }
    of_ticket = accuracy(model, ticket.mask)
    for name, baseline in baselines.items():
        assert of_ticket > accuracy(model, baseline) + 0.05, name


def test_inversion_keeps_the_counts_and_none_of_the_entries() -> None:
    mask = gebt.Mask({"a": torch.arange(10) < 3, "b": torch.arange(4) < 3})
    other = inverted(mask, generator=torch.Generator().manual_seed(0))
    assert [int(kept.sum()) for kept in other.values()] == [3, 3]
    assert not bool((other["a"] & mask["a"]).any())
    assert bool(other["b"][3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, r"prune ratio \(got 1.0\)"),
        ({"epochs": 5}, r"epochs, period \(got \(5, 5\)\), expected epochs > period >= 1"),
        ({"period": 0}, r"epochs, period \(got \(21, 0\)\)"),
        ({"regularization": -1.0}, r"regularization \(got -1.0\)"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mined(network(), **changes)
