"""Opinions of nodes, spread over the graph."""

from __future__ import annotations

import torch
from torch import Tensor

from gebt.graph.edges import Edges


def propagate_labels(probabilities: Tensor, edges: Edges, share: float, steps: int = 10) -> Tensor:
    """z <- (1 - share) p + share A_hat z, so many times from z = p; rows then scaled to sum to 1.

    `predict_proba` p [N, C] >= 0; `share` in [0, 1) is what the neighbors' opinions count. Returns [N, C]. Zhou et al.
    2004; "smooth" in Huang et al. 2021, here of a network's own predictions.
    Raises `ValueError` for a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share (got {share}), expected 0 <= share < 1")
    weights, spread_out = edges.unit_weights.to(probabilities.dtype), probabilities
    with torch.no_grad():
        for _ in range(steps if share else 0):
            spread_out = torch.lerp(probabilities, edges.propagate(weights, spread_out), share)
        return spread_out / spread_out.sum(1, keepdim=True)
