from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn, optim

from gebt.prune import Mask, hold, magnitude, prunable_weights, select

MAKERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p, wd: optim.SGD(p, lr=0.1, weight_decay=wd),
    "momentum": lambda p, wd: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=wd),
    "adam": lambda p, wd: optim.Adam(p, lr=0.1, weight_decay=wd),
    "adam-fused": lambda p, wd: optim.Adam(p, lr=0.1, weight_decay=wd, fused=True),
    "adamw": lambda p, wd: optim.AdamW(p, lr=0.1, weight_decay=wd),
}


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture
def mask(model: nn.Module) -> Mask:
    return select(magnitude(prunable_weights(model)), ratio=0.5)


def step(model: nn.Module, optimizer: optim.Optimizer, seed: int = 0) -> None:
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - 1).square().sum().backward()
    optimizer.step()


def pruned_entries(model: nn.Module, mask: Mask) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name][~kept] for name, kept in mask.items()])


@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
@pytest.mark.parametrize("kind", MAKERS)
def test_pruned_weights_are_zero_after_every_step(model: nn.Module, mask: Mask, kind: str, weight_decay: float) -> None:
    optimizer = MAKERS[kind](model.parameters(), weight_decay)
    for seed in range(3):  # momentum that is warm when the holding begins is what leaks elsewhere
        step(model, optimizer, seed)
    hold(model, mask, optimizer)
    assert not pruned_entries(model, mask).any()
    kept = {name: dict(model.named_parameters())[name][k].clone() for name, k in mask.items()}
    for seed in range(20):
        step(model, optimizer, seed)
        assert not pruned_entries(model, mask).any()
    assert all(not torch.equal(dict(model.named_parameters())[n][mask[n]], old) for n, old in kept.items())


def test_a_state_dict_is_untouched_by_holding_and_keeps_the_zeros_through_a_file(model: nn.Module, mask: Mask) -> None:
    names = list(model.state_dict())
    optimizer = MAKERS["adam"](model.parameters(), 0.0)
    hold(model, mask, optimizer)
    step(model, optimizer)
    assert list(model.state_dict()) == names
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    again = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    again.load_state_dict(stored["model"])
    assert not pruned_entries(again, mask).any()
    optimizer = MAKERS["adam"](again.parameters(), 0.0)
    hold(again, mask, optimizer)
    optimizer.load_state_dict(stored["optimizer"])
    step(again, optimizer)
    step(model, optimizer)
    assert not pruned_entries(again, mask).any()


def test_after_remove_the_weights_are_free(model: nn.Module, mask: Mask) -> None:
    optimizer = MAKERS["adam"](model.parameters(), 0.0)
    hold(model, mask, optimizer).remove()
    step(model, optimizer)
    assert pruned_entries(model, mask).any()


def test_a_parameter_outside_the_mask_moves_freely(model: nn.Module) -> None:
    before = model[2].weight.detach().clone()
    optimizer = MAKERS["sgd"](model.parameters(), 0.0)
    hold(model, Mask({"0.weight": torch.zeros(5, 4, dtype=torch.bool)}), optimizer)
    assert torch.equal(model[2].weight, before)
    step(model, optimizer)
    assert not model[0].weight.any()
    assert model[0].bias.any()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("9.weight", (5, 4), r"mask tensor '9.weight' \(got no such parameter\), expected one of \['0.bias'"),
        ("0.weight", (4, 5), r"mask tensor '0.weight' \(got shape \(4, 5\)\), expected \(5, 4\)"),
        ("2.weight", (3, 5), r"parameter '2.weight' \(got none in this optimizer\)"),
    ],
)
def test_a_mask_that_fits_not_is_refused_and_nothing_is_zeroed(
    model: nn.Module, name: str, shape: tuple[int, ...], message: str
) -> None:
    optimizer = MAKERS["sgd"](model[0].parameters(), 0.0)
    before = model[0].weight.detach().clone()
    mask = {"0.weight": torch.zeros(5, 4, dtype=torch.bool), name: torch.zeros(shape, dtype=torch.bool)}
    with pytest.raises(ValueError, match=message):
        hold(model, Mask(mask), optimizer)
    assert torch.equal(model[0].weight, before)
