"""Tickets of pretrained BERT encoders: pruned by magnitude, round after round, and rewound to the pretrained weights.

Chen et al. 2020, "The Lottery Ticket Hypothesis for Pre-trained BERT Networks", and the code released with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn, optim

from gebt.models.bert import fitted, fresh, head_names, prunable, reinitialize, reset_head, shuffle_layers
from gebt.prune.enforce import enforce_mask
from gebt.prune.imp import ImpResult, iterative_magnitude_pruning
from gebt.prune.mask import Mask
from gebt.prune.random_masks import shuffled
from gebt.prune.schedule import at_rate, linear
from gebt.prune.scores import magnitude
from gebt.prune.selection import make_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.train.texts import FillIn, TextHistory, TextSettings, TextTask, fit

Schedule = Literal["of original", "of the rest"]
Variant = Literal["ticket", "random mask", "random init", "shuffled layers", "one shot"]


@dataclass(frozen=True)
class BertSettings:
    """`rounds` of pruning, each by `rate` of all prunable weights (the released code) or of the rest (the paper).

    `head`: what a round does with the task's head; the code keeps it as trained, "reset" rewinds it with the encoder.
    `prune_first`: the first share goes by pretrained magnitude, before anything is trained; the code's way with masked
    language modelling, which saves a training. The code's schedule of a round's training is that of all rounds:
    `TextSettings(rounds=10)`. Raises `ValueError` for numbers out of range.
    """

    rounds: int = 9
    rate: float = 0.1
    schedule: Schedule = "of original"
    head: Literal["keep", "reset"] = "keep"
    prune_first: bool = False
    training: TextSettings = field(default_factory=TextSettings)

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule) or self.head not in ("keep", "reset"):
            got = f"{self.schedule!r}, {self.head!r}"
            raise ValueError(f"schedule, head (got {got}), expected one of {get_args(Schedule)}, 'keep' or 'reset'")
        self.ratios()

    def ratios(self) -> list[float]:
        """What is pruned of all at every training, the first one's ahead: 0, 0.1, ..., 0.9 by default."""
        if self.schedule == "of original":
            shares = linear(float(Decimal(str(float(self.rate))) * self.rounds), self.rounds)
        else:
            shares = at_rate(self.rate, self.rounds)
        return shares if self.prune_first else [0.0, *shares]


def pretrain(
    config: Any, task: FillIn, settings: TextSettings | None = None, *, seed: int = 0
) -> tuple[nn.Module, TextHistory]:
    """An encoder of this config, trained from nothing as a masked language model; `.save_pretrained` keeps it."""
    model = fresh(config, "words", seed=seed)
    return model, fit(model, task, settings, seed=seed)


def search(
    model: nn.Module,
    task: TextTask,
    *,
    settings: BertSettings | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
) -> ImpResult:
    """Trains, prunes the encoder by trained magnitude, all matrices together, rewinds, and again.

    Level l of the lottery has the mask of `settings.ratios()[l]`, with exact counts and ties settled by a random order
    of `seed`, and what its training measured. Every level starts from the encoder as given, embeddings and layer norms
    too, with a fresh optimizer and schedule. `folder`: as `gebt.iterative_magnitude_pruning`. `model` ends as the last level trained it.
    Raises `ValueError` for a model that is not of the family.
    """
    settings = settings or BertSettings()

    def train(model: nn.Module, *, start: int, stop: int | None, enforce: Callable[[optim.Optimizer], object]) -> Any:
        history = fit(model, task, settings.training, seed=seed, start=start, stop=stop, enforce=enforce)
        return {"loss": history.losses[-1], **history.score}

    stays = head_names(model) if settings.head == "keep" else ()
    weights = prunable(model)
    return iterative_magnitude_pruning(
        model, train, ratio=settings.ratios(), weights=weights, stays=stays, seed=seed, folder=folder
    )


def evaluate(
    model: nn.Module,
    task: TextTask,
    mask: Mask | None,
    *,
    variant: Variant = "ticket",
    fresh_head: bool = True,
    settings: TextSettings | None = None,
    seed: int = 0,
) -> tuple[nn.Module, TextHistory]:
    """Fine-tunes a copy of the pretrained `model` under the mask, its head drawn anew; None: the dense network.

    `fresh_head`: False for a head that was pretrained, too, that of a language model.
    The mask may be of a model with another head. Arms, all of as many kept weights: the "ticket" itself; a "random
    mask" over all prunable weights; its mask on an encoder of "random init"; its mask on the pretrained encoder with
    "shuffled layers", in one random order; "one shot" prunes pretrained magnitudes. Raises `ValueError` for another
    arm, or a mask that does not fit.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"arm (got {variant!r}), expected one of {get_args(Variant)}")
    network = copy.deepcopy(model)
    if fresh_head:
        reset_head(network, seed)
    if mask is None:
        return network, fit(network, task, settings, seed=seed)
    own = fitted(mask, network)
    if variant == "random mask":
        own = shuffled(own, generator=torch.Generator().manual_seed(seed), within="all")
    elif variant == "random init":
        reinitialize(network, seed)
    elif variant == "shuffled layers":
        shuffle_layers(network, seed)
    elif variant == "one shot":
        own = _one_shot(network, own, seed)
    return network, fit(
        network, task, settings, seed=seed, enforce=lambda optimizer: enforce_mask(network, own, optimizer)
    )


def _one_shot(network: nn.Module, mask: Mask, seed: int) -> Mask:
    weights = prunable(network)
    # Half an entry more, so that the floor is the mask's own count whatever the division rounds to.
    ratio = (mask.size - mask.kept + 0.5) / mask.size
    return make_mask(magnitude({name: weights[name] for name in mask}), ratio=ratio, tie_break=TieBreaker(seed))
