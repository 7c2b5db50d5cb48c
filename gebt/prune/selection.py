"""Selection: scores + prune ratio -> mask, with exact counts and no favor to any position."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Literal

import torch
from torch import Tensor

from gebt.prune.device_selection import kept_by_order, tie_order
from gebt.prune.mask import Mask, read_at_once, refuse_nan_of
from gebt.prune.tie_breaking import TieBreak, TieBreaker, ranks

EntryScope = Literal["global", "layer"]
Scope = Literal[EntryScope, "channel"]

_RADIX_FROM = 8192
_WAY_OUT = "use a lower ratio, min_keep, or scope='layer'"
_CHANNEL_WAY_OUT = "use a lower ratio, or allow_empty=True: gebt.slim keeps one channel of such a layer"


def pruned_count(size: int, ratio: float) -> int:
    """Entries to prune: floor(ratio * size), exact for decimal ratios.

    Args:
        size: number of entries.
        ratio: prune ratio.

    Returns:
        The number of entries to prune.

    Raises:
        ValueError: for a ratio outside [0, 1).

    Example:
        >>> pruned_count(100, 0.29), int(0.29 * 100)
        (29, 28)
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"prune ratio (got {ratio}), expected 0 <= ratio < 1")
    return math.floor(Decimal(str(float(ratio))) * size)


def make_mask(
    scores: Mapping[str, Tensor],
    *,
    ratio: float,
    scope: Scope = "global",
    min_keep: float = 0.0,
    generator: torch.Generator | None = None,
    tie_break: TieBreak | None = None,
    allow_empty: bool = False,
) -> Mask:
    """The mask that prunes exactly the floor(ratio * n) entries, or channels, of lowest score.

    Channels: a slice along dimension 0, what comes out of a layer (not so in transposed convolutions, whose weights are
    [in, out, ...]: transpose their scores, and the mask back); in one dimension, as of batch-norm scales, every entry
    is one. The score of a channel is the mean of its entries' scores: a sum would favor channels that read many others.
    Leave out the layer whose channels are the network's outputs, and score the scales of batch norms, not the weights
    before them, which would leave the shift of their norm in the network.

    Args:
        scores: scores by name, larger = more worth keeping.
        ratio: share to prune.
        scope: "global" ranks the entries of all tensors together, "layer" those of each alone (a floor for each).
            "channel" ranks the channels of all tensors together and keeps all or none of a channel's entries, as
            `gebt.slim` takes them out.
        min_keep: where tensors are ranked together, the ceil(min_keep * n) entries, or channels, of highest score of
            every tensor of n stay in any case, so that none is emptied by scores that are smaller throughout.
        generator: draws the order of ties, without `tie_break`.
        tie_break: settles equal scores: a `TieBreaker`, or ranks [n] of which the larger stays. Without it and
            `generator`: `TieBreaker(0)`. Position never decides. On the CPU a `generator` draws only when there is a
            tie to settle; on other devices always.
        allow_empty: a tensor may lose every entry.

    Returns:
        The mask, on the scores' devices.

    Raises:
        ValueError: for a ratio outside [0, 1), a NaN score, an unknown scope, a `min_keep` outside [0, 1] or one that
            leaves fewer to prune than `ratio` asks for, or a tensor that would lose every entry (unless `allow_empty`).

    Example:
        >>> make_mask({"w": torch.tensor([3.0, 1.0, 2.0, 4.0])}, ratio=0.5)["w"]
        tensor([ True, False, False,  True])
        >>> make_mask({"w": torch.tensor([[3.0, 1.0], [2.0, 4.0]])}, ratio=0.5, scope="channel")["w"].tolist()
        [[False, False], [True, True]]
    """
    mask = make_unread_mask(
        scores, ratio=ratio, scope=scope, min_keep=min_keep, generator=generator, tie_break=tie_break
    )
    if not allow_empty:
        check_no_layer_empty(mask, ratio, _WAY_OUT if scope != "channel" else _CHANNEL_WAY_OUT)
    read_at_once((mask,))
    return mask


def make_unread_mask(
    scores: Mapping[str, Tensor],
    *,
    ratio: float,
    scope: Scope = "global",
    min_keep: float = 0.0,
    generator: torch.Generator | None = None,
    tie_break: TieBreak | None = None,
) -> Mask:
    """`make_mask` with `allow_empty` that does not wait for a device: see `Mask.of_unread`.

    Args:
        scores: as in `make_mask`.
        ratio: as in `make_mask`.
        scope: as in `make_mask`.
        min_keep: as in `make_mask`.
        generator: as in `make_mask`; one on a device is waited for.
        tie_break: as in `make_mask`.

    Returns:
        The mask, on the scores' devices.

    Raises:
        ValueError: as `make_mask`; for a NaN on a device not before counts of the mask are read.
    """
    if scope not in ("global", "layer", "channel"):
        raise ValueError(f"scope (got {scope!r}), expected 'global', 'layer' or 'channel'")
    ranked = scores
    if scope == "channel":
        ranked = {name: _channel_scores(score.detach()) for name, score in scores.items()}
    nan = refuse_nan_or_flag(ranked)
    together = scope != "layer"
    kept = _selected(ranked, ratio, min_keep, together=together, generator=generator, tie_break=tie_break)
    if scope == "channel":
        kept = {name: _expanded(flags, scores[name].shape) for name, flags in kept.items()}
    return Mask.of_unread(kept, nan)


def _selected(
    scores: Mapping[str, Tensor],
    ratio: float,
    min_keep: float,
    *,
    together: bool,
    generator: torch.Generator | None,
    tie_break: TieBreak | None,
) -> dict[str, Tensor]:
    sizes = [tensor.numel() for tensor in scores.values()]
    flat = [tensor.detach().flatten() for tensor in scores.values()]
    ties = _Ties(sum(sizes), generator, tie_break)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if min_keep and together:
        flat = [_protected(score, min_keep, ties, start) for score, start in zip(flat, starts, strict=True)]
        free, size = sum(_unprotected(n, min_keep) for n in sizes), sum(sizes)
        if pruned_count(size, ratio) > free:
            raise ValueError(
                f"prune ratio, min_keep (got {ratio}, {min_keep}), expected at most {free} of {size} to go"
            )
    if together and flat:
        one = flat[0] if len(flat) == 1 else torch.cat(flat)
        kept = _kept(one, ratio, ties).split(sizes)
    else:
        kept = tuple(_kept(score, ratio, ties, start) for score, start in zip(flat, starts, strict=True))
    return {name: k.view(score.shape) for (name, score), k in zip(scores.items(), kept, strict=True)}


def _protected(score: Tensor, min_keep: float, ties: _Ties, start: int) -> Tensor:
    """The scores, infinite for the share of highest ones that stays in any case."""
    free = _unprotected(score.numel(), min_keep)
    stays = keep_highest(score, free, lambda tied: ties.of(tied + start))[0] if free else torch.ones_like(score).bool()
    return score.masked_fill(stays, math.inf)


def _unprotected(size: int, min_keep: float) -> int:
    if not 0 <= min_keep <= 1:
        raise ValueError(f"min_keep (got {min_keep}), expected 0 <= min_keep <= 1")
    return size - math.ceil(Decimal(str(float(min_keep))) * size)


def _channel_scores(score: Tensor) -> Tensor:
    """[C]: the mean of each slice along dimension 0; none of a tensor without entries."""
    if score.dim() < 2 or not score.numel():
        return score.flatten()
    # In single precision at least: means of halves, rounded to halves, would tie in plenty.
    return score.flatten(1).mean(1, dtype=torch.promote_types(score.dtype, torch.float32))


def _expanded(kept: Tensor, shape: torch.Size) -> Tensor:
    """[C] boolean over all entries of the channels."""
    return kept.unsqueeze(1).expand(-1, shape.numel() // max(1, kept.numel())).reshape(shape)


def refuse_nan(scores: Mapping[str, Tensor]) -> None:
    """Refuses scores that are not numbers.

    Args:
        scores: scores by name.

    Raises:
        ValueError: naming the first tensor that holds a NaN.
    """
    # A NaN anywhere makes the sum NaN; opposite infinities would too, hence the second look.
    refuse_nan_of(n for n, s in scores.items() if bool(torch.isnan(s.sum())) and bool(torch.isnan(s).any()))


def refuse_nan_or_flag(scores: Mapping[str, Tensor]) -> Tensor | None:
    """Refuses scores that are not numbers, or says on a device which are not, without waiting for it.

    Args:
        scores: scores by name.

    Returns:
        Which tensors hold a NaN, [tensors] boolean on the first device; None when all are on the CPU.

    Raises:
        ValueError: naming the first tensor that holds a NaN, when all are on the CPU.
    """
    device = next((score.device for score in scores.values() if not score.is_cpu), None)
    if device is None:
        refuse_nan(scores)
        return None
    return torch.stack([score.isnan().any().to(device) for score in scores.values()])


def check_no_layer_empty(mask: Mask, ratio: float, way_out: str = _WAY_OUT) -> None:
    """Refuses a mask that empties a tensor.

    Args:
        mask: the mask.
        ratio: the prune ratio, for the message.
        way_out: the advice at the end of the message.

    Raises:
        ValueError: naming the first tensor that the mask would empty.
    """
    for name, kept in mask.counts.items():
        size = mask.shapes[name].numel()
        if size and not kept:
            raise ValueError(
                f"prune ratio (got {ratio}) would remove all {size} entries of {name!r}, "
                f"expected every tensor to keep one; {way_out}"
            )


class _Ties:
    """Ranks of the entries that stand at the threshold, in an order drawn only when a tie has to be settled."""

    def __init__(self, size: int, generator: torch.Generator | None, tie_break: TieBreak | None) -> None:
        if isinstance(tie_break, Tensor) and tie_break.shape != (size,):
            raise ValueError(f"tie break (got shape {tuple(tie_break.shape)}), expected ({size},)")
        self._generator, self._tie_break = generator, tie_break

    def of(self, entries: Tensor) -> Tensor:
        if self._tie_break is None:
            self._tie_break = TieBreaker(0) if self._generator is None else TieBreaker.from_generator(self._generator)
        return ranks(self._tie_break, entries)


def _kept(score: Tensor, ratio: float, ties: _Ties, start: int = 0) -> Tensor:
    prune = pruned_count(score.numel(), ratio)
    if prune == 0:
        return torch.ones_like(score, dtype=torch.bool)
    return keep_highest(score, prune, lambda tied: ties.of(tied + start))[0]


def keep_highest(score: Tensor, prune: int, ranks_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Keeps all but the `prune` lowest scores, without waiting for a device.

    Args:
        score: [n].
        prune: how many entries go, at least 1.
        ranks_of: gives the ranks of tied entries by their numbers; called on the CPU only when a tie has to be settled,
            on other devices for all entries.

    Returns:
        Which entries stay, [n] boolean, and the highest score that goes.

    Example:
        >>> kept, threshold = keep_highest(torch.tensor([3.0, 1.0, 2.0]), 2, lambda tied: tied)
        >>> kept.tolist(), float(threshold)
        ([True, False, False], 2.0)
    """
    if not score.is_cpu:
        order = tie_order(ranks_of(torch.arange(score.numel(), device=score.device)))
        kept, lowest = kept_by_order(score, prune, order)
        return kept, score[lowest[-1:]].squeeze(0)
    threshold = _kth_smallest(score, prune)
    kept = score > threshold
    surplus = score.numel() - int(torch.count_nonzero(kept)) - prune
    if surplus:
        # More entries stand at the threshold than may go: the last of them in the random order stay.
        tied = (score == threshold).nonzero().squeeze(1)
        rank = ranks_of(tied)
        kept[tied[rank > torch.kthvalue(rank, tied.numel() - surplus).values]] = True
    return kept, threshold


def keep_within(score: Tensor, group: Tensor, ratio: float, rank: Tensor) -> Tensor:
    """Prunes the floor(ratio * m) lowest scores of each group of m entries.

    Args:
        score: [n].
        group: [n] int64, the number of each entry's group.
        ratio: share to prune of each group.
        rank: [n]; of equal scores those of larger rank stay.

    Returns:
        Which entries stay, [n] boolean.

    Raises:
        ValueError: for a ratio outside [0, 1) or a NaN score.

    Example:
        >>> score, group = torch.tensor([1.0, 2.0, 4.0, 3.0]), torch.tensor([0, 0, 1, 1])
        >>> keep_within(score, group, 0.5, torch.arange(4))
        tensor([False,  True,  True, False])
    """
    refuse_nan({"entries": score})
    by_score = rank.argsort()
    for key in (score, group):
        by_score = by_score[key[by_score].argsort(stable=True)]
    counts = torch.bincount(group)
    sizes, which = counts.unique(return_inverse=True)
    gone = torch.tensor([pruned_count(size, ratio) for size in sizes.tolist()], device=group.device)[which]
    place = torch.empty_like(by_score)
    place[by_score] = torch.arange(len(by_score), device=group.device) - (counts.cumsum(0) - counts)[group[by_score]]
    return place >= gone[group]


def thinned(scores: Tensor, kept: Tensor, prune: int, tie_break: TieBreak) -> Tensor:
    """Prunes more entries of a mask: those of lowest score among the ones it keeps.

    Args:
        scores: [n].
        kept: [n] boolean, which entries the mask keeps so far.
        prune: how many of them go.
        tie_break: settles equal scores.

    Returns:
        Which entries stay, [n] boolean.

    Example:
        >>> thinned(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, True, True]), 1, TieBreaker(0))
        tensor([False, False,  True])
    """
    if not prune:
        return kept
    entries = kept.nonzero().squeeze(1)
    stays, _ = keep_highest(scores[entries], prune, lambda tied: ranks(tie_break, entries[tied]))
    thinner = torch.zeros_like(kept)
    thinner[entries[stays]] = True
    return thinner


def _kth_smallest(score: Tensor, k: int) -> Tensor:
    # One pass of a radix selection: bits of non-negative floats are ordered as the floats, so a histogram of their
    # upper half says in which bin the k-th smallest lies. Quickselect alone mispredicts every other branch.
    if score.dtype != torch.float32 or score.numel() < _RADIX_FROM:
        return torch.kthvalue(score, k).values
    upper = score.view(torch.int32) >> 16
    if int(upper.min()) < 0:
        return torch.kthvalue(score, k).values
    ends = torch.bincount(upper).cumsum(0)
    where = int(torch.searchsorted(ends, k))
    before = int(ends[where - 1]) if where else 0
    return torch.kthvalue(score[upper == where], k - before).values
