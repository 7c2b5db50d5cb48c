"""Scores: how much each entry is worth keeping. Larger = more worth keeping."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def prunable_weights(model: nn.Module, *, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """The parameters that weight masks cover: every trainable tensor of two or more dimensions.

    Biases and normalization scales (one dimension) stay, and so do vectors that were given leading dimensions of size 1
    to be broadcast, such as attention's [1, heads, channels]. Frozen parameters stay, and tables of embeddings, with
    what is tied to them, unless `embeddings`. A tied parameter counts once, under its first name. Raises `ValueError`
    when the model has none, and naming a layer that `torch.nn.utils.prune` has pruned already.
    """
    tables = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and not embeddings:
            tables.add(id(module.weight))
        masked = [own for own in module._parameters if own.endswith("_orig") and f"{own[:-5]}_mask" in module._buffers]
        if masked:
            raise ValueError(
                f"layer {name!r} (got {masked[0]!r}: already pruned by torch.nn.utils.prune), expected plain "
                "parameters; call torch.nn.utils.prune.remove first"
            )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in tables}
    weights = {name: p for name, p in trained.items() if p.dim() == 2 or (p.dim() > 2 and p.shape[0] > 1)}
    if not weights:
        raise ValueError(f"model {type(model).__name__} (got no trainable matrix), expected at least one to prune")
    return weights


def magnitude(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """s_i = |w_i|. Source: Han et al. 2015; GEBT, Algorithm 2."""
    return {name: tensor.detach().abs() for name, tensor in tensors.items()}


def bn_scale(model: nn.Module) -> dict[str, Tensor]:
    """s_c = |gamma_c| of every channel of every batch normalization, under the names of the scales. Liu et al. 2017.

    Raises `ValueError` when the model has no batch normalization with scales.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    norms = {name: module for name, module in model.named_modules() if isinstance(module, kinds) and module.affine}
    if not norms:
        raise ValueError(
            f"model {type(model).__name__} (got no batch normalization with scales), expected at least one"
        )
    return {f"{name}.weight".lstrip("."): norm.weight.detach().abs() for name, norm in norms.items()}


def random(tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """s_i uniform in [0, 1), drawn from `generator`: the control that any score must beat."""
    return {
        name: torch.rand(tensor.shape, generator=generator, device=generator.device).to(tensor.device)
        for name, tensor in tensors.items()
    }
