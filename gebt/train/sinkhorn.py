"""The Wasserstein term of WD-GLT (Hui et al., ICLR 2023): how far apart a network holds what it tells apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinkhorn_plan(cost: Tensor, epsilon: float, steps: int) -> Tensor:
    """The entropic transport plan between uniform clouds for `cost` [..., m, n]; its entries sum to 1.

    So many Sinkhorn steps in the log domain, the last one on the columns: column sums are exact. No gradient.
    Cuturi 2013; Peyre & Cuturi 2019, ch. 4.
    """
    with torch.no_grad():
        scaled = cost / -epsilon
        rows, columns = cost.new_zeros(cost.shape[:-1]), cost.new_zeros((*cost.shape[:-2], cost.shape[-1]))
        log_m, log_n = math.log(cost.shape[-2]), math.log(cost.shape[-1])
        for _ in range(steps):
            rows = -(scaled + columns.unsqueeze(-2)).logsumexp(-1) - log_m
            columns = -(scaled + rows.unsqueeze(-1)).logsumexp(-2) - log_n
        return (scaled + rows.unsqueeze(-1) + columns.unsqueeze(-2)).exp()


def divergence(x: Tensor, y: Tensor, *, epsilon: float = 0.05, steps: int = 10) -> Tensor:
    """Sinkhorn divergence W(x, y) - W(x, x) / 2 - W(y, y) / 2 of clouds x [..., m, d], y [..., n, d]: [...].

    W is the cost |x_i - y_j|^2 under the entropic plan. 0 for clouds that are the same. The gradient goes through the
    cost alone: at convergence, by the envelope theorem, that is all of it. Genevay et al. 2018.
    """
    return _cost(x, y, epsilon, steps) - (_cost(x, x, epsilon, steps) + _cost(y, y, epsilon, steps)) / 2


def _cost(x: Tensor, y: Tensor, epsilon: float, steps: int) -> Tensor:
    squared = (x.square().sum(-1, keepdim=True) + y.square().sum(-1).unsqueeze(-2) - 2 * x @ y.mT).clamp(min=0)
    return (sinkhorn_plan(squared, epsilon, steps) * squared).sum((-2, -1))


class Separation:
    """-weight * sum over classes c of the divergence between the nodes a network takes for c and all the others.

    Called with logits [N, C]; its points are the softmax of `points` nodes of either side, drawn with replacement from
    `seed` anew at each call, so that memory is C points^2 whatever N. A class that no node, or every node, is taken for
    has no term. Added to a loss it is maximized: the UGS loss sees few edges, this sees all of them.
    """

    def __init__(self, weight: float, points: int, seed: int) -> None:
        self.weight, self.points = weight, points
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        taken = logits.argmax(1)
        inside, outside = [], []
        for label in range(logits.shape[1]):
            own = taken == label
            sides = (own.nonzero().squeeze(1), (~own).nonzero().squeeze(1))
            if all(side.numel() for side in sides):
                inside.append(self._drawn(sides[0]))
                outside.append(self._drawn(sides[1]))
        if not inside:
            return logits.new_zeros(())
        said = logits.softmax(1)
        return -self.weight * divergence(said[torch.stack(inside)], said[torch.stack(outside)]).sum()

    def _drawn(self, nodes: Tensor) -> Tensor:
        drawn = torch.randint(nodes.numel(), (self.points,), generator=self.generator)
        return nodes[drawn.to(nodes.device)]
