"""Clustered graphs of any size, drawn block by block: none is ever in memory whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gebt.data.mapped.streams import GraphStream

BLOCK = 1000
NEAR = 4


def clustered(
    nodes: int, *, degree: int = 10, features: int = 32, classes: int = 16, inside: float = 0.9, noise: float = 2.0,
    seed: int = 0,
) -> GraphStream:  # fmt: skip
    """A graph of about `nodes * degree / 2` pairs, two directed edges each, in blocks of 1000 neighboring numbers.

    Each node draws degree / 2 neighbors: the share `inside` from its own block, the rest from the 4 blocks on either
    side. A block has one label, block mod classes; features are the mean of the label plus `noise` times as much noise.
    60 % of the nodes are for training, 20 % each for validation and test. Equal arguments give equal graphs.
    """
    blocks = -(-nodes // BLOCK)
    means = np.random.default_rng((seed, 0)).standard_normal((classes, features), np.float32)
    labels = torch.arange(nodes) // BLOCK % classes
    part = torch.rand(nodes, generator=torch.Generator().manual_seed(seed))
    masks = part < 0.6, (part >= 0.6) & (part < 0.8), part >= 0.8

    def edges_of(block: int) -> NDArray[Any]:
        source = np.random.default_rng((seed, 1, block))
        first = block * BLOCK
        low = np.repeat(np.arange(first, min(first + BLOCK, nodes)), degree // 2)
        near = np.clip(block + source.integers(-NEAR, NEAR + 1, low.size), 0, blocks - 1)
        target = np.where(source.random(low.size) < inside, block, near) * BLOCK + source.integers(0, BLOCK, low.size)
        return np.stack((low, np.minimum(target, nodes - 1)), 1)

    def features_of(block: int) -> NDArray[Any]:
        source = np.random.default_rng((seed, 2, block))
        size = min(BLOCK, nodes - block * BLOCK)
        return means[block % classes] + noise * source.standard_normal((size, features), np.float32)

    def edges(rows: int, _: Path) -> Iterator[NDArray[Any]]:
        return _together(edges_of, blocks, rows, BLOCK * (degree // 2))

    count = nodes * (degree // 2)
    return GraphStream(
        f"clustered-{nodes}", nodes, count, features, edges,
        lambda rows: _together(features_of, blocks, rows, BLOCK), labels, masks, classes,
    )  # fmt: skip


def _together(draw: Any, blocks: int, rows: int, rows_a_block: int) -> Iterator[NDArray[Any]]:
    """Blocks put together up to so many rows; one at least."""
    step = max(1, rows // rows_a_block)
    for start in range(0, blocks, step):
        yield np.concatenate([draw(block) for block in range(start, min(start + step, blocks))])
