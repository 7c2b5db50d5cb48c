"""Fully connected networks, among them LeNet-300-100 of the lottery ticket hypothesis."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

LENET = (300, 100)


class MLP(nn.Module):
    """Linear layers with ReLUs between, Glorot-normal weights, biases 0.

    Args:
        inputs: number of inputs.
        classes: number of classes, C.
        hidden: hidden widths; (300, 100) on 784 pixels is LeNet-300-100.
        seed: of the weights.

    Raises:
        ValueError: for a size below 1.

    Source:
        Frankle & Carbin 2019.

    Example:
        >>> MLP(inputs=4, classes=2, hidden=(3,))(torch.zeros(5, 2, 2)).tolist()
        [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    """

    def __init__(self, inputs: int, classes: int, hidden: Sequence[int] = LENET, *, seed: int = 0) -> None:
        super().__init__()
        sizes = (inputs, *hidden, classes)
        if min(sizes) < 1:
            raise ValueError(f"sizes of MLP (got {sizes}), expected at least 1")
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(sizes))
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draws fresh weights.

        Args:
            seed: of the weights.
        """
        self.seed, generator = seed, torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers:
                linear = cast(nn.Linear, layer)
                std = (2 / (linear.in_features + linear.out_features)) ** 0.5
                linear.weight.copy_(torch.empty(linear.weight.shape).normal_(0, std, generator=generator))
                linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Classifies.

        Args:
            x: [B, ...], flattened to [B, inputs].

        Returns:
            Logits, [B, C].
        """
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return cast(Tensor, self.layers[-1](x))
