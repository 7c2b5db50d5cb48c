"""What an edge is worth beyond its trained value: its place in the neighborhoods of its two nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gebt.prune.tie_breaking import TieBreak, ranks

EdgeScore = Literal["magnitude", "local_degree", "similarity", "reliance", "reliance+magnitude", "learned"]
# Weights of the kept edges of a ticket: 1, their trained values, or as much more as makes up for the pruned ones.
EdgeWeights = Literal["one", "trained", "degree_corrected"]

# Exact, and further apart than the shares and trained values of two pairs ever are.
FIRST_CHOICE = 2.0**64
# Pairs whose similarity is computed at once.
PAIRS_AT_ONCE = 1 << 20


class LocalDegree:
    """Edge score that ranks a pair by its trained value and by the share it has of its nodes' neighborhoods.

    s_p = |a_p| w_p with w_p = 2^(64 b_p) / min(d_u, d_v) for a pair p = (u, v) of value a_p. 1 / min(d_u, d_v) is the
    larger of its shares, d the degrees of the full graph; b_p is 1 when no other pair of u, or of v, has a larger
    share, so that no node loses its last neighbor while a pair that nobody depends on stays: pairs are ranked by b,
    then by |a| / min(d_u, d_v). A pair of value 0 ranks last all the same: no node has a neighbor by it. The attribute
    `weight` [P] is w: fixed for a search, so that drawing multiplies as it compares (`gebt.prune.drawing.Drawing`).

    Args:
        pairs: [2, P].
        num_nodes: N.
        tie_break: ties for b = 1 go to the larger rank.

    Source:
        docs/method.md.

    Example:
        >>> from gebt.prune.tie_breaking import TieBreaker
        >>> pairs = torch.tensor([[0, 0, 1, 2], [1, 2, 2, 3]])
        >>> local_degree = LocalDegree(pairs, 4, TieBreaker(0))
        >>> int(local_degree.weight.argmax())  # the only pair of node 3
        3
    """

    def __init__(self, pairs: Tensor, num_nodes: int, tie_break: TieBreak) -> None:
        entries = torch.arange(pairs.shape[1], device=pairs.device)
        degrees = torch.bincount(pairs.flatten(), minlength=num_nodes)
        self.weight = LocalDegreeInParts(lambda: [(entries, pairs)], degrees, tie_break).of(entries, pairs)


class LocalDegreeInParts:
    """The weights w of `LocalDegree` for pairs that are read part by part: two passes over them, two numbers a node.

    Args:
        parts: called twice; goes through (numbers [c], pairs [2, c]) of all pairs.
        degrees: of the full graph, [N].
        tie_break: as in `LocalDegree`.
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
        """The weights w of some pairs.

        Args:
            numbers: of the pairs, [c].
            pairs: [2, c].

        Returns:
            [c].
        """
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
    """Edge score that ranks the pairs of every node by how similar a network's predictions for its two nodes are.

    s_p = share_p (1 + c_p) / 4 - k_p for a pair p = (u, v). c_p is the cosine of the centered predicted probabilities
    of u and v; k_p the better of the places (0, 1, ...) that p takes among the pairs of u, and among those of v, ranked
    by c; share_p = 1 / min(d_u, d_v). So every node keeps its best neighbors first, and within a place those pairs stay
    that are the larger part of a neighborhood and more similar. With reliance r:
    s_p = (r_u [k_u <= k_v] + r_v [k_v <= k_u]) (1 + c_p) / 8 - k_p, k_u and k_v the places in either neighborhood:
    within a place those pairs stay that a node that relies on its neighbors has there.

    Args:
        pairs: [2, P].
        num_nodes: N.
        tie_break: order of equal similarities.

    Source:
        docs/method.md; ranking within neighborhoods as in local degree sparsifiers (Hamann et al. 2016).

    Example:
        >>> from gebt.prune.tie_breaking import TieBreaker
        >>> similarity = Similarity(torch.tensor([[0, 0, 1], [1, 2, 2]]), 3, TieBreaker(0))
        >>> scores = similarity(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> int(scores.argmax())  # nodes 0 and 1 have the same prediction
        0
    """

    def __init__(self, pairs: Tensor, num_nodes: int, tie_break: TieBreak) -> None:
        self.pairs = pairs
        degree = torch.bincount(pairs.flatten(), minlength=num_nodes)
        self._share = degree.double().reciprocal()[pairs].amax(0)
        self._starts = torch.cumsum(degree, 0) - degree
        # From the last in the order to the first: sorts that keep it settle ties by it.
        self._by_order = ranks(tie_break, torch.arange(pairs.shape[1], device=pairs.device)).argsort(descending=True)

    def __call__(self, probabilities: Tensor, reliance: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """Scores of all pairs.

        Args:
            probabilities: predicted for every node, [N, C].
            reliance: of every node on its neighbors, in [0, 1], [N] (`neighbor_reliance`).
            values: trained values a [P] ("reliance+magnitude"): what counts within a place is multiplied by the rank
                of |a_p| among all, scaled to (0, 1].

        Returns:
            [P] float64.
        """
        towards = F.normalize((probabilities - probabilities.mean(0)).double(), dim=1)
        # Part by part: P x C doubles of a large graph are more than a device has. Sums do not depend on the parts.
        cosine = torch.cat([(towards[u] * towards[v]).sum(1) for u, v in self.pairs.split(PAIRS_AT_ONCE, 1)])
        best = self._by_order[cosine[self._by_order].argsort(descending=True, stable=True)]
        node = self.pairs[:, best].t().flatten()  # both nodes of the best pair, of the second best, ...
        grouped = node.argsort(stable=True)
        place = torch.empty_like(grouped)
        place[grouped] = torch.arange(grouped.numel(), device=grouped.device) - self._starts[node[grouped]]
        places = place.new_empty((best.numel(), 2))
        places[best] = place.view(-1, 2)
        lowest = places.amin(1)
        node_share = self._share
        if reliance is not None:
            node_share = (reliance.double()[self.pairs].t() * (places == lowest.unsqueeze(1))).sum(1) / 2
        worth = node_share * (1 + cosine) / 4
        if values is not None:
            ascending = values.detach().abs()[self._by_order.flip(0)].argsort(stable=True)
            rank = torch.empty_like(worth)
            rank[self._by_order.flip(0)[ascending]] = torch.arange(1, rank.numel() + 1, device=rank.device).to(rank)
            worth = worth * rank / rank.numel()
        return worth - lowest


def neighbor_reliance(probabilities: Tensor, alone: Tensor) -> Tensor:
    """How far the prediction for a node without any edge is from that with its edges: r_u = 1 - <p_u, q_u>.

    Args:
        probabilities: p, predicted on the graph, [N, C].
        alone: q, predicted without edges, [N, C].

    Returns:
        [N] in [0, 1].

    Example:
        >>> p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
        >>> neighbor_reliance(p, torch.tensor([[0.0, 1.0], [1.0, 0.0]])).tolist()
        [1.0, 0.5]
    """
    return 1 - (probabilities * alone).sum(1)


def degree_correction(pairs: Tensor, kept: Tensor, num_nodes: int) -> Tensor:
    """Edge weights that make up for the pruned neighbors: a_uv = sqrt(d_u d_v / (k_u k_v)).

    d are the degrees of all pairs and k those of the kept. Compared with a self-loop of 1 the kept neighbors of u then
    count about as much as all of them did.

    Args:
        pairs: [2, P].
        kept: which of them are kept, [P] bool.
        num_nodes: N.

    Returns:
        [P].

    Example:
        >>> pairs = torch.tensor([[0, 0, 1, 2], [1, 2, 3, 3]])
        >>> degree_correction(pairs, torch.tensor([True, False, False, True]), 4).round().tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    before, after = (
        torch.bincount(ends.flatten(), minlength=num_nodes).clamp(min=1).float() for ends in (pairs, pairs[:, kept])
    )
    factor = (before / after).sqrt()
    return factor[pairs[0]] * factor[pairs[1]]
