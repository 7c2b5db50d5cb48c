"""N:M sparsity of weight matrices: two of every four, the pattern that sparse tensor cores multiply."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gebt.prune.mask import Mask
from gebt.prune.selection import refuse_nan_or_flag
from gebt.prune.tie_breaking import TieBreaker

_GROUP, _KEPT = 4, 2


def two_of_four(scores: Mapping[str, Tensor], tie_break: TieBreaker | None = None) -> Mask:
    """The mask that keeps the two highest scores of every four neighbors along the last dimension.

    Args:
        scores: matrices [out, in]; the rest of a row after its last full group of four is kept.
        tie_break: settles equal scores, entries numbered through all tensors; default: `TieBreaker(0)`.

    Returns:
        The mask.

    Raises:
        ValueError: for a tensor of other dimensions or a NaN; on a device for that not before counts of the mask are
            read.

    Source:
        Mishra et al. 2021.

    Example:
        >>> two_of_four({"w": torch.tensor([[1.0, 4.0, 2.0, 3.0, 0.0]])})["w"].tolist()
        [[False, True, False, True, True]]
    """
    nan = refuse_nan_or_flag(scores)
    tie_break, start, masks = tie_break or TieBreaker(0), 0, {}
    for name, score in scores.items():
        if score.dim() != 2:
            raise ValueError(f"scores of {name!r} (got shape {tuple(score.shape)}), expected a matrix for 2:4")
        entries = torch.arange(start, start + score.numel(), device=score.device).view(score.shape)
        start += score.numel()
        full = score.shape[1] // _GROUP * _GROUP
        groups = score.detach()[:, :full].reshape(-1, _GROUP)
        # Ranked by tie order first, then stably by score: the last two of each group stay.
        by_order = tie_break.of(entries[:, :full].reshape(-1, _GROUP)).argsort(1)
        by_score = groups.gather(1, by_order).argsort(dim=1, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(1, by_order.gather(1, by_score)[:, _GROUP - _KEPT :], True)
        rest = torch.ones_like(score[:, full:], dtype=torch.bool)
        masks[name] = torch.cat((kept.view(score.shape[0], full), rest), 1)
    return Mask.of_unread(masks, nan)


def is_two_of_four(kept: Tensor) -> bool:
    """True for a mask that keeps at most two of every four neighbors of a row.

    Args:
        kept: boolean, any shape.

    Returns:
        False too for another shape than [out, in] and for an `in` that is no multiple of four.

    Example:
        >>> is_two_of_four(torch.tensor([[True, True, False, False]]))
        True
    """
    if kept.dim() != 2 or kept.shape[1] % _GROUP:
        return False
    return bool((kept.view(-1, _GROUP).sum(1) <= _KEPT).all())
