"""Pruning at initialization: one call from a score (SynFlow, SNIP, GraSP, ...) to the mask of an untrained network."""

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
# Images of each class that a score of one pass sees, as in Lee et al. 2019 and Wang et al. 2020.
_PER_CLASS = 10
# Learning rate times steps of the paper's mining on CIFAR-10: 0.1 for 150 epochs of 391. In a shorter mining with the
# same rate scores hardly move from their start; with this product they travel, and decay, as far.
_RATE_TIMES_STEPS = 0.1 * 150 * 391
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
    """The mask that removes floor(ratio n) of the n weights of an untrained network, all layers ranked together.

    Layers may be emptied: SynFlow's reason.

    Args:
        model: the untrained network; "gem-miner" leaves it with weights of constant size.
        images: the training images.
        score: "snip", "grasp" and "taylor" see ten images of each class; "synflow" none, in 100 rounds; "gem-miner"
            trains scores; "random" is pruning at random, "uniform" and "erk" the same with a ratio for each layer.
        ratio: share of the weights to prune, in [0, 1).
        settings: of the training of "gem-miner".
        seed: of the images drawn, of ties and of random scores.
        on_epoch: called with the epoch and the loss by "gem-miner".

    Returns:
        The mask over the prunable weights.

    Raises:
        ValueError: another score, or a ratio outside [0, 1).

    Example:
        >>> from gebt.data.images import load_images
        >>> from gebt.models.mlp import MLP
        >>> mask = mask_at_init(MLP(64, 10, (20,), seed=0), load_images("digits"), score="magnitude", ratio=0.5)
        >>> mask.size, mask.kept
        (1480, 740)
    """
    if score not in get_args(Score):
        raise ValueError(f"score (got {score!r}), expected one of {get_args(Score)}")
    weights, generator = prunable_weights(model), torch.Generator().manual_seed(seed)
    mean, std = images.statistics()
    if score == "synflow":
        # A mean over spatial positions and the like must see the size that it will see in training.
        return synflow_mask(model, images.pixels[:1].float(), ratio=ratio, seed=seed)
    if score in ("random", "uniform", "erk"):
        distribution: Any = "global" if score == "random" else score
        return random_mask(weights, ratio=ratio, generator=generator, distribution=distribution)
    if score == "gem-miner":
        return _gem_mined(model, images, ratio, settings or ImageSettings(), seed, on_epoch)
    if score == "magnitude":
        scores = magnitude(weights)
    else:
        scores = _BY_DATA[score](model, list(few(images, seed).batches(256, mean=mean, std=std)))
    return make_mask(scores, ratio=ratio, tie_break=TieBreaker(seed), allow_empty=True)


def few(images: Images, seed: int, per_class: int = _PER_CLASS) -> Images:
    """A few images of every class, drawn at random.

    Args:
        images: to draw from.
        seed: of the draw.
        per_class: images of each class; all of a class that has fewer.

    Returns:
        The images drawn, class after class.

    Example:
        >>> from gebt.data.images import load_images
        >>> few(load_images("digits"), seed=0, per_class=2).labels.tolist()
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    labels = images.labels[order]
    return images.take(torch.cat([order[labels == label][:per_class] for label in range(len(images.classes))]))


def _gem_mined(
    model: nn.Module, images: Images, ratio: float, settings: ImageSettings, seed: int, on_epoch: Any
) -> Mask:
    mean, std = images.statistics()

    def batches(epoch: int) -> Any:
        return images.batches(
            settings.batch, mean=mean, std=std, seed=seed * 100_003 + epoch, crop=settings.crop, flip=settings.flip
        )

    def optimizer(scores: list[nn.Parameter], steps: int) -> Any:
        sgd = optim.SGD(scores, lr=_RATE_TIMES_STEPS / steps, momentum=0.9)
        return sgd, optim.lr_scheduler.CosineAnnealingLR(sgd, steps)

    # As many freezings as the paper's 150 epochs have, or one an epoch where there are fewer epochs.
    period = max(1, settings.epochs // 30)
    result = gem_miner(
        model, batches, ratio=ratio, epochs=settings.epochs, period=period, optimizer=optimizer, seed=seed,
        on_epoch=on_epoch,
    )  # fmt: skip
    return result.mask
