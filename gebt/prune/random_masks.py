"""Random masks: baselines that a pruning method must beat."""

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
    """A mask that prunes exactly floor(ratio n) entries at random.

    Args:
        tensors: their names and shapes are taken; n entries together.
        ratio: share to prune.
        generator: of the random numbers.
        distribution: how the kept entries are spread over tensors. "global": drawn from all together; "uniform": every
            tensor has the same density; "erk": a density proportional to (the sum of its sizes) / (their product), at
            most 1 (Erdos-Renyi kernel).

    Returns:
        The mask, on the tensors' devices.

    Raises:
        ValueError: for a ratio outside [0, 1) or another distribution.

    Source:
        "erk": Evci et al. 2020.

    Example:
        >>> tensors = {"a": torch.zeros(4), "b": torch.zeros(8)}
        >>> generator = torch.Generator().manual_seed(0)
        >>> mask = random_mask(tensors, ratio=0.5, generator=generator, distribution="uniform")
        >>> {name: int(kept.sum()) for name, kept in mask.items()}
        {'a': 2, 'b': 4}
    """
    if distribution == "global":
        return make_mask(random(tensors, generator), ratio=ratio, allow_empty=True)
    if distribution not in ("uniform", "erk"):
        raise ValueError(f"distribution (got {distribution!r}), expected 'global', 'uniform' or 'erk'")
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
    """How many entries of each tensor stay; together exactly n - floor(ratio n), rounded by largest remainder.

    Args:
        shapes: shape of every tensor; n entries together.
        ratio: share to prune.
        distribution: as in `random_mask`.

    Returns:
        The counts by name.

    Example:
        >>> kept_counts({"conv": torch.Size([4, 3, 3, 3]), "head": torch.Size([2, 4])}, 0.5, "erk")
        {'conv': 50, 'head': 8}
    """
    total = sum(shape.numel() for shape in shapes.values())
    kept = total - pruned_count(total, ratio)
    if distribution == "uniform":
        shares = {name: shape.numel() * kept / total for name, shape in shapes.items()}
    else:
        shares = _erk_shares(shapes, kept)
    counts = {name: math.floor(share) for name, share in shares.items()}
    for name in sorted(shares, key=lambda key: counts[key] - shares[key])[: kept - sum(counts.values())]:
        counts[name] += 1
    return counts


def shuffled(mask: Mask, *, generator: torch.Generator, within: Literal["layer", "all"] = "layer") -> Mask:
    """As many kept entries elsewhere.

    Args:
        mask: the mask whose counts are taken.
        generator: of the random order.
        within: "layer": as many in each tensor; "all": in all tensors together.

    Returns:
        A mask of the same names and shapes.

    Example:
        >>> mask = Mask({"w": torch.tensor([True, True, False, False])})
        >>> shuffled(mask, generator=torch.Generator().manual_seed(0)).kept
        2
    """
    if within == "layer":
        return Mask({name: kept.flatten()[_order(kept, generator)].view(kept.shape) for name, kept in mask.items()})
    flat = mask.flat()
    parts = flat[_order(flat, generator)].split([kept.numel() for kept in mask.values()])
    return Mask({name: part.view(mask[name].shape) for name, part in zip(mask, parts, strict=True)})


def _order(kept: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(kept.numel(), generator=generator).to(kept.device)


def _erk_shares(shapes: Mapping[str, torch.Size], kept: int) -> dict[str, float]:
    """Entries (not rounded) of each tensor: eps * the sum of its sizes, or all where that would be more."""
    dense: set[str] = set()
    while True:
        rest = {name: shape for name, shape in shapes.items() if name not in dense}
        budget = kept - sum(shapes[name].numel() for name in dense)
        eps = budget / sum(sum(shape) for shape in rest.values()) if rest else 0.0
        over = {name for name, shape in rest.items() if eps * sum(shape) > shape.numel()}
        if not over:
            part = {name: eps * sum(shape) for name, shape in rest.items()}
            return {name: part.get(name, float(shape.numel())) for name, shape in shapes.items()}
        dense |= over
