"""Scores: how much each entry is worth keeping. Larger = more worth keeping."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that weight masks cover: every trainable tensor of two or more dimensions.

    Biases and normalisation scales (one dimension) stay, and so do vectors that were given leading dimensions of size 1
    to be broadcast, such as attention's [1, heads, channels]. Raises `ValueError` when the model has none.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = {name: p for name, p in trained.items() if p.dim() == 2 or (p.dim() > 2 and p.shape[0] > 1)}
    if not weights:
        raise ValueError(f"model {type(model).__name__} (got no trainable matrix), expected at least one to prune")
    return weights


def magnitude(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """s_i = |w_i|. Source: Han et al. 2015; GEBT, Algorithm 2."""
    return {name: tensor.detach().abs() for name, tensor in tensors.items()}


def random(tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """s_i uniform in [0, 1), drawn from `generator`: the control that any score must beat."""
    return {
        name: torch.rand(tensor.shape, generator=generator, device=generator.device).to(tensor.device)
        for name, tensor in tensors.items()
    }
