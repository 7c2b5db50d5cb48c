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
    """Rounds of pruning, each followed by a training from the pretrained weights.

    The released code's schedule of a round's training is that of all rounds: `TextSettings(rounds=10)`.

    Attributes:
        rounds: of pruning.
        rate: share that a round prunes.
        schedule: the share is "of original", all prunable weights (the released code), or "of the rest" (the paper).
        head: what a round does with the task's head: "keep" it as trained (the code), or "reset" it with the encoder.
        prune_first: the first share goes by pretrained magnitude, before anything is trained; the code's way with
            masked language modeling, which saves a training.
        training: of each round.

    Raises:
        ValueError: numbers out of range, or another schedule or head.

    Example:
        >>> BertSettings(rounds=3, rate=0.1).ratios()
        [0.0, 0.1, 0.2, 0.3]
        >>> [round(ratio, 3) for ratio in BertSettings(rounds=3, rate=0.1, schedule="of the rest").ratios()]
        [0.0, 0.1, 0.19, 0.271]
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
        """The prune ratio of every training, in turn: 0, 0.1, ..., 0.9 by default.

        Returns:
            Shares of all prunable weights.
        """
        if self.schedule == "of original":
            shares = linear(float(Decimal(str(float(self.rate))) * self.rounds), self.rounds)
        else:
            shares = at_rate(self.rate, self.rounds)
        return shares if self.prune_first else [0.0, *shares]


def pretrain(
    config: Any, task: FillIn, settings: TextSettings | None = None, *, seed: int = 0
) -> tuple[nn.Module, TextHistory]:
    """Trains an encoder from scratch as a masked language model; its `.save_pretrained` writes it.

    Args:
        config: of transformers.
        task: texts with masked words.
        settings: epochs, learning rate and schedule.
        seed: of the initialization, of batches and of dropout.

    Returns:
        The model and its history.
    """
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

    Level l has the mask of `settings.ratios()[l]`, with exact counts, and the measurements of its training. Every level
    starts from the encoder's pretrained weights, embeddings and layer norms too, with a fresh optimizer and schedule.

    Args:
        model: a pretrained encoder with the task's head; ends as the last level trained it.
        task: to train on.
        settings: rounds, rate and training.
        seed: of batches, of dropout, and of the random order that settles ties.
        folder: as of `gebt.iterative_magnitude_pruning`.

    Returns:
        All levels.

    Raises:
        ValueError: a model that is not of the family.
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
    """Fine-tunes a copy of a pretrained model under a mask.

    Args:
        model: pretrained; stays as it is.
        task: to train on.
        mask: over the encoder's weights, also of a model with another head; None: the dense network.
        variant: all keep as many weights: the "ticket" itself; a "random mask" over all prunable weights; its mask on
            an encoder of "random init"; its mask on the pretrained encoder with "shuffled layers", in one random
            order; "one shot" prunes pretrained magnitudes.
        fresh_head: draw the head anew; False for a head that was pretrained, too, that of a language model.
        settings: epochs, learning rate and schedule.
        seed: of batches, of dropout and of what the variant draws.

    Returns:
        The trained copy and its history.

    Raises:
        ValueError: another variant, or a mask that does not fit.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"variant (got {variant!r}), expected one of {get_args(Variant)}")
    network = copy.deepcopy(model)
    if fresh_head:
        reset_head(network, seed)
    if mask is None:
        return network, fit(network, task, settings, seed=seed)
    kept = fitted(mask, network)
    if variant == "random mask":
        kept = shuffled(kept, generator=torch.Generator().manual_seed(seed), within="all")
    elif variant == "random init":
        reinitialize(network, seed)
    elif variant == "shuffled layers":
        shuffle_layers(network, seed)
    elif variant == "one shot":
        kept = _one_shot(network, kept, seed)
    return network, fit(
        network, task, settings, seed=seed, enforce=lambda optimizer: enforce_mask(network, kept, optimizer)
    )


def _one_shot(network: nn.Module, mask: Mask, seed: int) -> Mask:
    weights = prunable(network)
    # Half an entry more, so that the floor is the mask's count whatever the division rounds to.
    ratio = (mask.size - mask.kept + 0.5) / mask.size
    return make_mask(magnitude({name: weights[name] for name in mask}), ratio=ratio, tie_break=TieBreaker(seed))
