"""Pruning before training, by any score of the core: one call from score to mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn, optim

from gebt.data.images import Images
from gebt.prune.gem_miner import gem_miner
from gebt.prune.mask import Mask
from gebt.prune.random_masks import random_mask
from gebt.prune.saliency import grasp, snip, taylor
from gebt.prune.scores import magnitude, prunable_weights
from gebt.prune.selection import make_mask
from gebt.prune.synflow import synflow_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.train.images import ImageSettings

Score = Literal["synflow", "snip", "grasp", "taylor", "magnitude", "random", "uniform", "erk", "gem-miner"]
# Images that a score of one pass looks at: ten of each class, as Lee et al. 2019 and Wang et al. 2020 take.
PER_CLASS = 10
# Learning rate times steps of the paper's mining on CIFAR-10: 0.1 for 150 epochs of 391. In a shorter mining with the
# same rate scores hardly leave where they started; with this product they travel, and decay, as far.
MINED = 0.1 * 150 * 391
_BY_DATA: Mapping[str, Callable[..., dict[str, Tensor]]] = {"snip": snip, "grasp": grasp, "taylor": taylor}


def mask_at_init(
    model: nn.Module,
    images: Images,
    *,
    score: Score,
    ratio: float,
    settings: ImageSettings | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, float], object] | None = None,
) -> Mask:
    """The mask that removes floor(ratio n) weights of an untrained network, all layers ranked together.

    "snip", "grasp", "taylor" look at ten images of each class; "synflow" at none, in 100 rounds; "gem-miner" trains
    scores for `settings.epochs` epochs, told to `on_epoch`, and leaves the network with weights of constant size.
    "uniform" and "erk" are random with a share of their own for every layer. Layers may be emptied: SynFlow's reason.
    Raises `ValueError` for another score or a ratio outside [0, 1).
    """
    if score not in get_args(Score):
        raise ValueError(f"score (got {score!r}), expected one of {get_args(Score)}")
    weights, generator = prunable_weights(model), torch.Generator().manual_seed(seed)
    mean, std = images.statistics()
    if score == "synflow":
        # A mean over spatial positions and the like shall see the size it will see in training.
        return synflow_mask(model, images.pixels[:1].float(), ratio=ratio, seed=seed)
    if score in ("random", "uniform", "erk"):
        distribution: Any = "global" if score == "random" else score
        return random_mask(weights, ratio=ratio, generator=generator, distribution=distribution)
    if score == "gem-miner":
        return _mined(model, images, ratio, settings or ImageSettings(), seed, on_epoch)
    if score == "magnitude":
        scores = magnitude(weights)
    else:
        scores = _BY_DATA[score](model, list(few(images, seed).batches(256, mean=mean, std=std)))
    return make_mask(scores, ratio=ratio, tie_break=TieBreaker(seed), allow_empty=True)


def few(images: Images, seed: int, per_class: int = PER_CLASS) -> Images:
    """So many images of every class (or all of it), drawn by seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = images.labels[order]
    return images.take(torch.cat([order[labels == label][:per_class] for label in range(len(images.classes))]))


def _mined(model: nn.Module, images: Images, ratio: float, settings: ImageSettings, seed: int, on_epoch: Any) -> Mask:
    mean, std = images.statistics()

    def batches(epoch: int) -> Any:
        return images.batches(
            settings.batch, mean=mean, std=std, seed=seed * 100_003 + epoch, crop=settings.crop, flip=settings.flip
        )

    def optimizer(scores: list[nn.Parameter], steps: int) -> Any:
        own = optim.SGD(scores, lr=MINED / steps, momentum=0.9)
        return own, optim.lr_scheduler.CosineAnnealingLR(own, steps)

    # As many freezings as the paper's 150 epochs have, or as many as there is room for.
    period = max(1, settings.epochs // 30)
    found = gem_miner(
        model, batches, ratio=ratio, epochs=settings.epochs, period=period, optimizer=optimizer, seed=seed,
        on_epoch=on_epoch,
    )  # fmt: skip
    return found.mask
