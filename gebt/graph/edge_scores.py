"""What an edge is worth beyond its trained value: its place in the neighborhoods of its two nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gebt.prune.tie_breaking import TieBreak, ranks

EdgeScore = Literal["magnitude", "local_degree", "similarity", "reliance", "reliance+magnitude", "learned"]
# What the kept edges of a ticket count: 1, their trained values, or as much more as makes up for those that went.
EdgeWeights = Literal["one", "trained", "degree_corrected"]

# Exact, and further apart than the shares and trained values of two pairs ever are.
FIRST_CHOICE = 2.0**64


class LocalDegree:
    """s_p = |a_p| w_p with w_p = 2^(64 b_p) / min(d_u, d_v) for a pair p = (u, v) of value a_p.

    1 / min(d_u, d_v) is the larger of the shares the pair has of its nodes' neighborhoods, d the degrees of the
    whole graph; b_p is 1 when no other pair of u, or of v, has a larger share, so that no node loses its last
    neighbor while a pair that nobody depends on is left: pairs are ranked by b, then by |a| / min(d_u, d_v). A pair
    of value 0 ranks last all the same: it carries nothing, so no node has a neighbor by it.
    Ties for the place b go to the larger rank in `tie_break`. `weight` [P] holds w: fixed for a search, so that drawing
    multiplies as it compares (`gebt.prune.drawing.Drawing`). Why this score: docs/method.md.
    """

    def __init__(self, pairs: Tensor, num_nodes: int, tie_break: TieBreak) -> None:
        entries = torch.arange(pairs.shape[1], device=pairs.device)
        degrees = torch.bincount(pairs.flatten(), minlength=num_nodes)
        self.weight = LocalDegreeInParts(lambda: [(entries, pairs)], degrees, tie_break).of(entries, pairs)

    def __call__(self, values: Tensor) -> Tensor:
        """Scores [P] of the pair values [P]."""
        return values.detach().abs().mul_(self.weight)


class LocalDegreeInParts:
    """w of `LocalDegree` for pairs that are seen part by part: two passes over them, and two numbers a node.

    `parts()` goes through (numbers [c], pairs [2, c]) of all pairs; `degrees` [N] are those of the whole graph.
    """

    def __init__(
        self, parts: Callable[[], Iterable[tuple[Tensor, Tensor]]], degrees: Tensor, tie_break: TieBreak
    ) -> None:
        self.tie_break, self.inverse = tie_break, degrees.clamp(min=1).float().reciprocal()
        self.highest = torch.zeros_like(self.inverse)
        for _, pairs in parts():
            for nodes in pairs:
                self.highest.scatter_reduce_(0, nodes, self._share(pairs), "amax")
        self.last = torch.full_like(degrees, torch.iinfo(torch.int64).min, dtype=torch.int64)
        for numbers, pairs in parts():
            for nodes, standing, rank in self._standing(numbers, pairs):
                self.last.scatter_reduce_(0, nodes[standing], rank, "amax")

    def of(self, numbers: Tensor, pairs: Tensor) -> Tensor:
        """w [c] of the pairs [2, c] of these numbers."""
        share = self._share(pairs)
        chosen = torch.zeros_like(share, dtype=torch.bool)
        for nodes, standing, rank in self._standing(numbers, pairs):
            chosen[standing[rank == self.last[nodes[standing]]]] = True
        share[chosen] *= FIRST_CHOICE
        return share

    def _share(self, pairs: Tensor) -> Tensor:
        return torch.maximum(self.inverse[pairs[0]], self.inverse[pairs[1]])

    def _standing(self, numbers: Tensor, pairs: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For either end: the nodes, which pairs have the highest share there, and the ranks of those."""
        share = self._share(pairs)
        for nodes in pairs:
            standing = (share == self.highest[nodes]).nonzero().squeeze(1)
            yield nodes, standing, ranks(self.tie_break, numbers[standing])


class Similarity:
    """s_p = share_p (1 + c_p) / 4 - k_p for a pair p = (u, v), from what a network says of its two nodes.

    c_p is the cosine of the centred opinions (probabilities) of u and v; k_p the better of the places (0, 1, ...) that
    p takes among the pairs of u, and among those of v, ranked by c, ties by `tie_break`; share_p = 1 / min(d_u, d_v). So
    every node keeps its best neighbors first, and within a place those pairs stay that are the larger part of a
    neighborhood and agree more. With need r: s_p = (r_u [k_u <= k_v] + r_v [k_v <= k_u]) (1 + c_p) / 8 - k_p, k_u and
    k_v the places in either neighborhood: within a place those stay that a node in need holds there. Source:
    docs/method.md; ranking within neighborhoods as in local degree sparsifiers (Hamann et al. 2016).
    """

    def __init__(self, pairs: Tensor, num_nodes: int, tie_break: TieBreak) -> None:
        self.pairs = pairs
        degree = torch.bincount(pairs.flatten(), minlength=num_nodes)
        self._share = degree.double().reciprocal()[pairs].amax(0)
        self._starts = torch.cumsum(degree, 0) - degree
        # From the last in the order to the first: sorts that keep it settle ties by it.
        self._by_order = ranks(tie_break, torch.arange(pairs.shape[1], device=pairs.device)).argsort(descending=True)

    def __call__(self, probabilities: Tensor, need: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """Scores [P] float64 from opinions [N, C] and, if given, the `need` of every node [N] in [0, 1].

        With trained `values` a [P] ("reliance+magnitude") what counts within a place is multiplied by the rank of |a_p| among all,
        scaled to (0, 1].
        """
        u, v = self.pairs
        towards = F.normalize((probabilities - probabilities.mean(0)).double(), dim=1)
        cosine = (towards[u] * towards[v]).sum(1)
        best = self._by_order[cosine[self._by_order].argsort(descending=True, stable=True)]
        node = self.pairs[:, best].t().flatten()  # both nodes of the best pair, of the second best, ...
        grouped = node.argsort(stable=True)
        place = torch.empty_like(grouped)
        place[grouped] = torch.arange(grouped.numel(), device=grouped.device) - self._starts[node[grouped]]
        places = place.new_empty((best.numel(), 2))
        places[best] = place.view(-1, 2)
        lowest = places.amin(1)
        held = self._share
        if need is not None:
            held = (need.double()[self.pairs].t() * (places == lowest.unsqueeze(1))).sum(1) / 2
        worth = held * (1 + cosine) / 4
        if values is not None:
            ascending = values.detach().abs()[self._by_order.flip(0)].argsort(stable=True)
            rank = torch.empty_like(worth)
            rank[self._by_order.flip(0)[ascending]] = torch.arange(1, rank.numel() + 1, device=rank.device).to(rank)
            worth = worth * rank / rank.numel()
        return worth - lowest


def neighbor_reliance(probabilities: Tensor, alone: Tensor) -> Tensor:
    """r_u = 1 - <p_u, q_u>: how far what a network says of a node without any edge is from the opinion p of it.

    `predict_proba` p and `alone` q [N, C], rows of probabilities. Returns [N] in [0, 1].
    """
    return 1 - (probabilities * alone).sum(1)


def degree_correction(pairs: Tensor, kept: Tensor, num_nodes: int) -> Tensor:
    """a_uv = sqrt(d_u d_v / (k_u k_v)) [P], d the degrees of all pairs and k those of the kept.

    Against a self-loop of 1 the kept neighbors of u then count about as much as all of them did.
    """
    before, after = (
        torch.bincount(own.flatten(), minlength=num_nodes).clamp(min=1).float() for own in (pairs, pairs[:, kept])
    )
    factor = (before / after).sqrt()
    return factor[pairs[0]] * factor[pairs[1]]
