"""The optimizers of the trainings on graphs: Adam, made in one way so that a CUDA graph can record its steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn, optim


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained: Adam, weight decay on the first layer alone (Kipf & Welling 2017).

    Args:
        epochs: number of epochs, at least 1.
        learning_rate: Adam's, above 0.
        weight_decay: L2 factor of the first layer's weights, at least 0.

    Raises:
        ValueError: for a number out of range.
    """

    epochs: int = 200
    learning_rate: float = 0.01
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs (got {self.epochs}), expected at least 1")
        if not (self.learning_rate > 0 and self.weight_decay >= 0):
            got = (self.learning_rate, self.weight_decay)
            raise ValueError(f"learning rate, weight decay (got {got}), expected > 0 and >= 0")


def adam_of(
    parameters: Iterable[Tensor] | Iterable[dict[str, Any]], learning_rate: float, weight_decay: float = 0.0
) -> optim.Adam:
    """Adam whose step is one kernel, and on a CUDA device keeps its step count there, so that it can be recorded.

    Args:
        parameters: tensors, or groups of them as torch's optimizers take them.
        learning_rate: above 0.
        weight_decay: L2 factor, where a group names no other.

    Returns:
        The optimizer.

    Example:
        >>> import torch
        >>> adam_of([torch.ones(2, requires_grad=True)], 0.01).defaults["capturable"]
        False
    """
    groups: list[Any] = list(parameters)
    first = groups[0]["params"][0] if isinstance(groups[0], dict) else groups[0]
    capturable = first.device.type == "cuda"
    return optim.Adam(groups, lr=learning_rate, weight_decay=weight_decay, fused=True, capturable=capturable)


def adam(model: nn.Module, settings: TrainingSettings) -> optim.Adam:
    """Adam for a model with a `first` part: weight decay on that one only, as in Kipf & Welling's GCN.

    Args:
        model: network with an attribute `first`, the layer that reads the features.
        settings: learning rate and weight decay.

    Returns:
        The optimizer of all parameters.
    """
    first = list(model.first.parameters())  # type: ignore[union-attr]
    decayed = {id(p) for p in first}
    others = [p for p in model.parameters() if id(p) not in decayed]
    groups = [{"params": first, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return adam_of([group for group in groups if group["params"]], settings.learning_rate)
