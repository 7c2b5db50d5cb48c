"""How an epoch is cut into batches: the same cut, and the same batches, whoever builds them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gebt.graph.batches import Batch, Sampler, clusters, random_parts

Cut = Literal["random", "clusters", "neighbours", "walks"]
PARTITIONS = ("random", "clusters")


@dataclass(frozen=True)
class BatchSettings:
    """How an epoch is cut into batches, and how many of them a step of the weights takes.

    `cut` "random", "clusters": `parts` of the nodes, drawn or with neighbours mostly together, `together` of them a
    batch, put together anew each epoch. "neighbours": `size` training nodes a batch, and around them up to
    `fanouts[i]` neighbours at distance i + 1. "walks": what random walks of `length` steps from `size` training nodes
    come through. `per_step`: batches of one step, whose gradients are added up.
    """

    cut: Cut = "clusters"
    parts: int = 10
    together: int = 1
    size: int = 512
    fanouts: tuple[int, ...] = (10, 10)
    length: int = 3
    per_step: int = 1

    def __post_init__(self) -> None:
        if self.cut not in get_args(Cut):
            raise ValueError(f"cut into batches (got {self.cut!r}), expected one of {get_args(Cut)}")
        for name in ("parts", "together", "size", "per_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} of batches (got {getattr(self, name)}), expected at least 1")
        if self.cut in PARTITIONS and self.together > self.parts:
            raise ValueError(f"parts together (got {self.together} of {self.parts}), expected at most {self.parts}")


class Plan:
    """The batches of every epoch of one training, built one by one in any order.

    `train` [T]: the nodes to learn from. Batch b of epoch e comes from a random state of (seed, e, b) alone, so that
    processes that share the batches of an epoch build what one process would have built.
    `parts` [N]: the part of each node where the cut is a partition, else None.
    """

    def __init__(self, sampler: Sampler, train: Tensor, settings: BatchSettings, seed: int) -> None:
        self.sampler, self.train, self.settings, self.seed = sampler, train, settings, seed
        self.parts: Tensor | None = None
        if settings.cut in PARTITIONS:
            self.parts = self._parts()
            self._by_part = self.parts.argsort(stable=True)
            self._ends = torch.bincount(self.parts, minlength=settings.parts).cumsum(0).tolist()

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, each = self.train.numel(), self.settings.size
        if self.parts is not None:
            whole, each = self.settings.parts, self.settings.together
        return -(-whole // each)

    def batch(self, epoch: int, number: int) -> Batch:
        """Batch `number`, from 0, of an epoch, from 1; no more than `len(self)`."""
        settings, generator = self.settings, generator_of(self.seed, epoch, number)
        if self.parts is not None:
            order = torch.randperm(settings.parts, generator=generator_of(self.seed, epoch))
            chosen = order[number * settings.together : (number + 1) * settings.together]
            return self.sampler.induced(self._members(chosen.tolist()))
        order = torch.randperm(self.train.numel(), generator=generator_of(self.seed, epoch))
        own = self.train[order[number * settings.size : (number + 1) * settings.size]]
        if settings.cut == "neighbours":
            return self.sampler.neighbours(own, settings.fanouts, generator)
        return self.sampler.walks(own, settings.length, generator)

    def part(self, number: int) -> Batch:
        """One part of the partition with its pairs, or for the other cuts `size` nodes in the order of their numbers.

        All of them together are all nodes, each once: what is evaluated batch by batch.
        """
        if self.parts is not None:
            return self.sampler.induced(self._members([number]))
        nodes = torch.arange(number * self.settings.size, min((number + 1) * self.settings.size, self._nodes))
        return self.sampler.neighbours(nodes, self.settings.fanouts, generator_of(self.seed, 0, number))

    @property
    def num_parts(self) -> int:
        """How many there are of `part`."""
        return self.settings.parts if self.parts is not None else -(-self._nodes // self.settings.size)

    @property
    def _nodes(self) -> int:
        return self.sampler.edges.num_nodes

    def _parts(self) -> Tensor:
        if self.settings.cut == "random":
            return random_parts(self._nodes, self.settings.parts, generator_of(self.seed, 0))
        return clusters(self.sampler.edges, self.settings.parts)

    def _members(self, chosen: Sequence[int]) -> Tensor:
        spans = [(self._ends[part - 1] if part else 0, self._ends[part]) for part in chosen]
        return torch.cat([self._by_part[start:end] for start, end in spans])


def generator_of(seed: int, *numbers: int) -> torch.Generator:
    """A generator of its own for these numbers."""
    return torch.Generator().manual_seed(stream_of(seed, *numbers))


def stream_of(seed: int, *numbers: int) -> int:
    """A seed of 63 bits for these numbers: the head of the sha256 of their text."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *numbers))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
