"""Room for what is about to be built: asked before, not found out by the system after."""

from __future__ import annotations

import os
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")


def use_huge_pages() -> None:
    """Lets torch put large CPU tensors on huge pages, unless the environment has settled it already.

    A large tensor is mapped anew at each operation, and most of an elementwise operation was the system handing out its
    small pages: 173 MB take 24 instead of 240 ms (docs/engines.md). torch reads the setting (THP_MEM_ALLOC_ENABLE) at
    its first large allocation in the process, so commands call this first; a library must not decide it on import.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


class OutOfRoomError(ValueError):
    """Something that would not fit into memory; the message says how much it needs."""


def free_bytes(device: torch.device) -> int | None:
    """Bytes free on the device, or in this machine's memory; None where that cannot be known."""
    if device.type == "cuda":
        # What torch has set aside and does not use is free too.
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + idle
    try:
        line = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024


def check_room(what: str, needed: int, device: torch.device) -> None:
    """Raises `OutOfRoomError` when building `what` needs more bytes than are free."""
    free = free_bytes(device)
    if free is not None and needed > free:
        got, most = f"{needed / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB"
        raise OutOfRoomError(f"{what} (got a need of {got}), expected at most the {most} that are free on {device}")
