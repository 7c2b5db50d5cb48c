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
    """Train, validation and test masks drawn by a seed: so many nodes of each class, the rest for the test.

    Equal on any machine for equal labels and seed. Shchur et al. drop classes too small for such a split; here one is
    an error, because no data set of the manifest has one and a dropped class would change the task unseen.

    Args:
        name: of the graph, for errors.
        labels: classes [N].
        classes: C.
        train_per_class: training nodes of each class.
        val_per_class: validation nodes of each class.
        seed: 0 to 2^32 - 1.

    Returns:
        Train, validation and test masks, each [N] bool.

    Raises:
        GraphError: for a seed out of range, and a class without a node for the test.

    Source:
        Shchur et al. 2018, "Pitfalls of graph neural network evaluation".

    Example:
        >>> train, val, test = seeded_split("toy", torch.tensor([0, 0, 0, 1, 1, 1]), 2, 1, 1, seed=0)
        >>> int(train.sum()), int(val.sum()), int(test.sum()), bool((train & val).any())
        (2, 2, 2, False)
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
