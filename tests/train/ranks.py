"""One, two and three processes train the same pair values. Not a test: `test_ranks.py` runs it.

python tests/train/ranks.py FOLDER. What process RANK of WORLD ends with is in FOLDER/WORLD.RANK.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from gebt.prune import EarlyBird, Mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.train.consistency import check_same_on_all_ranks, digest
from gebt.train.edge_values import EdgeValueStore
from gebt.train.shards import Shards

COUNT, STEPS, BATCHES = 1000, 4, 6
ORDER = TieBreaker(5)


def batch(step: int, number: int) -> tuple[Tensor, Tensor]:
    """Scattered pairs, more or fewer of them or none, and their gradients."""
    generator = torch.Generator().manual_seed(100 * step + number)
    size = (40, 0, 7, 120, 1, 80)[number]
    ids = torch.randperm(COUNT, generator=generator)[:size]
    return ids, torch.randn(size, dtype=torch.float64, generator=generator)


def owners(world: int) -> Tensor:
    """Uneven shards; of three processes the second owns nothing."""
    drawn = torch.rand(COUNT, generator=torch.Generator().manual_seed(9))
    return (drawn < 0.2) * (world - 1)


def weight(ids: Tensor) -> Tensor:
    return 1.0 + (ids % 3)


def train(values: EdgeValueStore, rank: int, world: int, steps: range) -> list[Mask]:
    """Process r takes the batches r, r + world, ...: lower ranks first is the order of one process."""
    drawn = []
    for step in steps:
        for first in range(0, BATCHES, world):
            ids, gradient = batch(step, first + rank)
            values.add_gradient(ids, gradient * values.read(ids))
        values.step()
        drawn.append(values.draw(0.6, ORDER, weight))
    return drawn


def made(rank: int, world: int, folder: Path | None = None, learning_rate: float = 0.05) -> EdgeValueStore:
    shards = Shards(owners(world), rank=rank, world=world)
    rest: dict[str, Any] = {"l1": 0.01, "dtype": torch.float64, "shards": shards, "run": 64, "folder": folder}
    return EdgeValueStore(COUNT, learning_rate=learning_rate, **rest)


def resumed(values: EdgeValueStore, rank: int, world: int, folder: Path) -> EdgeValueStore:
    state = folder / f"state.{world}.{rank}.pt"
    torch.save(values.state_dict(), state)
    other = made(rank, world, folder / "files")
    other.load_state_dict(torch.load(state, mmap=True, weights_only=True))
    return other


def told(action: Callable[[], object]) -> str:
    """What a refusal says."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


def refusals(rank: int, world: int) -> dict[str, str]:
    """What every process says when the last has other options, owners or settings than the others."""
    last = rank == world - 1
    own = Shards(owners(world).flip(0) if last else owners(world), rank=rank, world=world)
    rate = 0.2 if last else 0.1
    return {
        "options": told(lambda: check_same_on_all_ranks("options", b"those" if last else b"these")),
        "owners of pairs": told(lambda: EdgeValueStore(COUNT, learning_rate=0.1, shards=own)),
        "settings of pair values": told(lambda: made(rank, world, learning_rate=rate)),
    }


def agreed(masks: list[Mask]) -> EarlyBird:
    bird = EarlyBird()
    for mask in masks:
        bird.update(Mask(dict(mask)))  # of tensors, whose distance needs no kernel, for which every process loads numba
        check_same_on_all_ranks("mask and detector", digest(mask, bird.trajectory, bird.fired))
    return bird


def work(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:  # one process has no group, so that any call to one would fail
        meeting = (folder / f"meeting.{world}").as_uri()
        limit = timedelta(seconds=60)
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world, timeout=limit)
    values = made(rank, world)
    masks = train(values, rank, world, range(STEPS - 1))
    values = resumed(values, rank, world, folder)
    masks += train(values, rank, world, range(STEPS - 1, STEPS))
    bird = agreed(masks)
    found: dict[str, Any] = {
        "values": values.read(torch.arange(COUNT)),
        "masks": [mask["edges"] for mask in masks],
        "all": values.draw(0.0, ORDER)["edges"],
        "own": values.state_dict()["mean"].numel(),
        "trajectory": bird.trajectory,
        "refusals": refusals(rank, world),
    }
    torch.save(found, folder / f"{world}.{rank}.pt")
    values.add_gradient(torch.tensor([3]), torch.tensor([float("nan")], dtype=torch.float64))
    values.step()
    (folder / f"nan.{world}.{rank}").write_text(told(lambda: values.draw(0.5, ORDER)))
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)  # processes are forked
    for size in (1, 2, 3):
        multiprocessing.start_processes(work, (size, Path(sys.argv[1])), nprocs=size, start_method="fork")
