"""The processes of one training: who they are, and the few numbers they tell each other. Tensors alone travel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

# Seconds after which a process that waits for a dead one gives up.
TIMEOUT = 300.0


# What gloo and NCCL say when a process at the other end has gone, or does not answer in time.
GONE = ("closed by peer", "reset by peer", "Connection refused", "Timed out", "timed out", "timeout", "Broken pipe")


class LostProcessError(ValueError):
    """Another process has ended or does not answer."""


@dataclass(frozen=True)
class Processes:
    """`rank` of `count` processes; with one there is nobody to talk to, and nothing of torch.distributed is called."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes for all."""
        return self.rank == 0

    def part_of(self, numbers: range) -> range:
        """This process's part of consecutive numbers: parts stand in the order of the ranks, longer ones first."""
        size, longer = divmod(len(numbers), self.count)
        start = self.rank * size + min(self.rank, longer)
        return numbers[start : start + size + (self.rank < longer)]

    def sum_(self, numbers: Tensor) -> Tensor:
        """Adds up `numbers` over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(numbers)
        return numbers

    def rows(self, own: Tensor) -> Tensor:
        """The rows of all processes, however many each has, in the order of the ranks."""
        if self.count == 1:
            return own
        sizes = torch.zeros(self.count, dtype=torch.long, device=own.device)
        sizes[self.rank] = own.shape[0]
        most = int(self.sum_(sizes).max())
        padded = own.new_zeros((most, *own.shape[1:]))
        padded[: own.shape[0]] = own
        parts = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes.tolist(), strict=True)])

    def wait(self) -> None:
        """Returns once all processes are here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Processes()


@contextmanager
def processes(device: str = "cpu", timeout: float = TIMEOUT) -> Iterator[Processes]:
    """The processes that torchrun has started, connected; `ALONE` where it has not.

    Tensors of a CPU go over gloo, those of a GPU over NCCL; every wait ends after `timeout` seconds. Without
    GLOO_SOCKET_IFNAME processes of one machine talk over its loopback.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    rank = int(os.environ["RANK"])
    try:
        _connect(backend, timedelta(seconds=timeout))
        yield Processes(rank, count)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in GONE):
            raise
        said = str(error).splitlines()[0].rpartition("] ")[2]
        raise LostProcessError(
            f"process {rank} of {count} (got: {said}), expected an answer within {timeout:g} s; another process has "
            "ended or hangs: see what it said. Start again with --resume, or with torchrun --max-restarts"
        ) from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _connect(backend: str, timeout: timedelta) -> None:
    # A restart may find the store of the attempt before, with the addresses of processes that are gone.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, count = next(rendezvous("env://", timeout=timeout))
    store = PrefixStore(f"attempt-{attempt}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
