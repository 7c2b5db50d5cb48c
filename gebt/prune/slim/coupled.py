"""Channel masks over sets of layers: slices of one channel in all its layers are ranked, and pruned, together."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gebt.prune.mask import Mask
from gebt.prune.selection import keep_within
from gebt.prune.slim.channels import Channels, Site
from gebt.prune.slim.tracing import channels_of
from gebt.prune.tie_breaking import TieBreak, TieBreaker, ranks


def coupled_mask(
    model: nn.Module, *, ratio: float, example: Any, ignored: Iterable[str] = (), tie_break: TieBreak | None = None
) -> Mask:
    """The mask that prunes floor(ratio n) of the n channels, heads or units of every set of layers.

    A channel has slices in all layers that it goes through (those that make it, normalize it, add to it, read it); its
    score is the root of the sum of their squares, and channels with slices in the same layers are ranked against one
    another. What `slim` could not take out is not pruned.

    Args:
        model: any network that `slim` follows.
        ratio: share to prune, in [0, 1).
        example: an input of the network, or a tuple of arguments.
        ignored: names of layers that keep their channels.
        tie_break: settles equal scores, never by position; default `TieBreaker(0)`.

    Returns:
        Masks of weights, entire slices pruned.

    Raises:
        ValueError: for a ratio outside [0, 1), and for a network without such channels.
        TraceError: for a network that cannot be followed.

    Source:
        Fang et al. 2023.

    Example:
        >>> network = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> with torch.no_grad():
        ...     _ = network[0].weight.copy_(torch.tensor([[4.0], [1.0], [3.0], [2.0]]))
        ...     _ = network[2].weight.fill_(1)
        >>> mask = coupled_mask(network, ratio=0.5, example=torch.ones(1, 1))
        >>> mask["0.weight"].flatten().tolist(), mask["2.weight"].flatten().tolist()
        ([True, False, True, False], [True, False, True, False])
    """
    network = copy.deepcopy(model)
    channels = channels_of(network, example, {}, ignored)
    fixed = {channels.root(unit) for unit in channels.fixed}
    for _, before, after in channels.norms:
        free = torch.tensor([root not in fixed for root in channels.roots(before).tolist()])
        channels.join(after[free], before[free])
    parameters = dict(model.named_parameters(remove_duplicate=False))
    sites = [site for site in channels.sites if site.tensor in parameters]
    if not _ranked(channels, sites):
        raise ValueError(f"model {type(model).__name__} (got no channel that could go), expected at least one")
    gone = _smallest(channels, sites, parameters, ratio, TieBreaker(0) if tie_break is None else tie_break)
    return _mask(model, channels, sites, gone)


def _ranked(channels: Channels, sites: list[Site]) -> dict[frozenset[tuple[str, int]], list[int]]:
    """Units by the set of dimensions that have slices of them."""
    where: dict[int, set[tuple[str, int]]] = {}
    for site in sites:
        for root in set(channels.roots(site.units).tolist()):
            where.setdefault(root, set()).add((site.tensor, site.dim))
    fixed = {channels.root(unit) for unit in channels.fixed}
    sets: dict[frozenset[tuple[str, int]], list[int]] = {}
    for root in sorted(where.keys() - fixed):
        sets.setdefault(frozenset(where[root]), []).append(root)
    return sets


def _smallest(
    channels: Channels, sites: list[Site], parameters: dict[str, nn.Parameter], ratio: float, tie_break: TieBreak
) -> Tensor:
    """Which units, by number, are of smallest score in their sets."""
    scores = torch.zeros(len(channels.parents), dtype=torch.float64)
    for site in sites:
        squares = parameters[site.tensor].detach().cpu().double().square()
        by_slice = squares.transpose(0, site.dim).flatten(1).sum(1) if squares.dim() > 1 else squares
        scores.index_add_(0, channels.roots(site.units).repeat(site.blocks), by_slice)
    sets = list(_ranked(channels, sites).values())
    roots = torch.tensor([root for members in sets for root in members])
    which = torch.tensor([number for number, members in enumerate(sets) for _ in members])
    gone = torch.zeros(len(scores), dtype=torch.bool)
    gone[roots] = ~keep_within(scores[roots], which, ratio, ranks(tie_break, roots))
    return gone


def _mask(model: nn.Module, channels: Channels, sites: list[Site], gone: Tensor) -> Mask:
    named = dict(model.named_parameters())
    first = {id(parameter): name for name, parameter in named.items()}
    kept: dict[str, Tensor] = {}
    for site in sites:
        if "bias" in site.name:  # goes with the weight of its layer
            continue
        parameter: Any = model.get_parameter(site.tensor)
        name = first[id(parameter)]
        tensor_mask = kept.setdefault(name, torch.ones(parameter.shape, dtype=torch.bool))
        tensor_mask.transpose(0, site.dim)[gone[channels.roots(site.units)].repeat(site.blocks)] = False
    return Mask(kept)
