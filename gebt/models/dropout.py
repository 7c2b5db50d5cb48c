"""Dropout whose random bits cost less than the matrix products around it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gebt import _numba
from gebt.prune.tie_breaking import splitmix64
from gebt.sparse.backends import triton

STEPS = 1 << 16
COMPILED = (torch.float32, torch.float64)


def dropout(x: Tensor, rate: float, training: bool, *, relu: bool = False, seeds: Tensor | None = None) -> Tensor:
    """Dropout, with an optional ReLU before it: entries are zeroed with probability `rate`, others divided by 1 - rate.

    On the CPU an entry's fate is 16 bits of a SplitMix64 sequence: entry i is kept when lane (i % 32) // 8 of word
    8 (i // 32) + i % 8 is at least rate * 2^16. One number from torch's generator starts the sequence, so the result
    does not depend on threads, nor on whether the kernel is compiled. torch's Bernoulli numbers take 12 ns each,
    which on a million stored features is two thirds of an epoch. The rate is exact to 1 / 131072.

    On CUDA with Triton the ReLU and the dropout are one pass, with Philox numbers of a seed drawn on the device, and
    the backward pass another one. Elsewhere, and in what `torch.compile` traces, they are torch's own.

    Args:
        x: any tensor; with `seeds` [n, S, ...].
        rate: probability of zeroing, in [0, 1).
        training: without it nothing is dropped.
        relu: apply relu to x first.
        seeds: [S] int64, one sequence for each of S streams of x, each dropped as it would be alone; None: one stream,
            seeded from torch's generator.

    Returns:
        A tensor shaped as x.

    Example:
        >>> x = torch.tensor([[-1.0, 2.0]])
        >>> dropout(x, 0.5, training=False, relu=True).tolist()
        [[0.0, 2.0]]
        >>> dropout(x, 0.0, training=True).tolist()
        [[-1.0, 2.0]]
    """
    if not training or rate == 0.0:
        return torch.relu(x) if relu else x
    if seeds is None and _by_triton(x):
        return _TritonDropout.apply(x, rate, relu)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]
    if x.device.type != "cpu" and seeds is None:
        return F.dropout(torch.relu(x) if relu else x, rate)
    if seeds is None:
        seeds = torch.empty(1, dtype=torch.int64).random_(-(2**63), None)
    return _Dropout.apply(x, rate, relu, seeds)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]


class _Dropout(torch.autograd.Function):
    """Saves only the seeds, or with ReLU the output: the random bits of the backward pass are computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, relu: bool, seeds: Tensor) -> Tensor:
        threshold = min(round(rate * STEPS), STEPS - 1)
        ctx.scale, ctx.threshold, ctx.relu, ctx.seeds = STEPS / (STEPS - threshold), threshold, relu, seeds
        y = _dropped(x, threshold, ctx.scale, relu, seeds)
        if relu:
            ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.relu:
            (y,) = ctx.saved_tensors
            return torch.ops.aten.threshold_backward(grad, y, 0).mul_(ctx.scale), None, None, None
        return _dropped(grad, ctx.threshold, ctx.scale, False, ctx.seeds), None, None, None


class _TritonDropout(torch.autograd.Function):
    """Saves only the seed, or with ReLU the output, of which every entry above zero was kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, relu: bool) -> Tensor:
        from gebt.models import dropout_triton

        # On the device, from torch's generator: a replayed CUDA graph draws a new one each time.
        seed = torch.empty(1, dtype=torch.int64, device=x.device).random_()
        y = dropout_triton.dropped(x.contiguous(), seed, rate, relu)
        ctx.rate, ctx.relu = rate, relu
        ctx.save_for_backward(y if relu else seed)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        from gebt.models import dropout_triton

        (saved,) = ctx.saved_tensors
        if ctx.relu:
            return dropout_triton.scaled_where_positive(grad.contiguous(), saved, ctx.rate), None, None
        return dropout_triton.dropped(grad.contiguous(), saved, ctx.rate, relu=False), None, None


def _by_triton(x: Tensor) -> bool:
    return x.is_cuda and triton.takes(x) and not torch.compiler.is_compiling()


def _dropped(x: Tensor, threshold: int, scale: float, relu: bool, seeds: Tensor) -> Tensor:
    if x.device.type == "cpu" and x.itemsize == 2:  # the kernel has no 16 bits
        return _dropped(x.float(), threshold, scale, relu, seeds).to(x.dtype)
    streams = seeds.numel()
    width = x.numel() // max(1, x.shape[0] * streams) if x.numel() else 0
    if x.device.type == "cpu" and x.dtype in COMPILED and _numba.available():
        x = x.contiguous()
        y, factor = torch.empty_like(x), torch.tensor([scale], dtype=x.dtype)
        sizes = (x.shape[0] if x.numel() else 0, streams, width, threshold, int(relu))
        _numba.run(_kernel(x.dtype), *sizes, x, y, seeds, factor)
        return y
    blocks = -(-x.shape[0] * width // 32)
    words = torch.arange(1, 8 * blocks + 1, device=x.device)
    kept = _lanes(words, seeds.to(x.device), x.shape[0] * width, threshold)
    # [streams, entries of a stream] -> the layout of x, streams second
    kept = kept.view(streams, x.shape[0], width).transpose(0, 1).reshape(x.shape)
    return torch.where(kept, torch.relu(x) if relu else x, 0) * scale


def _lanes(words: Tensor, seeds: Tensor, entries: int, threshold: int) -> Tensor:
    """Which entries of each stream are kept, [S, entries]."""
    numbers = splitmix64(words, seeds[:, None])
    lanes = numbers.view(torch.int16).view(len(seeds), -1, 8, 4).transpose(2, 3).flatten(1)
    return ((lanes.to(torch.int32) & 0xFFFF) >= threshold)[:, :entries]


def _kernel(dtype: torch.dtype) -> Any:
    from numba import types

    from gebt.models import dropout_kernels

    return dropout_kernels.dropout(types.float64 if dtype == torch.float64 else types.float32)
