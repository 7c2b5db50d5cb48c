"""Convolutional networks: VGG, ResNet and pre-activation ResNet, for small ("cifar") and large ("imagenet") images.

Names and shapes of VGG and ResNet in their "imagenet" form are torchvision's (with batch norm), so state dicts load
both ways. Small images: VGG ends in one linear layer (Liu et al. 2017), ResNet begins with a 3 x 3 convolution of
stride 1 and no pooling. `width` multiplies every number of channels, for sizes that fit a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.models.linear import uniform

Form = Literal["cifar", "imagenet"]

_VGG_PLANS: dict[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"),
}
_RESNET_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
_PRERESNET_DEPTHS = (20, 56, 101)
# Batch-norm scales as Liu et al. 2017 and EB-Train set them at the start.
SLIMMING_SCALE = 0.5


def draw_weights(network: nn.Module, seed: int, scale: float = 1.0) -> None:
    """Fresh weights: convolutions normal with std sqrt(2 / (k k C_out)), linear layers Glorot-uniform, biases 0.

    Args:
        network: changed in place; batch-norm running statistics are reset.
        seed: of the weights.
        scale: of the batch norms.

    Source:
        He et al. 2015.

    Example:
        >>> norm = nn.BatchNorm2d(2)
        >>> draw_weights(norm, seed=0, scale=SLIMMING_SCALE)
        >>> norm.weight.tolist(), norm.bias.tolist()
        ([0.5, 0.5], [0.0, 0.0])
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
            _fill(module.weight, torch.empty(module.weight.shape).normal_(0, std, generator=generator))
        elif isinstance(module, nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            _fill(module.weight, uniform(module.weight.shape, bound, generator))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            nn.init.constant_(module.weight, scale)
        if getattr(module, "bias", None) is not None and isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            nn.init.zeros_(cast(Tensor, module.bias))


class _Seeded(nn.Module):
    """A network whose weights are drawn from a seed."""

    seed: int
    scale: float

    def reset(self, seed: int) -> None:
        """Draws fresh weights.

        Args:
            seed: of the weights.
        """
        self.seed = seed
        draw_weights(self, seed, self.scale)


class VGG(_Seeded):
    """VGG with batch norm.

    Args:
        depth: number of layers, 11 or 16.
        classes: number of classes, C.
        form: "cifar" for small images, "imagenet" for large ones.
        in_channels: of the images.
        width: factor of every number of channels.
        scale: batch-norm scales at the start.
        seed: of the weights.

    Raises:
        ValueError: for another depth or form, fewer than 1 class, or a width that is not positive.

    Source:
        Simonyan & Zisserman 2015.

    Example:
        >>> VGG(11, classes=10, width=0.05)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, depth: int = 16, classes: int = 10, form: Form = "cifar", *, in_channels: int = 3, width: float = 1.0,
        scale: float = SLIMMING_SCALE, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check("VGG", depth, sorted(_VGG_PLANS), classes, form, width)
        layers: list[nn.Module] = []
        for step in _VGG_PLANS[depth]:
            if step == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            channels = _scaled(int(step), width)
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
            in_channels = channels
        self.form, self.scale = form, scale
        self.features = nn.Sequential(*layers)
        if form == "cifar":
            self.classifier: nn.Module = nn.Linear(in_channels, classes)
        else:
            hidden = _scaled(4096, width)
            steps = (nn.Linear(49 * in_channels, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden))
            self.classifier = nn.Sequential(*steps, nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes))
        self.reset(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: images, [B, in_channels, H, W]; "cifar": sides of at least 32.

        Returns:
            Logits, [B, C].
        """
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, 1 if self.form == "cifar" else 7)
        return cast(Tensor, self.classifier(x.flatten(1)))


class BasicBlock(nn.Module):
    """relu(x + BN conv relu BN conv x), 3 x 3 both; the shortcut is projected where sizes change.

    Args:
        in_channels: of the input.
        channels: of the 3 x 3 convolutions.
        stride: of the first convolution; 2 halves the sides.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(in_channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.relu, self.downsample = nn.ReLU(), _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block.

        Args:
            x: feature maps, [B, in_channels, H, W].

        Returns:
            Feature maps, [B, channels, H / stride, W / stride].
        """
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return cast(Tensor, self.relu(y + (x if self.downsample is None else self.downsample(x))))


class Bottleneck(nn.Module):
    """relu(x + BN conv1x1 relu BN conv3x3 relu BN conv1x1 x), the last one four times as wide.

    Args:
        in_channels: of the input.
        channels: of the 3 x 3 convolutions.
        stride: of the 3 x 3 convolution; 2 halves the sides.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.conv1, self.bn1 = _conv(in_channels, channels, 1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = _conv(channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = _conv(channels, wide, 1), nn.BatchNorm2d(wide)
        self.relu, self.downsample = nn.ReLU(), _shortcut(in_channels, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block.

        Args:
            x: feature maps, [B, in_channels, H, W].

        Returns:
            Feature maps, [B, 4 channels, H / stride, W / stride].
        """
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        return cast(Tensor, self.relu(y + (x if self.downsample is None else self.downsample(x))))


class ResNet(_Seeded):
    """Residual network.

    Args:
        depth: number of layers, 18 or 50.
        classes: number of classes, C.
        form: "cifar" for small images, "imagenet" for large ones.
        in_channels: of the images.
        width: factor of every number of channels.
        scale: batch-norm scales at the start.
        seed: of the weights.

    Raises:
        ValueError: for another depth or form, fewer than 1 class, or a width that is not positive.

    Source:
        He et al. 2016.
    """

    def __init__(
        self, depth: int = 18, classes: int = 10, form: Form = "cifar", *, in_channels: int = 3, width: float = 1.0,
        scale: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check("ResNet", depth, sorted(_RESNET_BLOCKS), classes, form, width)
        block: Any = BasicBlock if depth == 18 else Bottleneck
        stem = _scaled(64, width)
        large = form == "imagenet"
        self.conv1 = _conv(in_channels, stem, 7 if large else 3, 2 if large else 1)
        self.bn1, self.relu = nn.BatchNorm2d(stem), nn.ReLU()
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        before = stem
        for number, count in enumerate(_RESNET_BLOCKS[depth], 1):
            channels = _scaled(32 * 2**number, width)
            setattr(self, f"layer{number}", _stage(block, before, channels, count, 1 if number == 1 else 2))
            before = block.expansion * channels
        self.fc, self.scale = nn.Linear(before, classes), scale
        self.reset(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: images, [B, in_channels, H, W].

        Returns:
            Logits, [B, C].
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = getattr(self, f"layer{number}")(x)
        return cast(Tensor, self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class PreBottleneck(nn.Module):
    """x + conv1x1 relu BN conv3x3 relu BN conv1x1 relu BN x: normalization first.

    Args:
        in_channels: of the input.
        channels: of the 3 x 3 convolutions.
        stride: of the 3 x 3 convolution; 2 halves the sides.

    Source:
        He et al. 2016, "Identity Mappings in Deep Residual Networks".
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.bn1, self.conv1 = nn.BatchNorm2d(in_channels), _conv(in_channels, channels, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), _conv(channels, channels, 3, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(channels), _conv(channels, wide, 1)
        changes = stride != 1 or in_channels != wide
        self.relu, self.downsample = nn.ReLU(), _conv(in_channels, wide, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block.

        Args:
            x: feature maps, [B, in_channels, H, W].

        Returns:
            Feature maps, [B, 4 channels, H / stride, W / stride].
        """
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv3(self.relu(self.bn3(self.conv2(self.relu(self.bn2(y))))))
        return cast(Tensor, y + (x if self.downsample is None else self.downsample(x)))


class PreResNet(_Seeded):
    """Pre-activation ResNet of depth 9 n + 2, for small images, as in EB-Train.

    Args:
        depth: number of layers, 20, 56 or 101.
        classes: number of classes, C.
        form: "cifar" for small images, "imagenet" for large ones.
        in_channels: of the images.
        width: factor of every number of channels.
        scale: batch-norm scales at the start.
        seed: of the weights.

    Raises:
        ValueError: for another depth or form, fewer than 1 class, or a width that is not positive.
    """

    def __init__(
        self, depth: int = 20, classes: int = 10, form: Form = "cifar", *, in_channels: int = 3, width: float = 1.0,
        scale: float = SLIMMING_SCALE, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        _check("PreResNet", depth, _PRERESNET_DEPTHS, classes, form, width)
        large = form == "imagenet"
        before = _scaled(16, width)
        self.conv1 = _conv(in_channels, before, 7 if large else 3, 2 if large else 1)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        for number in (1, 2, 3):
            channels = _scaled(8 * 2**number, width)
            stage = _stage(PreBottleneck, before, channels, (depth - 2) // 9, 1 if number == 1 else 2)
            setattr(self, f"layer{number}", stage)
            before = PreBottleneck.expansion * channels
        self.bn, self.relu = nn.BatchNorm2d(before), nn.ReLU()
        self.fc, self.scale = nn.Linear(before, classes), scale
        self.reset(seed)

    def forward(self, x: Tensor) -> Tensor:
        """Classifies images.

        Args:
            x: images, [B, in_channels, H, W].

        Returns:
            Logits, [B, C].
        """
        x = self.maxpool(self.conv1(x))
        for number in (1, 2, 3):
            x = getattr(self, f"layer{number}")(x)
        x = self.relu(self.bn(x))
        return cast(Tensor, self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)))


def _conv(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def _stage(block: Any, in_channels: int, channels: int, count: int, stride: int) -> nn.Sequential:
    blocks = [block(in_channels, channels, stride)]
    blocks += [block(block.expansion * channels, channels, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _fill(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)


def _check(kind: str, depth: int, depths: Sequence[int], classes: int, form: str, width: float) -> None:
    if depth not in depths:
        raise ValueError(f"depth of {kind} (got {depth}), expected one of {tuple(depths)}")
    if form not in ("cifar", "imagenet"):
        raise ValueError(f"form of {kind} (got {form!r}), expected 'cifar' or 'imagenet'")
    if classes < 1 or not width > 0:
        raise ValueError(f"classes, width of {kind} (got {(classes, width)}), expected at least 1 and above 0")
