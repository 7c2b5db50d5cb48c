"""What an edge is worth beyond its trained value: its place in the neighbourhoods of its two nodes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

EdgeScore = Literal["magnitude", "share"]


class NeighbourhoodShare:
    """s_p = t_p / (1 + t_p) + b_p with t_p = |a_p| / min(d_u, d_v) for a pair p = (u, v) of value a_p.

    1 / min(d_u, d_v) is the larger of the shares the pair has of its nodes' neighbourhoods, d the degrees of the
    whole graph; b_p is 1 when no other pair of u, or of v, has a larger share, so that no node loses its last
    neighbour while a pair that nobody depends on is left. Ties for that place go to `order` [P].
    Degrees and places are fixed for a search, so a score costs two passes over the values. Why: docs/method.md.
    """

    def __init__(self, pairs: Tensor, num_nodes: int, order: Tensor) -> None:
        u, v = pairs
        degree = torch.bincount(pairs.flatten(), minlength=num_nodes)
        self._share = torch.minimum(degree[u], degree[v]).clamp(min=1).float().reciprocal()
        self._best = _first_choices(self._share, order.to(pairs.device), pairs, num_nodes).float()

    def __call__(self, values: Tensor) -> Tensor:
        """Scores [P] of the pair values [P]."""
        share = values.detach().abs().mul_(self._share)
        return share.div_(share + 1).add_(self._best)


def _first_choices(score: Tensor, order: Tensor, pairs: Tensor, num_nodes: int) -> Tensor:
    """[P] boolean: the pair of highest (score, order) of either of its nodes."""
    chosen = torch.zeros_like(score, dtype=torch.bool)
    highest = score.new_zeros(num_nodes)
    for nodes in pairs:
        highest.scatter_reduce_(0, nodes, score, "amax")
    last = order.new_full((num_nodes,), -1)
    for nodes in pairs:
        standing = score == highest[nodes]
        last.scatter_reduce_(0, nodes[standing], order[standing], "amax")
    for nodes in pairs:
        chosen |= (score == highest[nodes]) & (order == last[nodes])
    return chosen
