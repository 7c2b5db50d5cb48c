"""Scores: how much each entry is worth keeping. Larger = more worth keeping."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def prunable_weights(model: nn.Module, *, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """The parameters that weight masks cover: every trainable tensor of two or more dimensions.

    Biases and normalization scales (one dimension) stay, and so do vectors with leading dimensions of size 1 for
    broadcasting, such as attention's [1, heads, channels], and frozen parameters. A tied parameter counts once, under
    its first name.

    Args:
        model: any network.
        embeddings: includes tables of embeddings, and what is tied to them.

    Returns:
        The parameters by name.

    Raises:
        ValueError: when the model has none, and naming a layer that `torch.nn.utils.prune` has pruned already.

    Example:
        >>> list(prunable_weights(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))))
        ['0.weight', '2.weight']
    """
    tables = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and not embeddings:
            tables.add(id(module.weight))
        masked = [key for key in module._parameters if key.endswith("_orig") and f"{key[:-5]}_mask" in module._buffers]
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
    """s_i = |w_i|.

    Args:
        tensors: weights by name.

    Returns:
        Scores of the same names and shapes.

    Source:
        Han et al. 2015; GEBT, Algorithm 2.

    Example:
        >>> magnitude({"w": torch.tensor([-2.0, 1.0])})
        {'w': tensor([2., 1.])}
    """
    return {name: tensor.detach().abs() for name, tensor in tensors.items()}


def bn_scale(model: nn.Module) -> dict[str, Tensor]:
    """s_c = |gamma_c| of every channel of every batch normalization.

    Args:
        model: a network with batch normalization.

    Returns:
        Scores [channels] under the names of the scales.

    Raises:
        ValueError: when the model has no batch normalization with scales.

    Source:
        Liu et al. 2017.

    Example:
        >>> bn_scale(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        {'1.weight': tensor([1., 1., 1.])}
    """
    kinds = nn.modules.batchnorm._BatchNorm
    norms = {name: module for name, module in model.named_modules() if isinstance(module, kinds) and module.affine}
    if not norms:
        raise ValueError(
            f"model {type(model).__name__} (got no batch normalization with scales), expected at least one"
        )
    return {f"{name}.weight".lstrip("."): norm.weight.detach().abs() for name, norm in norms.items()}


def random(tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """s_i uniform in [0, 1): the baseline that any score must beat.

    Args:
        tensors: their names and shapes are taken.
        generator: of the random numbers.

    Returns:
        Scores of the same names and shapes, on the tensors' devices.

    Example:
        >>> random({"w": torch.zeros(2, 3)}, torch.Generator().manual_seed(0))["w"].shape
        torch.Size([2, 3])
    """
    return {
        name: torch.rand(tensor.shape, generator=generator, device=generator.device).to(tensor.device)
        for name, tensor in tensors.items()
    }
