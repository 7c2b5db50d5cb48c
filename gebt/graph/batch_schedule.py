"""How an epoch is divided into batches: the same division and the same batches in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from gebt.graph.batches import Batch, Sampler, clusters, random_parts
from gebt.graph.edges import Edges
from gebt.graph.pyg_sampling import PygNeighbors
from gebt.graph.streamed_clusters import clusters_mapped

Strategy = Literal["random", "cluster", "neighbor", "random-walk"]
SamplerName = Literal["own", "pyg"]
PARTITIONS = ("random", "cluster")


@dataclass(frozen=True)
class BatchSettings:
    """How an epoch is divided into batches, and how many of them make one optimizer step.

    Attributes:
        strategy: "random": parts of the nodes, drawn anew each epoch. "cluster": parts with neighbors mostly together.
            "neighbor": training nodes with sampled neighbors. "random-walk": what walks from training nodes visit.
        num_parts: parts of the nodes, for "random" and "cluster".
        clusters_per_batch: parts that make a batch, drawn anew each epoch.
        size: training nodes a batch, for "neighbor" and "random-walk".
        fanouts: up to `fanouts[i]` neighbors are drawn at distance i + 1, for "neighbor".
        length: steps of a walk, for "random-walk".
        accumulate_batches: batches of one step, whose gradients are added up.
        sampler: what draws neighbors: "own", this library, or "pyg".
    """

    strategy: Strategy = "cluster"
    num_parts: int = 10
    clusters_per_batch: int = 1
    size: int = 512
    fanouts: tuple[int, ...] = (10, 10)
    length: int = 3
    accumulate_batches: int = 1
    sampler: SamplerName = "own"

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy of batches (got {self.strategy!r}), expected one of {get_args(Strategy)}")
        for name in ("num_parts", "clusters_per_batch", "size", "accumulate_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of batches (got {getattr(self, name)}), expected at least 1")
        if self.sampler not in get_args(SamplerName) or (self.sampler == "pyg" and self.strategy != "neighbor"):
            raise ValueError(
                f"--sampler (got {self.sampler!r} for {self.strategy!r}), expected 'own', or 'pyg' for 'neighbor'"
            )
        if self.strategy in PARTITIONS and self.clusters_per_batch > self.num_parts:
            raise ValueError(
                f"clusters per batch (got {self.clusters_per_batch} of {self.num_parts}), "
                f"expected at most {self.num_parts}"
            )


class BatchSchedule:
    """The batches of every epoch of one training, built one by one in any order.

    Batch b of epoch e comes from a random state of (seed, e, b) alone, so that processes that share the batches of an
    epoch build what one process would have built.

    Args:
        sampler: draws batches of the graph.
        train: the nodes to learn from, [T].
        settings: how an epoch is divided.
        seed: of all random states.
    """

    def __init__(self, sampler: Sampler, train: Tensor, settings: BatchSettings, seed: int) -> None:
        self.sampler, self.train, self.settings, self.seed = sampler, train, settings, seed
        # The last partition that was asked for: a training asks for that of one epoch, batch by batch.
        self._sorted: tuple[int, Tensor, list[int]] | None = None
        if settings.strategy in PARTITIONS:
            self.parts(0)
        self._pyg = self._of_pyg() if settings.sampler == "pyg" else None

    def __len__(self) -> int:
        """Batches of an epoch."""
        total, each = self.train.numel(), self.settings.size
        if self.settings.strategy in PARTITIONS:
            total, each = self.settings.num_parts, self.settings.clusters_per_batch
        return -(-total // each)

    def batch(self, epoch: int, number: int) -> Batch:
        """One batch of one epoch.

        Args:
            epoch: from 1.
            number: from 0, below `len(self)`.

        Returns:
            The batch.
        """
        settings, generator = self.settings, generator_of(self.seed, epoch, number)
        if settings.strategy in PARTITIONS:
            order = torch.randperm(settings.num_parts, generator=generator_of(self.seed, epoch, -1))
            chosen = order[number * settings.clusters_per_batch : (number + 1) * settings.clusters_per_batch]
            return self.sampler.induced(self._members(epoch, chosen.tolist()))
        order = torch.randperm(self.train.numel(), generator=generator_of(self.seed, epoch))
        roots = self.train[order[number * settings.size : (number + 1) * settings.size]]
        if self._pyg is not None:
            return self.sampler.of_pairs(*self._pyg.draw(roots, generator.initial_seed()), roots)
        if settings.strategy == "neighbor":
            return self.sampler.neighbors(roots, settings.fanouts, generator)
        return self.sampler.walks(roots, settings.length, generator)

    def _of_pyg(self) -> PygNeighbors:
        edges = self.sampler.edges
        if not isinstance(edges, Edges):
            raise ValueError("--sampler (got 'pyg' for a graph that is read from disk), expected 'own'")
        return PygNeighbors(edges, self.settings.fanouts)

    @property
    def _nodes(self) -> int:
        return self.sampler.edges.num_nodes

    @cached_property
    def clusters(self) -> Tensor:
        """The part [N] of every node under the strategy "cluster"."""
        edges, count = self.sampler.edges, self.settings.num_parts
        return clusters(edges, count) if isinstance(edges, Edges) else clusters_mapped(edges, count)

    def parts(self, epoch: int) -> Tensor:
        """The part of every node in an epoch, for the strategies "random" and "cluster".

        Args:
            epoch: from 1; "cluster" has the same parts in all.

        Returns:
            [N].
        """
        if self.settings.strategy == "cluster":
            return self.clusters
        return random_parts(self._nodes, self.settings.num_parts, generator_of(self.seed, epoch))

    def _members(self, epoch: int, chosen: Sequence[int]) -> Tensor:
        epoch = epoch if self.settings.strategy == "random" else 0
        if self._sorted is None or self._sorted[0] != epoch:
            parts = self.parts(epoch)
            ends = torch.bincount(parts, minlength=self.settings.num_parts).cumsum(0).tolist()
            self._sorted = (epoch, parts.argsort(stable=True), ends)
        _, by_part, ends = self._sorted
        return torch.cat([by_part[ends[part - 1] if part else 0 : ends[part]] for part in chosen])


def generator_of(seed: int, *numbers: int) -> torch.Generator:
    """A random generator for some numbers, independent of those for others.

    Args:
        seed: of the training.
        *numbers: of the epoch, the batch and the like.

    Returns:
        The generator, seeded with `stream_of`.
    """
    return torch.Generator().manual_seed(stream_of(seed, *numbers))


def stream_of(seed: int, *numbers: int) -> int:
    """A seed of 63 bits for some numbers: the head of the sha256 of their text.

    Args:
        seed: of the training.
        *numbers: of the epoch, the batch and the like.

    Returns:
        The seed.

    Example:
        >>> stream_of(0, 1, 2) == stream_of(0, 1, 2), stream_of(0, 1, 2) == stream_of(0, 12)
        (True, False)
    """
    digest = hashlib.sha256(" ".join(map(str, (seed, *numbers))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
