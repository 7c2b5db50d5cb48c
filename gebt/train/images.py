"""Training of networks for images, epoch by epoch, by one absolute schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from gebt.data.images import Images
from gebt.train.low_precision import LowPrecision

OnEpoch = Callable[[int, "ImageHistory"], object]
Enforce = Callable[[optim.Optimizer], object]


@dataclass(frozen=True)
class ImageSettings:
    """SGD with momentum, or Adam; the rate falls by `factor` after each of the `milestones`, or as half a cosine.

    Epochs count from 1. `crop`, `flip`: augmentation as `Images.batches` has it. `scale_l1` s adds s sign(gamma) to the
    gradient of every batch-norm scale (Liu et al. 2017). `bits`: train in simulated block floating point.
    Raises `ValueError` for numbers out of range.
    """

    epochs: int = 160
    learning_rate: float = 0.1
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: tuple[int, ...] = (80, 120)
    factor: float = 0.1
    batch: int = 256
    crop: int = 4
    flip: bool = True
    scale_l1: float = 0.0
    bits: int | None = None

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1:
            raise ValueError(f"epochs, batch (got {(self.epochs, self.batch)}), expected at least 1")
        if not self.learning_rate > 0 or min(self.momentum, self.weight_decay, self.scale_l1, self.crop) < 0:
            got = (self.learning_rate, self.momentum, self.weight_decay, self.scale_l1, self.crop)
            told = "learning rate, momentum, weight decay, scale L1, crop"
            raise ValueError(f"{told} (got {got}), expected a rate above 0, the others at least 0")
        if self.optimizer not in ("sgd", "adam") or self.schedule not in ("steps", "cosine"):
            names = f"{self.optimizer!r}, {self.schedule!r}"
            raise ValueError(f"optimizer, schedule (got {names}), expected 'sgd' or 'adam', 'steps' or 'cosine'")
        if self.bits is not None and self.bits < 2:
            raise ValueError(f"bits (got {self.bits}), expected at least 2, or None for full precision")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 1."""
        if self.schedule == "cosine":
            return self.learning_rate * (1 + math.cos(math.pi * (epoch - 1) / self.epochs)) / 2
        return float(self.learning_rate * self.factor ** sum(epoch > milestone for milestone in self.milestones))

    def optimizer_of(self, model: nn.Module) -> optim.Optimizer:
        """A fresh optimizer of all its parameters."""
        if self.optimizer == "adam":
            return optim.Adam(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True)
        rate, decay = self.learning_rate, self.weight_decay
        return optim.SGD(model.parameters(), lr=rate, momentum=self.momentum, weight_decay=decay, fused=True)


@dataclass
class ImageHistory:
    """One entry an epoch: mean training loss, and accuracy in [0, 1] on the validation images, if there are any."""

    losses: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


class ImageTrainer:
    """Trains `model` on `images`; its epochs are numbered by the schedule, whichever of them it runs."""

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        validation: Images | None = None,
        settings: ImageSettings | None = None,
        seed: int = 0,
    ) -> None:
        # Convolutions of a CPU run faster with channels innermost; values and names stay.
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images, self.validation, self.seed = images, validation, seed
        self.settings = settings or ImageSettings()
        self.mean, self.std = images.statistics()
        # Of batch norms, those that choose among channels included: all weights of one dimension.
        self.scales = [p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() == 1]
        self.optimizer = self.settings.optimizer_of(model)
        if self.settings.bits is not None:
            LowPrecision(model, self.optimizer, self.settings.bits, seed)
        self.history = ImageHistory()

    def epoch(self, number: int) -> None:
        """One epoch, by the schedule's number of it, from 1."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(number)
        self.model.train()
        total, draw = torch.zeros(()), self.seed * 100_003 + number
        given: dict[str, Any] = {"mean": self.mean, "std": self.std}
        given |= {"crop": self.settings.crop, "flip": self.settings.flip}
        for x, y in self.images.batches(self.settings.batch, seed=draw, **given):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            self._pull_scales()
            self.optimizer.step()
            total += loss.detach() * len(y)
        self.history.losses.append(float(total) / len(self.images))
        if self.validation is not None:
            self.history.accuracy.append(accuracy(self.model, self.validation, mean=self.mean, std=self.std))

    def _pull_scales(self) -> None:
        if self.settings.scale_l1:
            for scale in self.scales:
                if scale.grad is not None:
                    scale.grad.add_(scale.detach().sign(), alpha=self.settings.scale_l1)


def fit(
    model: nn.Module,
    images: Images,
    validation: Images | None = None,
    settings: ImageSettings | None = None,
    *,
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    enforce: Enforce | None = None,
    on_epoch: OnEpoch | None = None,
) -> ImageHistory:
    """Trains epochs `start` + 1 to `stop` (None: the schedule's last) with a fresh optimizer.

    `enforce(optimizer)` is called before the first step, as `gebt.lottery` asks of a training; `on_epoch(epoch,
    history)` after every epoch. The order of the images depends on `seed` and the epoch alone.
    """
    trainer = ImageTrainer(model, images, validation, settings, seed)
    if enforce is not None:
        enforce(trainer.optimizer)
    for epoch in range(start + 1, (trainer.settings.epochs if stop is None else stop) + 1):
        trainer.epoch(epoch)
        if on_epoch is not None:
            on_epoch(epoch, trainer.history)
    return trainer.history


def accuracy(model: nn.Module, images: Images, *, mean: Tensor, std: Tensor, batch: int = 512) -> float:
    """Share of the images that the network, in evaluation mode, puts in their class."""
    training = model.training
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(batch, mean=mean, std=std))
    model.train(training)
    return hits / len(images)
