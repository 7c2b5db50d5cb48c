"""Early-bird tickets of BERT: heads and feed-forward units found early in training, taken out, the rest trained.

EarlyBERT: Chen et al., "EarlyBERT: Efficient BERT Training via Early-bird Lottery Tickets", ACL 2021.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from gebt.models.bert_units import HEADS, UNITS, Gates, without
from gebt.prune.detector import Compare, EarlyBird
from gebt.prune.mask import Mask
from gebt.prune.selection import make_mask, pruned_count
from gebt.prune.tie_breaking import TieBreaker
from gebt.train.loop import copy_state
from gebt.train.texts import TextHistory, TextSettings, TextTask, fit

Start = Literal["pretrained", "inherit"]


@dataclass(frozen=True)
class UnitSettings(TextSettings):
    """Training of EarlyBERT: an L1 on the scales of heads and of units, and a detector for each of the two.

    A draw prunes floor(head_ratio H) heads of each layer and floor(unit_ratio n) of all n units: heads layer by layer
    and units together, as the released code does.

    Attributes:
        head_ratio: share of each layer's heads to prune, in [0, 1).
        unit_ratio: share of all units to prune, in [0, 1).
        head_l1: coefficient of sum |scale| of the heads.
        unit_l1: coefficient of sum |scale| of the units.
        every: steps between draws.
        threshold: of the mask distance, below which a detector fires.
        window: masks that the newest one is compared with.
        compare: "window" for the masks before the newest one, "previous" for one after the other.

    Raises:
        ValueError: numbers out of range.
    """

    head_ratio: float = 0.34
    unit_ratio: float = 0.4
    head_l1: float = 1e-4
    unit_l1: float = 1e-4
    every: int = 50
    threshold: float = 0.1
    window: int = 4
    compare: Compare = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        pruned_count(1, self.head_ratio)
        pruned_count(1, self.unit_ratio)
        if self.every < 1 or min(self.head_l1, self.unit_l1) < 0:
            got = (self.every, self.head_l1, self.unit_l1)
            raise ValueError(f"steps between draws, L1s (got {got}), expected at least 1, and at least 0")
        self.detector()

    def detector(self) -> EarlyBird:
        """A fresh detector.

        Returns:
            Of the threshold, the window and the comparison of these settings.
        """
        return EarlyBird(self.threshold, self.window, criterion="weights", compare=self.compare)

    def after(self) -> TextSettings:
        """Settings of the training after the draw.

        Returns:
            The same without the scales and the detector.
        """
        return TextSettings(**{option.name: getattr(self, option.name) for option in dataclasses.fields(TextSettings)})


@dataclass(frozen=True, eq=False)
class UnitTicket:
    """Which heads and units are kept, and the network at the draw.

    Attributes:
        mask: over heads and units.
        gates: their scales at the draw.
        state: the network's state at the draw.
        step: steps made before the draw.
        fired: whether the detectors ended the search, or the schedule's end did.
        distances: mask distances of heads and of units, draw by draw.
    """

    mask: Mask
    gates: Gates
    state: dict[str, Tensor]
    step: int
    fired: bool
    distances: dict[str, tuple[float, ...]]


def search(
    model: nn.Module, task: TextTask, *, settings: UnitSettings | None = None, seed: int = 0
) -> tuple[UnitTicket, TextHistory]:
    """Trains the model and its scales until the masks over heads and over units have both stopped moving.

    Those of smallest |scale| are pruned; the first draw, of scales that are all 1, is random. Where the masks never
    stop moving the ticket is that of the last step.

    Args:
        model: pretrained; it stays as the search has trained it.
        task: to train on.
        settings: of the training, the draws and the detectors.
        seed: of batches, of dropout, and of the random order that settles ties.

    Returns:
        The ticket, and the history of the search.

    Raises:
        ValueError: a ratio that empties a layer, or a model that is not of the family.
    """
    settings = settings or UnitSettings()
    gates, tie_break = Gates(model), TieBreaker(seed)
    detectors = {HEADS: settings.detector(), UNITS: settings.detector()}
    drawn: list[tuple[Mask, int]] = []

    def draw() -> dict[str, Mask]:
        heads = make_mask(gates.scores(HEADS), ratio=settings.head_ratio, scope="layer", tie_break=tie_break)
        return {HEADS: heads, UNITS: make_mask(gates.scores(UNITS), ratio=settings.unit_ratio, tie_break=tie_break)}

    def update_detectors(steps_made: int) -> bool:
        if steps_made % settings.every:
            return False
        masks = draw()
        fired = [detector.update(masks[kind]) for kind, detector in detectors.items()]
        if all(fired):
            drawn.append((_both(masks), steps_made))
        return all(fired)

    def penalty() -> Tensor:
        heads, units = gates.l1()
        return settings.head_l1 * heads + settings.unit_l1 * units

    more = list(gates.parameters())
    with gates.attached(model):
        history = fit(model, task, settings, seed=seed, more=more, penalty=penalty, on_step=update_detectors)
    mask, step = drawn[0] if drawn else (_both(draw()), len(history.losses))
    distances = {kind: tuple(row["criterion"] for row in one.trajectory) for kind, one in detectors.items()}
    return UnitTicket(mask, gates, copy_state(model), step, bool(drawn), distances), history


def retrain(
    ticket: UnitTicket,
    model: nn.Module,
    task: TextTask,
    *,
    settings: UnitSettings | None = None,
    start: Start = "pretrained",
    seed: int = 0,
) -> tuple[Any, TextHistory]:
    """Takes the pruned heads and units out and trains the smaller network.

    Args:
        ticket: of `search`.
        model: of the ticket's sizes; with "inherit" it receives the state at the draw.
        task: to train on.
        settings: of the training.
        start: "pretrained": the weights of `model`, for the full schedule, as EarlyBERT does; "inherit": those at the
            draw, scales multiplied in, for the rest of the schedule.
        seed: of batches and of dropout.

    Returns:
        The smaller network and its history.

    Raises:
        ValueError: another start.
    """
    settings = settings or UnitSettings()
    if start not in ("pretrained", "inherit"):
        raise ValueError(f"start (got {start!r}), expected 'pretrained' or 'inherit'")
    if start == "inherit":
        model.load_state_dict(ticket.state)
        small = without(model, ticket.mask, ticket.gates)
        return small, fit(small, task, settings.after(), seed=seed, start=ticket.step)
    small = without(model, ticket.mask)
    return small, fit(small, task, settings.after(), seed=seed)


def _both(masks: dict[str, Mask]) -> Mask:
    return Mask({**masks[HEADS], **masks[UNITS]})
