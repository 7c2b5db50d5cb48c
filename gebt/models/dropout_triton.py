"""ReLU and dropout in one pass on CUDA; imported only where Triton is."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from gebt.models.dropout_triton_kernels import drop, positive

# Numbers of a program, eight a thread; where it draws, four times as many, since Philox gives four at once.
BLOCK = 1024
# Triton 3.9 warns where fusing multiply-adds is left to its default, which the next version changes.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
# Of a random number 24 bits count: an entry stays when they are at least rate * STEPS.
STEPS = 1 << 24


def dropped(x: Tensor, seed: Tensor, rate: float, relu: bool) -> Tensor:
    """Dropout of x, after a ReLU if wanted.

    Args:
        x: contiguous, on CUDA.
        seed: on the same device, [1] int64; equal seeds drop equal entries.
        rate: probability of zeroing, in [0, 1).
        relu: apply relu to x first.

    Returns:
        A tensor shaped as x.
    """
    y = torch.empty_like(x)
    if x.numel():
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(x):
            drop[(-(-x.numel() // (4 * BLOCK)),)](
                x, seed, y, x.numel(), _threshold(rate), RELU=relu, KIND=_kind(x), BLOCK=BLOCK, **OPTIONS
            )
    return y


def scaled_where_positive(grad: Tensor, y: Tensor, rate: float) -> Tensor:
    """The gradient of `dropped` with relu.

    Args:
        grad: of y, contiguous.
        y: what `dropped` returned.
        rate: as there.

    Returns:
        A tensor shaped as y.
    """
    out = torch.empty_like(grad)
    if grad.numel():
        with torch.cuda.device_of(grad):
            positive[(-(-grad.numel() // BLOCK),)](
                grad, y, out, grad.numel(), _threshold(rate), KIND=_kind(grad), BLOCK=BLOCK, **OPTIONS
            )
    return out


def _threshold(rate: float) -> int:
    return min(round(rate * STEPS), STEPS - 1)


def _kind(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
