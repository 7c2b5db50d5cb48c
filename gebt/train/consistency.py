"""Processes that must agree: the same code, data, options and seeds before training, the same mask in every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import distributed
from torch.distributed import ProcessGroup

from gebt.prune.mask import Mask, pack_bits


def check_same_on_all_ranks(what: str, content: str | bytes, group: ProcessGroup | None = None) -> None:
    """Compares the SHA-256 of `content` over all processes (gloo, 32 bytes each); collective, and nothing with one.

    Raises `ValueError` in every process, naming `what` and the processes that differ from process 0.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size(group) == 1:
        return
    data = content.encode() if isinstance(content, str) else content
    mine = torch.tensor(list(sha256(data).digest()), dtype=torch.uint8)
    world = distributed.get_world_size(group)
    gathered = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(gathered, mine, group=group)
    everyone = torch.stack(gathered)
    others = (everyone != everyone[0]).any(1).nonzero().squeeze(1).tolist()
    if others:
        raise ValueError(
            f"{what} (got another in processes {others} than in process 0), expected the same in all "
            f"{world}; start them with the same code, data, options and seed"
        )


def digest(*things: Any) -> str:
    """SHA-256, in hexadecimal, of numbers, strings, bytes, None, tensors, masks, and mappings and sequences of them.

    Equal for equal things, whatever the order of a mapping, and for equal masks, be they bits or boolean tensors.
    Raises `ValueError` for anything else.
    """
    digest = sha256()
    _feed(digest, things)
    return digest.hexdigest()


def _feed(digest: Any, thing: Any) -> None:
    if isinstance(thing, Mask):
        packed = pack_bits(thing.flat()) if thing.words is None else thing.words.view(torch.uint8)
        _feed(digest, {name: tuple(shape) for name, shape in thing.shapes.items()})
        thing = packed[: (thing.size + 7) // 8]
    if isinstance(thing, Mapping):
        thing = [("mapping", len(thing)), *sorted(thing.items())]
    if isinstance(thing, torch.Tensor):
        whole = thing.detach().cpu().contiguous()
        _feed(digest, ("tensor", str(whole.dtype), tuple(whole.shape)))
        digest.update(whole.flatten().view(torch.uint8).numpy().data)
    elif isinstance(thing, bytes):
        _feed(digest, ("bytes", len(thing)))
        digest.update(thing)
    elif thing is None or isinstance(thing, str | int | float):
        text = f"{type(thing).__name__} {thing!r}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    elif isinstance(thing, Sequence):
        _feed(digest, f"sequence of {len(thing)}")
        for item in thing:
            _feed(digest, item)
    else:
        raise ValueError(f"thing to compare (got {type(thing).__name__}), expected numbers, strings, tensors or masks")
