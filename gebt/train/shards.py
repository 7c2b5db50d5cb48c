"""Which process owns which pair of a graph, and how numbers get to the owners of their pairs and back.

Tensors alone are sent, by `torch.distributed`; with one process nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

RUN = 1 << 18


class Shards:
    """`owner` [P]: the process of every pair, any assignment; the same table in all of the `world` processes.

    A process numbers its own pairs 0, 1, ... as they follow one another. It keeps the table (a byte for a pair, two
    from 257 processes on) and the numbers of its own pairs (4 bytes each, 8 from 2^31 pairs on). `group`: the
    processes, by default all; it must take tensors of the CPU (gloo).
    Raises `ValueError` for an owner or a rank outside 0..world - 1.

    >>> shards = Shards(torch.tensor([0, 1, 1, 0]), rank=1, world=2)
    >>> shards.own, shards.local(torch.tensor([2]))
    (tensor([1, 2], dtype=torch.int32), tensor([1]))
    """

    def __init__(self, owner: Tensor, *, rank: int, world: int, group: ProcessGroup | None = None) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank (got {rank} of {world} processes), expected 0 to {world - 1}")
        if owner.numel() and not (int(owner.min()) >= 0 and int(owner.max()) < world):
            got = f"{int(owner.min())} to {int(owner.max())}"
            raise ValueError(f"owners (got {got} for {world} processes), expected 0 to {world - 1}")
        self.rank, self.world, self.group = rank, world, group
        self.owner = owner.to(_narrowest(world))
        numbers = torch.int32 if owner.numel() < 2**31 else torch.int64
        runs = [(own == rank).nonzero().squeeze(1) + i * RUN for i, own in enumerate(self.owner.split(RUN))]
        self.own = torch.cat([torch.empty(0, dtype=numbers), *(run.to(numbers) for run in runs)])

    @staticmethod
    def by_smaller_end(
        runs: Iterable[tuple[Any, Tensor]],
        num_pairs: int,
        parts: Tensor,
        *,
        rank: int,
        world: int,
        group: ProcessGroup | None = None,
    ) -> Shards:
        """The owner of a pair is that of the part of its smaller end; processes own runs of parts.

        Args:
            runs: places of some pairs (a slice, or their numbers) and the pairs [2, p], all of them in turn.
            num_pairs: how many pairs there are.
            parts: part 0..count-1 of every node [N]; part i belongs to process i * world // count, so that with fewer
                parts than processes some own no pair.
            rank: number of this process.
            world: how many processes there are.
            group: the processes; default: all.

        Returns:
            The shards, as this process sees them.
        """
        count = int(parts.max()) + 1 if parts.numel() else 1
        of_node = (parts * world // count).to(_narrowest(world))
        owner = torch.empty(num_pairs, dtype=of_node.dtype)
        for places, pairs in runs:
            owner[places] = of_node[pairs.amin(0)]
        return Shards(owner, rank=rank, world=world, group=group)

    def local(self, ids: Tensor) -> Tensor:
        """Local numbers of pairs that are this process's own."""
        return torch.searchsorted(self.own, ids.to(self.own.dtype))

    def total(self, counts: Tensor) -> Tensor:
        """The sum over all processes of a tensor of whole numbers; collective."""
        counts = counts.clone()
        distributed.all_reduce(counts, group=self.group)
        return counts


class Route:
    """The way of numbers to the owners of the pairs `ids` [n] and back; collective, as are its methods.

    A process sends 8 bytes to each for the counts, then the numbers themselves.
    """

    def __init__(self, shards: Shards, ids: Tensor) -> None:
        self._group = shards.group
        owner = shards.owner[ids]
        self._by_owner = owner.argsort(stable=True)
        there = torch.bincount(owner, minlength=shards.world)
        here = torch.empty_like(there)
        distributed.all_to_all_single(here, there, group=self._group)
        self._there, self._here = there.tolist(), here.tolist()
        self._local = shards.local(self.forth(ids.to(shards.own.dtype)))

    def forth(self, numbers: Tensor) -> Tensor:
        """What all processes send [n] to this one, in the order of their ranks."""
        received = numbers.new_empty(sum(self._here))
        distributed.all_to_all_single(received, numbers[self._by_owner], self._here, self._there, self._group)
        return received

    def back(self, whole: Tensor) -> Tensor:
        """For every id its entry [n] of what its owner holds, `whole`, by local numbers."""
        received = whole.new_empty(sum(self._there))
        distributed.all_to_all_single(received, whole[self._local], self._there, self._here, self._group)
        ordered = torch.empty_like(received)
        ordered[self._by_owner] = received
        return ordered

    def arrived(self, numbers: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Process by process, the local numbers of pairs and what was sent for them."""
        return zip(self._local.split(self._here), self.forth(numbers).split(self._here), strict=True)


def _narrowest(world: int) -> torch.dtype:
    return torch.uint8 if world <= 256 else torch.int16
