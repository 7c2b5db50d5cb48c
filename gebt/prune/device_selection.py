"""Selection on a device without waiting for it: no step depends on a number that would have to be read back.

Entries are put into the order of ties and then sorted by their scores, ties staying as they are; the first of them go.
A sort is a few launches whatever the scores are. Histograms of the scores' bits, unread, would have to be followed by
those of the ranks in every case, tied or not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tie_order(rank: Tensor) -> Tensor:
    """The order in which equal scores go.

    Args:
        rank: [n]; of equal scores those of larger rank stay.

    Returns:
        Numbers of the entries, [n] int64.

    Example:
        >>> tie_order(torch.tensor([2, 0, 1])).tolist()
        [1, 2, 0]
    """
    return rank.argsort(stable=True)


def kept_by_order(score: Tensor, prune: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """Keeps all but the `prune` lowest scores; in passing it takes about 50 bytes an entry.

    Args:
        score: [n].
        prune: how many entries go, from 0 to n.
        order: of equal scores, [n] (`tie_order`).

    Returns:
        Which entries stay, [n] boolean, and those that go, [prune] int64, the lowest score first.

    Example:
        >>> kept_by_order(torch.tensor([3.0, 1.0, 1.0]), 1, torch.tensor([0, 2, 1]))
        (tensor([ True,  True, False]), tensor([2]))
    """
    # Adding 0 makes 0 of -0: they are equal, but a sort of bits would not take them for it.
    lowest = order[score[order].add_(0).argsort(stable=True)[:prune]]
    return torch.ones_like(score, dtype=torch.bool).index_fill_(0, lowest, False), lowest
