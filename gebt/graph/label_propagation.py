"""Label propagation: predicted probabilities, smoothed over the graph."""

from __future__ import annotations

import torch
from torch import Tensor

from gebt.graph.edges import Edges
from gebt.sparse.precision import without_autocast


def propagate_labels(probabilities: Tensor, edges: Edges, alpha: float, steps: int = 10) -> Tensor:
    """Propagates predicted probabilities to neighbors: z <- (1 - alpha) p + alpha A_hat z, from z = p.

    A_hat = D^-1/2 (A + I) D^-1/2; the rows of the result are scaled to sum to 1.

    Args:
        probabilities: p >= 0, [N, C].
        edges: the graph.
        alpha: weight of the neighbors, in [0, 1).
        steps: number of updates.

    Returns:
        [N, C].

    Raises:
        ValueError: for an `alpha` outside [0, 1).

    Source:
        Zhou et al. 2004; "smooth" in Huang et al. 2021, here of a network's own predictions.

    Example:
        >>> edges = Edges.from_pairs(torch.tensor([[0], [1]]), 2)
        >>> propagate_labels(torch.eye(2), edges, 0.5, steps=1).round(decimals=2).tolist()
        [[0.75, 0.25], [0.25, 0.75]]
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha (got {alpha}), expected 0 <= alpha < 1")
    weights, propagated = edges.unit_weights.to(probabilities.dtype), probabilities
    with torch.no_grad(), without_autocast(probabilities):
        for _ in range(steps if alpha else 0):
            propagated = torch.lerp(probabilities, edges.propagate(weights, propagated), alpha)
        return propagated / propagated.sum(1, keepdim=True)
