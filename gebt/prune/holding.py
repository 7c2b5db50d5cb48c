"""Holding: pruned weights stay at zero in anyone's training loop."""

from __future__ import annotations

from typing import Any

from torch import nn, optim
from torch.utils.hooks import RemovableHandle

from gebt.prune.mask import Mask


def hold(model: nn.Module, mask: Mask, optimizer: optim.Optimizer) -> RemovableHandle:
    """Keeps the pruned entries of `model` at zero: now, and after every `optimizer.step()`.

    Holds under momentum, Adam, AdamW and weight decay, since the zeroing comes after the update. Parameter
    names, state dicts and forward are untouched. Call `.remove()` on the returned handle to let go.
    Raises `ValueError` naming the tensor when the mask does not fit the model or the optimizer.
    """
    parameters = dict(model.named_parameters())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, kept in mask.items():
        if name not in parameters:
            raise ValueError(f"mask tensor {name!r} (got no such parameter), expected one of {sorted(parameters)}")
        if parameters[name].shape != kept.shape:
            got, expected = tuple(kept.shape), tuple(parameters[name].shape)
            raise ValueError(f"mask tensor {name!r} (got shape {got}), expected {expected} as the parameter has")
        if id(parameters[name]) not in trained:
            raise ValueError(f"parameter {name!r} (got none in this optimizer), expected the optimizer to train it")
    held = [(parameters[name], ~kept.to(parameters[name].device)) for name, kept in mask.items()]

    def zero_pruned(*_: Any) -> None:
        for parameter, pruned in held:
            parameter.data.masked_fill_(pruned, 0)

    zero_pruned()
    return optimizer.register_step_post_hook(zero_pruned)
