"""Masks by chance: the controls that a method must beat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from gebt.prune.mask import Mask
from gebt.prune.scores import random
from gebt.prune.selection import make_mask, pruned_count

Distribution = Literal["global", "uniform", "erk"]


def random_mask(
    tensors: Mapping[str, Tensor], *, ratio: float, generator: torch.Generator, distribution: Distribution = "global"
) -> Mask:
    """A mask that removes exactly floor(ratio n) entries at random.

    `distribution` of what stays: "global" draws from all tensors together; "uniform" gives every tensor the same density;
    "erk" one proportional to (the sum of its sizes) / (their product), at most 1 (Erdos-Renyi-kernel, Evci et al.
    2020). Raises `ValueError` for a ratio outside [0, 1) or another allotment.
    """
    if distribution == "global":
        return make_mask(random(tensors, generator), ratio=ratio, allow_empty=True)
    if distribution not in ("uniform", "erk"):
        raise ValueError(f"allotment (got {distribution!r}), expected 'global', 'uniform' or 'erk'")
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    counts = kept_counts(shapes, ratio, distribution)
    kept = {}
    for name, shape in shapes.items():
        flat = torch.zeros(shape.numel(), dtype=torch.bool)
        flat[torch.randperm(shape.numel(), generator=generator)[: counts[name]]] = True
        kept[name] = flat.view(shape).to(tensors[name].device)
    return Mask(kept)


def kept_counts(
    shapes: Mapping[str, torch.Size], ratio: float, distribution: Literal["uniform", "erk"]
) -> dict[str, int]:
    """How many entries of each tensor stay; together exactly n - floor(ratio n), rounding by largest remainder."""
    total = sum(shape.numel() for shape in shapes.values())
    kept = total - pruned_count(total, ratio)
    if distribution == "uniform":
        shares = {name: shape.numel() * kept / total for name, shape in shapes.items()}
    else:
        shares = _erk_shares(shapes, kept)
    counts = {name: math.floor(share) for name, share in shares.items()}
    for name in sorted(shares, key=lambda own: counts[own] - shares[own])[: kept - sum(counts.values())]:
        counts[name] += 1
    return counts


def shuffled(mask: Mask, *, generator: torch.Generator, within: Literal["layer", "all"] = "layer") -> Mask:
    """The same number of kept entries elsewhere: in each tensor ("layer"), or in all together ("all")."""
    if within == "layer":
        return Mask({name: kept.flatten()[_order(kept, generator)].view(kept.shape) for name, kept in mask.items()})
    flat = mask.flat()
    parts = flat[_order(flat, generator)].split([kept.numel() for kept in mask.values()])
    return Mask({name: part.view(mask[name].shape) for name, part in zip(mask, parts, strict=True)})


def _order(kept: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(kept.numel(), generator=generator).to(kept.device)


def _erk_shares(shapes: Mapping[str, torch.Size], kept: int) -> dict[str, float]:
    """Entries (not rounded) of each tensor: eps * the sum of its sizes; what would be more than all of it is whole."""
    whole: set[str] = set()
    while True:
        rest = {name: shape for name, shape in shapes.items() if name not in whole}
        left = kept - sum(shapes[name].numel() for name in whole)
        eps = left / sum(sum(shape) for shape in rest.values()) if rest else 0.0
        over = {name for name, shape in rest.items() if eps * sum(shape) > shape.numel()}
        if not over:
            part = {name: eps * sum(shape) for name, shape in rest.items()}
            return {name: part.get(name, float(shape.numel())) for name, shape in shapes.items()}
        whole |= over
