"""Splits drawn by seed: so many training and validation nodes of each class, the rest for the test."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gebt.graph.graph import GraphError

SEEDS = 2**32


def seeded_split(
    name: str, labels: Tensor, classes: int, train_per_class: int, val_per_class: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Train, validation and test masks, each [N] bool, equal for equal `labels` [N] and `seed` on any machine.

    Shchur et al. 2018 drop classes too small for such a split; here one raises `GraphError`, because no
    data set of the manifest has one and a dropped class would change the task unseen.
    """
    if not 0 <= seed < SEEDS:
        raise GraphError(f"split seed (got {seed}), expected 0 to {SEEDS - 1}")
    # RandomState, not Generator: numpy promises that its stream never changes, and fingerprints depend on it.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(labels.numel()))
    train, val = torch.zeros(2, labels.numel(), dtype=torch.bool)
    for number in range(classes):
        members = order[labels[order] == number]
        if len(members) <= train_per_class + val_per_class:
            raise GraphError(
                f"class {number} of {name!r} (got {len(members)} nodes), expected more than "
                f"{train_per_class} for training and {val_per_class} for validation"
            )
        train[members[:train_per_class]] = True
        val[members[train_per_class : train_per_class + val_per_class]] = True
    return train, val, ~(train | val)
