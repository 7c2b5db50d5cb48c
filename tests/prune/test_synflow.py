"""SynFlow: the conservation law, exact counts over the rounds, signs untouched, no collapse where others collapse."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gebt.prune import magnitude, make_mask, prunable_weights
from gebt.prune.saliency import snip
from gebt.prune.synflow import synflow, synflow_mask


def mlp(sizes: tuple[int, ...] = (5, 8, 6, 3)) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for number in range(len(sizes) - 1):
        layers += [nn.Linear(sizes[number], sizes[number + 1], bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional(norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    first = [nn.BatchNorm2d(6)] if norm else []
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), *first, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 2, bias=False), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 3, bias=False),
    )  # fmt: skip


@pytest.mark.parametrize(("model", "shape"), [(mlp(), (1, 5)), (convolutional(), (1, 2, 8, 8))], ids=["mlp", "conv"])
def test_every_layer_conserves_the_flow(model: nn.Module, shape: tuple[int, ...]) -> None:
    scores = synflow(model, torch.zeros(shape))
    sums = [float(score.sum()) for score in scores.values()]
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-10)
    assert all(float(score.min()) >= 0 for score in scores.values())


def test_every_unit_conserves_it_too() -> None:
    first, second, third = synflow(mlp(), torch.zeros(1, 5)).values()
    torch.testing.assert_close(first.sum(1), second.sum(0))
    torch.testing.assert_close(second.sum(1), third.sum(0))


def test_signs_state_and_mode_are_untouched() -> None:
    model = convolutional(norm=True).train()
    before = copy.deepcopy(model.state_dict())
    synflow_mask(model, torch.zeros(1, 2, 8, 8), ratio=0.5, rounds=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_statistics_of_data_have_no_say() -> None:
    model = convolutional(norm=True)
    before = synflow(model, torch.zeros(1, 2, 8, 8))
    model[1].running_mean.add_(3)
    model[1].running_var.mul_(7)
    after = synflow(model, torch.zeros(1, 2, 8, 8))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
def test_counts_are_exact_and_masks_are_nested(schedule: str) -> None:
    model, masks = mlp((20, 30, 30, 10)), []
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    for rounds in (1, 10):
        mask = synflow_mask(model, torch.zeros(1, 20), ratio=0.93, rounds=rounds, schedule=schedule)  # type: ignore[arg-type]
        assert mask.kept == total - int(0.93 * total)
        masks.append(mask)
    looser = synflow_mask(model, torch.zeros(1, 20), ratio=1 - 0.07**0.5, rounds=5)
    tighter = synflow_mask(model, torch.zeros(1, 20), ratio=0.93, rounds=10)
    assert not bool((tighter.flat() & ~looser.flat()).any())  # the same first five rounds


def test_no_layer_collapses_where_magnitude_and_snip_collapse() -> None:
    model = mlp((50, 200, 4, 200, 10))
    example, ratio = torch.zeros(1, 50), 0.997
    mask = synflow_mask(model, example, ratio=ratio)
    assert all(bool(kept.any()) for kept in mask.values())
    assert sum(float(score.sum()) for score in synflow(model, example, mask=mask).values()) > 0
    data = [(torch.randn(40, 50, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 10)]
    for scores in (magnitude(prunable_weights(model)), snip(model, data)):
        one_shot = make_mask(scores, ratio=ratio, allow_empty=True)
        with pytest.raises(ValueError, match=r"synaptic flow \(got 0\).* a layer has collapsed"):
            synflow(model, example, mask=one_shot)


def test_overflow_is_said_and_doubles_hold_more() -> None:
    model = mlp((10, *[10] * 12, 3))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1e4)
    with pytest.raises(ValueError, match=r"synaptic flow \(got inf in torch.float32\).* use torch.float64"):
        synflow(model, torch.zeros(1, 10), dtype=torch.float32)
    assert synflow(model, torch.zeros(1, 10))
    with pytest.raises(ValueError, match=r"rounds, schedule \(got \(0, 'exponential'\)\)"):
        synflow_mask(model, torch.zeros(1, 10), ratio=0.5, rounds=0)
