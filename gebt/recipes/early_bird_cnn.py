"""Early-bird tickets of convolutional networks: channels found early, taken out, the rest trained.

EB-Train: You et al., "Drawing Early-Bird Tickets", ICLR 2020.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from gebt.data.images import Images
from gebt.prune.detector import EarlyBird, Rule
from gebt.prune.mask import Mask
from gebt.prune.scores import bn_scale
from gebt.prune.selection import pruned_count, select
from gebt.prune.slimming import slim
from gebt.prune.ties import TieOrder

Start = Literal["inherit", "reinit"]
OnEpoch = Callable[[int, "ImageHistory"], object]


@dataclass(frozen=True)
class CnnSettings:
    """Training of EB-Train on small images, and its detector.

    SGD with momentum; the learning rate falls by `factor` at the `milestones`, counted from the first epoch of the
    search in the retraining, too. `scale_l1` s adds s sign(gamma) to the gradient of every batch-norm scale, in the
    retraining too. `window` masks before the newest one are compared with it ("newest"), or one after the other
    ("consecutive").
    """

    epochs: int = 160
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (80, 120)
    factor: float = 0.1
    batch: int = 256
    crop: int = 4
    flip: bool = True
    scale_l1: float = 1e-4
    threshold: float = 0.1
    window: int = 4
    rule: Rule = "newest"

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch) < 1:
            raise ValueError(f"epochs, batch (got {(self.epochs, self.batch)}), expected at least 1")
        if not self.learning_rate > 0 or min(self.momentum, self.weight_decay, self.scale_l1, self.crop) < 0:
            got = (self.learning_rate, self.momentum, self.weight_decay, self.scale_l1, self.crop)
            told = "learning rate, momentum, weight decay, scale L1, crop"
            raise ValueError(f"{told} (got {got}), expected a rate above 0, the others at least 0")
        self.detector()

    def detector(self) -> EarlyBird:
        """A fresh detector."""
        return EarlyBird(self.threshold, self.window, criterion="weights", rule=self.rule)

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 1."""
        return float(self.learning_rate * self.factor ** sum(epoch > milestone for milestone in self.milestones))


@dataclass
class ImageHistory:
    """One entry an epoch: mean training loss, and accuracy in [0, 1] on the validation images, if there are any."""

    losses: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class ChannelTicket:
    """What the search found for one ratio: the mask over batch-norm scales, and the network's state at the draw.

    `epoch`: epochs trained before the draw; `fired`: whether the detector ended the watch, or the search's end did.
    """

    ratio: float
    mask: Mask
    state: dict[str, Tensor]
    epoch: int
    fired: bool
    distances: tuple[float, ...]


def search(
    model: nn.Module,
    images: Images,
    *,
    ratios: Sequence[float],
    validation: Images | None = None,
    settings: CnnSettings | None = None,
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> tuple[dict[float, ChannelTicket], ImageHistory]:
    """Trains until the channel masks of all `ratios` have stopped moving; one search watches them all.

    Before every epoch the floor(ratio n) smallest |gamma| of all n batch-norm scales are pruned, ties by one random
    order of `seed`, and each ratio's detector takes its mask. The first draw, of constant scales, is chance alone:
    while it is in the window it is far from all others. A ratio that never fires is drawn after the last epoch. `model`
    is left as trained. Raises `ValueError` for no ratio, one outside [0, 1), and a network without batch-norm scales.
    """
    settings = settings or CnnSettings()
    if not ratios:
        raise ValueError("ratios (got none), expected at least one to watch")
    for ratio in ratios:
        pruned_count(1, ratio)
    order, birds = TieOrder(seed), {ratio: settings.detector() for ratio in ratios}
    found: dict[float, ChannelTicket] = {}
    trainer = _Trainer(model, images, validation, settings, seed)

    def draw(epoch: int) -> bool:
        last = epoch == settings.epochs
        for ratio, bird in birds.items():
            if ratio in found:
                continue
            mask = select(bn_scale(model), ratio=ratio, order=order, allow_empty=True)
            if bird.update(mask) or last:
                distances = tuple(row["watched"] for row in bird.trajectory)
                found[ratio] = ChannelTicket(ratio, mask, _copied(model), epoch, bird.fired, distances)
        return len(found) == len(birds)

    for epoch in range(1, settings.epochs + 1):
        if draw(epoch - 1):
            break
        trainer.epoch(epoch)
        if on_epoch is not None:
            on_epoch(epoch, trainer.history)
    else:
        draw(settings.epochs)
    return found, trainer.history


def retrain(
    ticket: ChannelTicket,
    model: nn.Module,
    images: Images,
    *,
    validation: Images | None = None,
    settings: CnnSettings | None = None,
    start: Start = "inherit",
    seed: int = 0,
    on_epoch: OnEpoch | None = None,
) -> tuple[nn.Module, ImageHistory]:
    """Takes the pruned channels out and trains the smaller network for the epochs that are left of the schedule.

    "inherit" goes on with the weights at the draw; "reinit" with fresh ones of `model.reset(seed)`, channels cut alike.
    `model` (of the ticket's sizes) receives the start weights and is otherwise left; the smaller network is returned.
    Raises `ValueError` for another start.
    """
    settings = settings or CnnSettings()
    if start not in ("inherit", "reinit"):
        raise ValueError(f"start (got {start!r}), expected 'inherit' or 'reinit'")
    if start == "inherit":
        model.load_state_dict(ticket.state)
    else:
        model.reset(seed)  # type: ignore[operator]
    example = images.pixels[:2].float()
    small = slim(model, ticket.mask, example=example).train()
    trainer = _Trainer(small, images, validation, settings, seed)
    for epoch in range(ticket.epoch + 1, settings.epochs + 1):
        trainer.epoch(epoch)
        if on_epoch is not None:
            on_epoch(epoch, trainer.history)
    return small, trainer.history


def accuracy(model: nn.Module, images: Images, *, mean: Tensor, std: Tensor, batch: int = 512) -> float:
    """Share of the images that the network, in evaluation mode, puts in their class."""
    training = model.training
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(batch, mean=mean, std=std))
    model.train(training)
    return hits / len(images)


class _Trainer:
    """Epochs of SGD by the absolute schedule."""

    def __init__(
        self, model: nn.Module, images: Images, validation: Images | None, settings: CnnSettings, seed: int
    ) -> None:
        self.model, self.images, self.validation, self.settings, self.seed = model, images, validation, settings, seed
        self.mean, self.std = images.statistics()
        # Of batch norms, those that choose among channels included: all weights of one dimension.
        self.scales = [p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() == 1]
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimizer = optim.SGD(model.parameters(), lr=rate, momentum=settings.momentum, weight_decay=decay)
        self.history = ImageHistory()

    def epoch(self, number: int) -> None:
        """One epoch, by the schedule's number of it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(number)
        self.model.train()
        total, draw = 0.0, self.seed * 100_003 + number
        given = {"mean": self.mean, "std": self.std, "crop": self.settings.crop, "flip": self.settings.flip}
        for x, y in self.images.batches(self.settings.batch, seed=draw, **given):  # type: ignore[arg-type]
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            for scale in self.scales:
                if scale.grad is not None:
                    scale.grad.add_(scale.detach().sign(), alpha=self.settings.scale_l1)
            self.optimizer.step()
            total += float(loss.detach()) * len(y)
        self.history.losses.append(total / len(self.images))
        if self.validation is not None:
            self.history.accuracy.append(accuracy(self.model, self.validation, mean=self.mean, std=self.std))


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy({name: tensor.detach() for name, tensor in model.state_dict().items()})
