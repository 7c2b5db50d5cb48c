"""Networks for images by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from gebt.models.cnn import VGG, PreResNet, ResNet
from gebt.models.mlp import MLP

VGG_SIDE = 32
_BY_NAME: dict[str, Callable[..., nn.Module]] = {
    **{f"vgg{depth}": lambda depth=depth, **given: VGG(depth, **given) for depth in (11, 16)},
    **{f"resnet{depth}": lambda depth=depth, **given: ResNet(depth, **given) for depth in (18, 50)},
    **{f"preresnet{depth}": lambda depth=depth, **given: PreResNet(depth, **given) for depth in (20, 56, 101)},
}
IMAGE_NETWORKS = ("lenet", *_BY_NAME)


def image_network(name: str, shape: Sequence[int], classes: int, *, width: float = 1.0, seed: int = 0) -> nn.Module:
    """A network for images of `shape` (channels, height, width), with weights drawn from `seed`.

    One of `IMAGE_NETWORKS`, its channels times `width`.

    "lenet" is LeNet-300-100. Raises `ValueError` for another name, and for images too small for the network.
    """
    channels, *sides = shape
    if name == "lenet":
        hidden = [max(1, round(width * size)) for size in (300, 100)]
        return MLP(math.prod(shape), classes, hidden, seed=seed)
    if name not in _BY_NAME:
        raise ValueError(f"network (got {name!r}), expected one of {IMAGE_NETWORKS}")
    if name.startswith("vgg") and min(sides) < VGG_SIDE:
        raise ValueError(
            f"images (got {sides[0]} x {sides[1]}), expected 32 x 32 or more for {name}; "
            "a resnet or preresnet takes smaller ones"
        )
    given: dict[str, Any] = {"classes": classes, "in_channels": channels, "width": width, "seed": seed}
    return _BY_NAME[name](**given)
