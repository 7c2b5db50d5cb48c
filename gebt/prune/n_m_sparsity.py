"""Fixed patterns inside weight matrices: two of every four, the one that sparse tensor cores multiply."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gebt.prune.mask import Mask
from gebt.prune.tie_breaking import TieBreaker

GROUP, KEPT = 4, 2


def two_of_four(scores: Mapping[str, Tensor], tie_break: TieBreaker | None = None) -> Mask:
    """The mask that keeps the two highest scores of every four neighbors along the last dimension.

    `scores`: matrices [out, in]; what is left of a row after its last full group of four is kept. Equal scores are
    settled by `tie_break` (default: seed 0), numbered through all tensors. Source: Mishra et al. 2021.
    Raises `ValueError` for a tensor of other dimensions or a NaN.
    """
    tie_break, start, masks = tie_break or TieBreaker(0), 0, {}
    for name, score in scores.items():
        if score.dim() != 2:
            raise ValueError(f"scores of {name!r} (got shape {tuple(score.shape)}), expected a matrix for 2:4")
        if bool(torch.isnan(score).any()):
            raise ValueError(f"scores of {name!r} (got NaN), expected numbers; did the training diverge?")
        entries = torch.arange(start, start + score.numel(), device=score.device).view(score.shape)
        start += score.numel()
        full = score.shape[1] // GROUP * GROUP
        groups = score.detach()[:, :full].reshape(-1, GROUP)
        # Ranked by tie order first, then stably by score: the last two of each group stay.
        by_order = tie_break.of(entries[:, :full].reshape(-1, GROUP)).argsort(1)
        by_score = groups.gather(1, by_order).argsort(dim=1, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(1, by_order.gather(1, by_score)[:, GROUP - KEPT :], True)
        rest = torch.ones_like(score[:, full:], dtype=torch.bool)
        masks[name] = torch.cat((kept.view(score.shape[0], full), rest), 1)
    return Mask(masks)


def is_two_of_four(kept: Tensor) -> bool:
    """Whether every full group of four of a mask [out, in] keeps at most two, and `in` is a multiple of four."""
    if kept.dim() != 2 or kept.shape[1] % GROUP:
        return False
    return bool((kept.view(-1, GROUP).sum(1) <= KEPT).all())
