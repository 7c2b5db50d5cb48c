"""Training of image networks: the schedule, the order, the L1 on scales, and what other trainings ask of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from gebt.data.images import Images, load_images
from gebt.models.mlp import MLP
from gebt.models.vision_registry import IMAGE_NETWORKS, image_network
from gebt.prune.enforce import enforce_mask
from gebt.prune.imp import iterative_magnitude_pruning
from gebt.prune.scores import magnitude, prunable_weights
from gebt.prune.selection import make_mask
from gebt.train.images import ImageSettings, accuracy, fit

FEW: dict[str, Any] = {"milestones": (), "batch": 32, "crop": 0, "flip": False}


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    train = load_images("digits")
    return train.take(torch.arange(256)), train.take(torch.arange(256, 384))


def test_rates_by_steps_and_by_cosine() -> None:
    steps = ImageSettings(epochs=8, learning_rate=0.8, milestones=(4, 6))
    assert [steps.rate(epoch) for epoch in (1, 4, 5, 7)] == pytest.approx([0.8, 0.8, 0.08, 0.008])
    cosine = ImageSettings(epochs=4, learning_rate=1.0, schedule="cosine")
    assert [cosine.rate(epoch) for epoch in (1, 2, 3, 4)] == pytest.approx(
        [(1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    )


def test_a_training_in_two_parts_sees_the_same_images_as_in_one(digits: tuple[Images, Images]) -> None:
    settings = ImageSettings(epochs=4, learning_rate=0.05, momentum=0.0, **FEW)
    whole, parts = MLP(64, 10, (16,), seed=0), MLP(64, 10, (16,), seed=0)
    history = fit(whole, *digits, settings, seed=3)
    first = fit(parts, *digits, settings, seed=3, stop=2)
    second = fit(parts, *digits, settings, seed=3, start=2)
    assert first.losses + second.losses == history.losses
    assert first.accuracy + second.accuracy == history.accuracy
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))


def test_it_learns_and_the_last_accuracy_is_that_of_the_network(digits: tuple[Images, Images]) -> None:
    train, held_out = digits
    model = MLP(64, 10, (32,), seed=0)
    history = fit(model, train, held_out, ImageSettings(epochs=8, learning_rate=0.05, **FEW))
    mean, std = train.statistics()
    assert history.accuracy[-1] == accuracy(model, held_out, mean=mean, std=std) > 0.8
    hits = 0
    for x, y in zip(held_out.pixels, held_out.labels, strict=True):
        hits += int(model((x[None].float() / 255 - mean) / std).argmax() == y)
    assert hits == round(history.accuracy[-1] * len(held_out))


def test_it_is_a_training_that_lottery_and_hold_can_use(digits: tuple[Images, Images]) -> None:
    settings = ImageSettings(epochs=2, optimizer="adam", learning_rate=1e-3, **FEW)
    model = MLP(64, 10, (16,), seed=0)
    found = iterative_magnitude_pruning(
        model, lambda model, **given: fit(model, *digits, settings, **given).losses, ratio=0.75, levels=2, rewind=1
    )
    assert [len(level.result) for level in found.levels] == [1, 1, 1]
    mask = make_mask(magnitude(prunable_weights(model)), ratio=0.5)
    fit(model, *digits, settings, enforce=lambda optimizer: enforce_mask(model, mask, optimizer))
    assert all(not bool(model.get_parameter(name)[~kept].any()) for name, kept in mask.items())


@pytest.mark.parametrize("name", ["lenet", "preresnet20", "resnet18"])
def test_networks_by_name_fit_the_images(name: str, digits: tuple[Images, Images]) -> None:
    model = image_network(name, digits[0].shape, len(digits[0].classes), width=0.1, seed=1)
    assert model(digits[0].pixels[:2].float()).shape == (2, 10)
    again = image_network(name, digits[0].shape, len(digits[0].classes), width=0.1, seed=1)
    assert all(torch.equal(tensor, again.get_parameter(own)) for own, tensor in model.named_parameters())


def test_the_mlp_starts_glorot_normal() -> None:
    weight = MLP(784, 10, seed=0).layers[0].weight
    assert isinstance(weight, nn.Parameter)
    assert float(weight.detach().std()) == pytest.approx((2 / 1084) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda images: image_network("alexnet", images.shape, len(images.classes)),
            r"network \(got 'alexnet'\), expected one of \('lenet', ",
        ),
        (
            lambda images: image_network("vgg16", images.shape, len(images.classes)),
            r"images \(got 8 x 8\), expected 32 x 32 or more",
        ),
        (lambda images: MLP(4, 0), r"sizes of MLP \(got \(4, 300, 100, 0\)\)"),
        (lambda images: ImageSettings(epochs=0), r"epochs, batch \(got \(0, 256\)\)"),
        (lambda images: ImageSettings(optimizer="lion"), r"optimizer, schedule \(got 'lion', 'steps'\)"),  # type: ignore[arg-type]
        (lambda images: ImageSettings(bits=1), r"bits \(got 1\), expected at least 2"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str, digits: tuple[Images, Images]) -> None:
    with pytest.raises(ValueError, match=message):
        make(digits[0])


def test_every_name_is_there() -> None:
    images = Images("any", torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    for name in IMAGE_NETWORKS:
        assert sum(1 for _ in image_network(name, images.shape, len(images.classes), width=0.05).parameters()) > 0
