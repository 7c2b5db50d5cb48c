"""Early-bird tickets of convolutional networks: channels found early, taken out, the rest trained.

EB-Train: You et al., "Drawing Early-Bird Tickets", ICLR 2020.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from gebt.data.images import Images
from gebt.prune.detector import Compare, EarlyBird
from gebt.prune.mask import Mask
from gebt.prune.scores import bn_scale
from gebt.prune.selection import make_mask, pruned_count
from gebt.prune.slim.slim import slim
from gebt.prune.tie_breaking import TieBreak, TieBreaker
from gebt.train.images import ImageHistory, ImageSettings, ImageTrainer, OnEpoch, fit

Start = Literal["inherit", "reinit"]


@dataclass(frozen=True)
class CnnSettings(ImageSettings):
    """Training of EB-Train, and its detector.

    The schedule counts from the first epoch of the search in the retraining, too, and so does the L1 on scales.
    `window` masks before the newest one are compared with it ("window"), or one after the other ("previous").
    `min_keep`: the share of every layer's channels, those of largest scale, that stays in any case: all scales of a layer
    may be small, and a network with an emptied layer is dead.
    `bits` is of the search: LF; with `bits_after` the retraining has it too: LL.
    """

    scale_l1: float = 1e-4
    threshold: float = 0.1
    window: int = 4
    compare: Compare = "window"
    min_keep: float = 0.1
    bits_after: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.detector()
        self.after()

    def detector(self) -> EarlyBird:
        """A fresh detector."""
        return EarlyBird(self.threshold, self.window, criterion="weights", compare=self.compare)

    def after(self) -> ImageSettings:
        """Settings of the retraining."""
        shared = {own.name: getattr(self, own.name) for own in dataclasses.fields(ImageSettings)}
        return ImageSettings(**{**shared, "bits": self.bits_after})


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
    tie_break, birds = TieBreaker(seed), {ratio: settings.detector() for ratio in ratios}
    found: dict[float, ChannelTicket] = {}
    trainer = ImageTrainer(model, images, validation, settings, seed)

    def draw(epoch: int) -> bool:
        last = epoch == settings.epochs
        for ratio, bird in birds.items():
            if ratio in found:
                continue
            mask = channel_mask(model, ratio, settings, tie_break)
            if bird.update(mask) or last:
                distances = tuple(row["criterion"] for row in bird.trajectory)
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


def channel_mask(model: nn.Module, ratio: float, settings: CnnSettings, tie_break: TieBreak) -> Mask:
    """The floor(ratio n) smallest |gamma| of all n batch-norm scales go, but for `settings.min_keep` of every layer."""
    return make_mask(bn_scale(model), ratio=ratio, min_keep=settings.min_keep, tie_break=tie_break, allow_empty=True)


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
    history = fit(small, images, validation, settings.after(), seed=seed, start=ticket.epoch, on_epoch=on_epoch)
    return small, history


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy({name: tensor.detach() for name, tensor in model.state_dict().items()})
