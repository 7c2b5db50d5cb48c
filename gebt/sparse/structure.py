"""Structured weight tickets: masks over hidden units and input features, so that whole products disappear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from gebt.prune.mask import Mask, joined
from gebt.prune.scores import prunable_weights
from gebt.prune.selection import make_unread_mask
from gebt.sparse.compaction import Group

WeightStructure = Literal["entry", "unit", "feature", "joint", "2:4"]
# Structures whose masks are over single weights.
OF_ENTRIES: tuple[WeightStructure, ...] = ("entry", "2:4")
UnitScore = Literal["magnitude", "norm", "gradient"]

FEATURES = "features"
# Structures that remove input features.
OF_FEATURES: tuple[WeightStructure, ...] = ("feature", "joint")


def groups_of(model: nn.Module, structure: WeightStructure) -> list[Group]:
    """The groups of the model that a structure prunes: hidden units, input features, or both.

    Raises `ValueError` for an unknown structure, or a model that does not list its groups or has none of the kind.
    """
    if structure not in get_args(WeightStructure) or structure in OF_ENTRIES:
        raise ValueError(f"weight structure (got {structure!r}), expected 'unit', 'feature' or 'joint'")
    listed = getattr(model, "groups", None)
    if listed is None:
        raise ValueError(f"model {type(model).__name__} (got no groups()), expected one that lists its units")
    found = [
        group for group in listed()
        if structure == "joint" or (group.name == FEATURES) == (structure == "feature")
    ]  # fmt: skip
    if not found:
        raise ValueError(f"weight structure (got {structure!r}), expected a model with hidden layers")
    return found


def features_share(structure: WeightStructure, ratio: float, feature_ratio: float | None) -> float | None:
    """The share of input features that a structure prunes: `feature_ratio`, or `ratio` where it is not given.

    None, where the structure prunes none; raises `ValueError` when a `feature_ratio` is given nevertheless.
    """
    if structure in OF_FEATURES:
        return ratio if feature_ratio is None else feature_ratio
    if feature_ratio is not None:
        raise ValueError(f"feature ratio (got {feature_ratio}), expected weight_structure='feature' or 'joint'")
    return None


def unit_scores(groups: Sequence[Group], model: nn.Module, score: UnitScore) -> dict[str, Tensor]:
    """How much each unit is worth keeping, by group.

    "magnitude": s_u = |w_in(u)| |w_out(u)|, the norms of the weights that make and that read unit u (input features are
    made by nobody: |w_out(u)|). "norm": the absolute scale gamma_u of its normalization (Liu et al. 2017, network
    slimming). "gradient": |sum over w_out(u) of w dL/dw|, the loss's derivative to a gate on the unit's output
    (Molchanov et al. 2017), from the gradients of the last step; zero before the first. Features, which have no scale,
    fall to "magnitude". Raises `ValueError` for "norm" when a network has no normalization.
    """
    tensors = dict(model.named_parameters())
    by = {"magnitude": _magnitudes, "norm": _scales, "gradient": _derivatives}
    if score not in by:
        raise ValueError(f"unit score (got {score!r}), expected one of {get_args(UnitScore)}")
    return {group.name: by[score](group, tensors) for group in groups}


def select_units(
    groups: Sequence[Group], scores: Mapping[str, Tensor], *, ratio: float, feature_ratio: float | None, seed: int
) -> Mask:
    """Keeps the highest scores of each group: `ratio` of a layer's hidden units goes, `feature_ratio` of the features.

    Ties are settled by a random order of `seed`, the same in every draw. `feature_ratio` None: `ratio`.
    Raises `ValueError` as `gebt.make_mask`.
    """
    masks: list[Mask] = []
    for group in groups:
        share = ratio if group.name != FEATURES or feature_ratio is None else feature_ratio
        ties = torch.Generator().manual_seed(seed)
        masks.append(make_unread_mask({group.name: scores[group.name]}, ratio=share, generator=ties))
    return joined(masks)  # a ratio below 1 leaves a unit of every group


def entry_mask(groups: Sequence[Group], units: Mapping[str, Tensor], model: nn.Module) -> Mask:
    """The mask over weights that a mask over units means: rows that make and columns that read a pruned one go."""
    kept = {name: torch.ones_like(p, dtype=torch.bool) for name, p in prunable_weights(model).items()}
    for group in groups:
        if group.name not in units:
            continue
        for name, dim in (*group.made, *group.read):
            if name in kept:
                shape = [1] * kept[name].dim()
                shape[dim] = -1
                kept[name] &= units[group.name].to(kept[name].device).view(shape)
    return Mask(kept)


def _slice_norms(parts: Sequence[tuple[str, int]], tensors: Mapping[str, Tensor]) -> Tensor | None:
    squares = [
        tensors[name].detach().square().sum([d for d in range(tensors[name].dim()) if d != dim])
        for name, dim in parts
        if name in tensors and tensors[name].dim() >= 2
    ]
    return torch.stack(squares).sum(0).sqrt() if squares else None


def _magnitudes(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    made, read = _slice_norms(group.made, tensors), _slice_norms(group.read, tensors)
    assert read is not None
    return read if made is None else made * read


def _scales(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    scales = [tensors[name].detach().abs() for name, _ in group.made if name.endswith(".module.weight")]
    if scales:
        return torch.stack(scales).sum(0)
    if group.name == FEATURES:
        return _magnitudes(group, tensors)
    raise ValueError(f"unit score 'norm' (got no normalization in {group.name!r}), expected norm='batch'")


def _derivatives(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    total: Tensor | None = None
    for name, dim in group.read:
        weight = tensors[name]
        if weight.grad is None:
            # Before the first step no unit has shown what it is worth.
            share = weight.new_zeros(weight.shape[dim])
        else:
            share = (weight.detach() * weight.grad).sum([d for d in range(weight.dim()) if d != dim])
        total = share if total is None else total + share
    assert total is not None
    return total.abs()
