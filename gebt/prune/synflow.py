"""SynFlow: pruning at initialization, without data and without collapsing a layer.

Source: Tanaka et al., NeurIPS 2020.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.prune.selection import make_mask, pruned_count
from gebt.prune.tie_breaking import TieBreaker

Schedule = Literal["exponential", "linear"]


def synflow(
    model: nn.Module, example: Tensor, *, mask: Mask | None = None, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """s_i = |w_i| dR/d|w_i|, R the sum of the outputs of the network of absolute values for an input of ones.

    Runs on a copy in evaluation mode, so the model keeps its signs bit for bit; normalization is the identity there but
    for the magnitudes of its scale and shift (statistics of data would decide the score). R is conserved: the scores of
    all weights (and biases) between input and output sum to it at every layer of a network of linear parts and ReLUs.

    Args:
        model: the network, usually at initialization.
        example: a batch of one, whose shape is taken.
        mask: entries already pruned, which score 0.
        dtype: what the copy computes in.

    Returns:
        Scores of the names and shapes of `prunable_weights`.

    Raises:
        ValueError: when no signal reaches the output (a layer has collapsed), or is not finite in `dtype`.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[-1.0, 2.0]]))
        >>> synflow(layer, torch.zeros(1, 2))["weight"].tolist()
        [[1.0, 2.0]]
    """
    network = _linearized(model, dtype)
    weights = prunable_weights(network)
    if mask is not None:
        mask.apply_(dict(network.named_parameters()))
    ones = torch.ones(example.shape, dtype=dtype, device=example.device)
    flow = _sum_of(network(ones if example.is_floating_point() else torch.ones_like(example)))
    value = float(flow.detach())
    if not math.isfinite(value):
        raise ValueError(f"synaptic flow (got {value} in {dtype}), expected a finite number; use torch.float64")
    if not value > 0:
        raise ValueError("synaptic flow (got 0), expected a signal from input to output: a layer has collapsed")
    gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
    scores = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        scores[name] = torch.zeros_like(weight) if gradient is None else (weight * gradient).detach()
    return scores


def synflow_mask(
    model: nn.Module,
    example: Tensor,
    *,
    ratio: float,
    rounds: int = 100,
    schedule: Schedule = "exponential",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Mask:
    """The mask that prunes floor(ratio n) weights in several rounds, scored anew in each.

    Args:
        model: as in `synflow`.
        example: as in `synflow`.
        ratio: share to prune in the end.
        rounds: how many, at least 1.
        schedule: "exponential": round j = 1..rounds ends at density (1 - ratio)^(j / rounds); "linear": at
            1 - ratio j / rounds.
        dtype: as in `synflow`.
        seed: of the random order of ties.

    Returns:
        The mask over `prunable_weights`.

    Raises:
        ValueError: as `synflow`, for rounds below 1, another schedule, and a ratio outside [0, 1).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> synflow_mask(model, torch.zeros(1, 2), ratio=0.75, rounds=4).kept
        4
    """
    if rounds < 1 or schedule not in ("exponential", "linear"):
        raise ValueError(f"rounds, schedule (got {(rounds, schedule)}), expected at least 1, 'exponential' or 'linear'")
    pruned_count(1, ratio)
    tie_break, mask = TieBreaker(seed), Mask.ones(prunable_weights(model))
    for number in range(1, rounds + 1):
        share = number / rounds
        now = ratio if number == rounds else 1 - (1 - ratio) ** share if schedule == "exponential" else ratio * share
        # A pruned entry scores 0 and so stays among the lowest; -1 keeps it below a kept entry of score 0.
        scores = synflow(model, example, mask=mask, dtype=dtype)
        ranked = {name: torch.where(mask[name], score, -1.0) for name, score in scores.items()}
        mask = make_mask(ranked, ratio=now, tie_break=tie_break, allow_empty=True)
    return mask


class _ScaleAndShift(nn.Module):
    """A normalization without its statistics: |scale| x + |shift| along its channels."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, norm: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.last = isinstance(norm, nn.LayerNorm)
        for name in ("weight", "bias"):
            parameter = getattr(norm, name, None)
            self.register_buffer(name, None if parameter is None else parameter.detach().abs().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        shape = [1, -1, *[1] * (x.dim() - 2)]
        if self.weight is not None:
            x = x * (self.weight if self.last else self.weight.view(shape))
        if self.bias is not None:
            x = x + (self.bias if self.last else self.bias.view(shape))
        return x


_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def _linearized(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    network = copy.deepcopy(model).to(dtype).eval()
    if isinstance(network, _NORMS):
        raise ValueError(f"model {type(model).__name__} (got a normalization alone), expected a network with weights")
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _NORMS):
                setattr(parent, name, _ScaleAndShift(child, dtype))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    return network


def _sum_of(output: Any) -> Tensor:
    """The sum over all floating tensors of an output, however it is packed."""
    if isinstance(output, Tensor):
        return output.sum() if output.is_floating_point() else output.new_zeros((), dtype=torch.float64)
    parts = output.values() if isinstance(output, Mapping) else output
    return torch.stack(
        [_sum_of(part).double() for part in parts if isinstance(part, Tensor | Mapping | tuple | list)]
    ).sum()
