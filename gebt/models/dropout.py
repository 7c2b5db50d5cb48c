"""Dropout whose random bits cost less than the products around it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS = 1 << 16


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """x with each entry zeroed with probability `rate` and the others divided by 1 - rate, while training.

    On the CPU torch draws one Bernoulli number after the other, 12 ns each, which on a million stored features is
    two thirds of an epoch; here four entries share one 64-bit number. The rate is exact to 1 / 131072.
    """
    if not training or rate == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    threshold = min(round(rate * STEPS), STEPS - 1)
    numbers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[: x.numel()] >= threshold - STEPS // 2
    return x * kept.to(x.dtype).mul_(STEPS / (STEPS - threshold)).view(x.shape)
