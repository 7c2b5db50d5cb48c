"""Triton kernels for CUDA: a program a row and block of columns, no atomics, so results are bit-stable."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gebt.sparse.backends.base import Backend, Csr, by_head

WIDEST_BLOCK = 128


class Triton(Backend):
    """One program sums one row; entries are read once for all columns of a block."""

    name = "triton"

    def missing(self) -> str | None:
        """When Triton is not installed or there is no CUDA device."""
        if find_spec("triton") is None:
            return "Triton is not installed; it comes with torch's CUDA builds for Linux"
        if not torch.cuda.is_available() and not _interpreted():
            return "there is no CUDA device"
        return None

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """float32, float64 and the 16-bit types, on CUDA (or under Triton's interpreter, for tests)."""
        floating = dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        return floating and (device.type == "cuda" or _interpreted())

    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        """See `Backend.spmm`."""
        if values.dim() == 2:
            return by_head("spmm", self, a, values, x)
        out = x.new_empty(a.rows, x.shape[1])
        if out.numel():
            block = _block(x.shape[1])
            grid = (a.rows, -(-x.shape[1] // block))
            _kernels().sums[grid](a.crow, a.col, values.contiguous(), x.contiguous(), out, x.shape[1], BLOCK=block)
        return out

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """See `Backend.sddmm`."""
        if left.dim() == 3:
            return by_head("sddmm", self, a, left, right)
        out = left.new_zeros(a.col.numel())
        if out.numel() and left.shape[1]:
            block = _block(left.shape[1])
            _kernels().dots[(a.rows,)](
                a.crow, a.col, left.contiguous(), right.contiguous(), out, left.shape[1], BLOCK=block
            )
        return out


def _block(width: int) -> int:
    return min(WIDEST_BLOCK, max(16, 1 << (width - 1).bit_length()))


def _interpreted() -> bool:
    if find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _kernels() -> Any:
    from gebt.sparse.backends import triton_kernels

    return triton_kernels
