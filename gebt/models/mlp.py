"""Fully connected networks: LeNet-300-100, the lottery tickets' first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

LENET = (300, 100)


class MLP(nn.Module):
    """Linear layers with ReLUs between, Glorot-normal weights drawn from `seed`, biases 0.

    `hidden` (300, 100) on 784 pixels is LeNet-300-100 as Frankle & Carbin 2019 start it.
    Raises `ValueError` for a size below 1.
    """

    def __init__(self, inputs: int, classes: int, hidden: Sequence[int] = LENET, *, seed: int = 0) -> None:
        super().__init__()
        sizes = (inputs, *hidden, classes)
        if min(sizes) < 1:
            raise ValueError(f"sizes of MLP (got {sizes}), expected at least 1")
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(sizes))
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draws fresh weights from `seed`."""
        self.seed, generator = seed, torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.layers:
                linear = cast(nn.Linear, layer)
                std = (2 / (linear.in_features + linear.out_features)) ** 0.5
                linear.weight.copy_(torch.empty(linear.weight.shape).normal_(0, std, generator=generator))
                linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of [B, ...]."""
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return cast(Tensor, self.layers[-1](x))
