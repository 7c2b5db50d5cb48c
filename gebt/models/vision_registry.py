"""Image networks by name, with one constructor for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from gebt.models.cnn import VGG, PreResNet, ResNet
from gebt.models.mlp import MLP

VGG_SIDE = 32
_BY_NAME: dict[str, Callable[..., nn.Module]] = {
    **{f"vgg{depth}": lambda depth=depth, **options: VGG(depth, **options) for depth in (11, 16)},
    **{f"resnet{depth}": lambda depth=depth, **options: ResNet(depth, **options) for depth in (18, 50)},
    **{f"preresnet{depth}": lambda depth=depth, **options: PreResNet(depth, **options) for depth in (20, 56, 101)},
}
IMAGE_NETWORKS = ("lenet", *_BY_NAME)


def image_network(name: str, shape: Sequence[int], classes: int, *, width: float = 1.0, seed: int = 0) -> nn.Module:
    """Builds an image network by name.

    Args:
        name: one of `IMAGE_NETWORKS`; "lenet" is LeNet-300-100.
        shape: of the images: channels, height, width.
        classes: number of classes.
        width: factor of the channels (of "lenet": of the hidden widths).
        seed: of the weights.

    Returns:
        The network.

    Raises:
        ValueError: for another name, and for images too small for the network.

    Example:
        >>> model = image_network("lenet", (1, 28, 28), classes=10)
        >>> [tuple(layer.weight.shape) for layer in model.layers]
        [(300, 784), (100, 300), (10, 100)]
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
    options: dict[str, Any] = {"classes": classes, "in_channels": channels, "width": width, "seed": seed}
    return _BY_NAME[name](**options)
