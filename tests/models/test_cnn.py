"""Convolutional networks: torchvision's names, shapes and parameter counts, forwards by hand, weights from a seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gebt.models.cnn import SLIMMING_SCALE, VGG, PreBottleneck, PreResNet, ResNet

# Parameters as torchvision's documentation of the weights states them.
COUNTS = {
    "vgg11_bn": (VGG, 11, 132_868_840),
    "vgg16_bn": (VGG, 16, 138_365_992),
    "resnet18": (ResNet, 18, 11_689_512),
    "resnet50": (ResNet, 50, 25_557_032),
}


@pytest.mark.parametrize("name", COUNTS)
def test_imagenet_forms_have_torchvisions_parameters(name: str) -> None:
    kind, depth, count = COUNTS[name]
    with torch.device("meta"):
        # Sizes alone: half a gigabyte of weights says nothing more.
        model = kind.__new__(kind)
        draw = kind.reset
        try:
            kind.reset = lambda self, seed: None  # type: ignore[method-assign, attr-defined]
            model.__init__(depth, 1000, "imagenet")  # type: ignore[misc]
        finally:
            kind.reset = draw  # type: ignore[method-assign, attr-defined]
    assert sum(p.numel() for p in model.parameters()) == count


def test_names_and_shapes_are_torchvisions() -> None:
    resnet = ResNet(18, 1000, "imagenet", width=0.125).state_dict()
    some = {"conv1.weight": (8, 3, 7, 7), "bn1.running_var": (8,), "layer1.0.conv1.weight": (8, 8, 3, 3)}
    some |= {
        "layer2.0.downsample.0.weight": (16, 8, 1, 1),
        "layer2.0.downsample.1.weight": (16,),
        "fc.weight": (1000, 64),
    }
    assert {name: tuple(resnet[name].shape) for name in some} == some
    assert "layer1.0.downsample.0.weight" not in resnet
    assert "layer1.0.downsample.0.weight" in ResNet(50, 10, width=0.125).state_dict()
    vgg = VGG(11, 1000, "imagenet", width=1 / 64).state_dict()
    convolutions = [name for name, tensor in vgg.items() if tensor.dim() == 4]
    assert convolutions == [f"features.{number}.weight" for number in (0, 4, 8, 11, 15, 18, 22, 25)]
    assert [name for name in vgg if name.startswith("classifier")] == [
        f"classifier.{number}.{part}" for number in (0, 3, 6) for part in ("weight", "bias")
    ]


@pytest.mark.parametrize(
    ("model", "side"),
    [
        (VGG(11, 7, width=0.1), 32),
        (VGG(16, 7, "imagenet", width=0.02), 224),
        (ResNet(18, 7, width=0.1), 32),
        (ResNet(50, 7, "imagenet", width=0.05), 64),
        (PreResNet(20, 7, width=0.3), 32),
        (PreResNet(56, 7, "imagenet", width=0.2, in_channels=1), 64),
    ],
    ids=["vgg11", "vgg16-large", "resnet18", "resnet50-large", "preresnet20", "preresnet56-large"],
)
def test_images_give_logits_and_gradients_everywhere(model: nn.Module, side: int) -> None:
    channels = next(model.parameters()).shape[1]
    logits = model(torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_depths_count_their_layers() -> None:
    for depth in (20, 56, 101):
        model = PreResNet(depth, width=0.2)
        main = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "downsample" not in n]
        assert len(main) == depth


def test_a_block_normalizes_first_and_adds_what_came_in() -> None:
    block = PreBottleneck(8, 2, 1).eval()
    x = torch.randn(3, 8, 5, 5)
    y = F.conv2d(F.relu(block.bn1(x)), block.conv1.weight)
    y = F.conv2d(F.relu(block.bn2(y)), block.conv2.weight, padding=1)
    y = F.conv2d(F.relu(block.bn3(y)), block.conv3.weight)
    torch.testing.assert_close(block(x), x + y)


@pytest.mark.parametrize("kind", [VGG, ResNet, PreResNet])
def test_weights_come_from_the_seed_alone(kind: Any) -> None:
    state = torch.random.get_rng_state()
    first, second, other = (kind(width=0.1, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.state_dict()["fc.weight" if kind is not VGG else "classifier.weight"],
                           other.state_dict()["fc.weight" if kind is not VGG else "classifier.weight"])  # fmt: skip
    scales = {float(m.weight.detach()[0]) for m in first.modules() if isinstance(m, nn.BatchNorm2d)}
    assert scales == {1.0 if kind is ResNet else SLIMMING_SCALE}
    first(torch.randn(2, 3, 32, 32))
    first.reset(4)
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in other.state_dict().items())
    torch.random.set_rng_state(state)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (VGG, {"depth": 19}, r"depth of VGG \(got 19\), expected one of \(11, 16\)"),
        (ResNet, {"form": "mnist"}, r"form of ResNet \(got 'mnist'\), expected 'cifar' or 'imagenet'"),
        (PreResNet, {"classes": 0}, r"classes, width of PreResNet \(got \(0, 1.0\)\)"),
        (PreResNet, {"width": 0}, r"classes, width of PreResNet \(got \(10, 0\)\)"),
    ],
)
def test_sizes_that_cannot_be_are_refused(kind: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**wrong)
