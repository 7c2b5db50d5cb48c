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

    Attributes:
        scale_l1: coefficient of sum |gamma| over the batch-norm scales.
        threshold: of the mask distance, below which the detector fires.
        window: masks that the newest one is compared with.
        compare: "window" for the masks before the newest one, "previous" for one after the other.
        min_keep: share of every layer's channels, those of largest scale, that stays in any case: all scales of a layer
            may be small, and a network with an emptied layer is dead.
        bits_after: `bits` of the retraining; `bits` itself is of the search alone (the paper's LF; with both: LL).

    Raises:
        ValueError: numbers out of range.
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
        """A fresh detector.

        Returns:
            Of the threshold, the window and the comparison of these settings.
        """
        return EarlyBird(self.threshold, self.window, criterion="weights", compare=self.compare)

    def after(self) -> ImageSettings:
        """Settings of the retraining.

        Returns:
            The same without the detector, with `bits_after` for `bits`.
        """
        shared = {option.name: getattr(self, option.name) for option in dataclasses.fields(ImageSettings)}
        return ImageSettings(**{**shared, "bits": self.bits_after})


@dataclass(frozen=True, eq=False)
class ChannelTicket:
    """The ticket of one ratio: which channels are kept, and the network at the draw.

    Attributes:
        ratio: share of the channels asked to be pruned.
        mask: over the batch-norm scales.
        state: the network's state at the draw.
        epoch: epochs trained before the draw.
        fired: whether the detector ended this ratio's search, or the last epoch did.
        distances: mask distances, draw by draw.
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
    """Trains until the channel masks of all ratios have stopped moving; one search draws them all.

    Before every epoch the mask of each ratio is drawn (`channel_mask`), and each ratio's detector takes its mask. The
    first draw, of constant scales, is random: while it is in the window it is far from all others. A ratio whose
    detector never fires is drawn after the last epoch.

    Args:
        model: a network with batch norms; it stays as the search has trained it.
        images: to train on.
        ratios: shares of the channels to prune, each in [0, 1).
        validation: images to measure the accuracy on after every epoch.
        settings: of the training and the detector.
        seed: of batches, of augmentation, and of the random order that settles ties.
        on_epoch: called with the epoch (from 1) and the history.

    Returns:
        A ticket for each ratio, and the history of the search.

    Raises:
        ValueError: no ratio, one outside [0, 1), or a network without batch-norm scales.
    """
    settings = settings or CnnSettings()
    if not ratios:
        raise ValueError("ratios (got none), expected at least one")
    for ratio in ratios:
        pruned_count(1, ratio)
    tie_break, detectors = TieBreaker(seed), {ratio: settings.detector() for ratio in ratios}
    tickets: dict[float, ChannelTicket] = {}
    trainer = ImageTrainer(model, images, validation, settings, seed)

    def draw(epoch: int) -> bool:
        last = epoch == settings.epochs
        for ratio, detector in detectors.items():
            if ratio in tickets:
                continue
            mask = channel_mask(model, ratio, settings, tie_break)
            if detector.update(mask) or last:
                distances = tuple(row["criterion"] for row in detector.trajectory)
                tickets[ratio] = ChannelTicket(ratio, mask, _copied(model), epoch, detector.fired, distances)
        return len(tickets) == len(detectors)

    for epoch in range(1, settings.epochs + 1):
        if draw(epoch - 1):
            break
        trainer.epoch(epoch)
        if on_epoch is not None:
            on_epoch(epoch, trainer.history)
    else:
        draw(settings.epochs)
    return tickets, trainer.history


def channel_mask(model: nn.Module, ratio: float, settings: CnnSettings, tie_break: TieBreak) -> Mask:
    """The channel mask of a ratio: the floor(ratio n) smallest |gamma| of all n batch-norm scales go.

    Args:
        model: a network with batch norms.
        ratio: share of the channels to prune, in [0, 1).
        settings: whose `min_keep` of every layer stays.
        tie_break: settles ties.

    Returns:
        The mask over the batch-norm scales.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
        >>> model[1].weight.data = torch.tensor([0.1, -2.0, 1.0, 0.3])
        >>> channel_mask(model, 0.5, CnnSettings(), TieBreaker(0)).flat().tolist()
        [False, True, True, False]
    """
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
    """Takes the pruned channels out and trains the smaller network for the rest of the schedule's epochs.

    Args:
        ticket: of `search`.
        model: of the ticket's sizes; receives the start weights and is not trained.
        images: to train on.
        validation: images to measure the accuracy on after every epoch.
        settings: of the training.
        start: "inherit" goes on with the weights at the draw; "reinit" starts with fresh ones of `model.reset(seed)`,
            channels cut alike.
        seed: of batches and of augmentation.
        on_epoch: called with the epoch and the history.

    Returns:
        The smaller network and its history.

    Raises:
        ValueError: another start.
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
