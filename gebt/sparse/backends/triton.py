"""Triton kernels for CUDA: rows in parallel, both gradients in one pass, no atomics, so results are bit-stable."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gebt.sparse.backends.base import Backend, BackendError, Csr

# Features a program of sums holds; wider rows are shared by several programs.
WIDEST_BLOCK = 128
# The pass for both gradients needs a whole row in one program: above this width there are two passes.
WIDEST_FUSED = 512
# Numbers that the loads of one program fetch at once, eight a thread.
TILE = 1024
MOST_ENTRIES, FEWEST_ENTRIES, MOST_ROWS = 32, 4, 16
MOST_PROGRAMS = 2**31 - 1


class Triton(Backend):
    """A program sums a few rows of one head, several entries at a time."""

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
        out = x.new_empty(a.rows, *x.shape[1:])
        if out.numel():
            _sums(a, values, x, out, None, None, None)
        return out

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """See `Backend.sddmm`."""
        dots = left.new_zeros(a.col.numel(), *left.shape[1:-1])
        if dots.numel() and left.shape[-1]:
            heads, width = _heads(left), left.shape[-1]
            tile = _tile(a, width, WIDEST_BLOCK)
            arguments = (a.crow, a.col, left.contiguous(), right.contiguous(), dots, a.rows, heads, width)
            _launch("products", -(-a.rows // tile["ROWS"]) * heads, arguments, left, tile)
        return dots

    def gradients(
        self, a: Csr, turned: Csr, permutation: Tensor, tvalues: Tensor, x: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`; every row of `grad` is read once for both."""
        if not tvalues.numel() or not 0 < x.shape[-1] <= WIDEST_FUSED:
            return super().gradients(a, turned, permutation, tvalues, x, grad)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dvalues = torch.empty_like(tvalues, memory_format=torch.contiguous_format)
        _sums(turned, tvalues, grad, dx, x, dvalues, permutation)
        return dx, dvalues


def _sums(
    a: Csr, values: Tensor, x: Tensor, out: Tensor, own: Tensor | None, dots: Tensor | None, permutation: Tensor | None
) -> None:
    heads, width = _heads(x), x.shape[-1]
    tile = _tile(a, width, WIDEST_BLOCK if own is None else WIDEST_FUSED)
    blocks = -(-width // tile["COLUMNS"])
    permuted = permutation is not None and permutation.numel() > 0
    # An argument that the program does not read still needs an address: that of `out`.
    others = [
        out if tensor is None else tensor.contiguous() for tensor in (own, dots, permutation if permuted else None)
    ]
    arguments = (a.crow, a.col, values.contiguous(), x.contiguous(), out, *others, a.rows, heads, width, blocks)
    constants = tile | {"DOTS": own is not None, "PERMUTED": permuted}
    _launch("sums", -(-a.rows // tile["ROWS"]) * heads * blocks, arguments, x, constants)


def _launch(kernel: str, programs: int, arguments: tuple[Any, ...], x: Tensor, constants: dict[str, Any]) -> None:
    if programs > MOST_PROGRAMS:
        raise BackendError(f"product for triton (got {programs} programs), expected at most {MOST_PROGRAMS}; split it")
    kernels, kind = _kernels(), "float64" if x.dtype == torch.float64 else "float32"
    # Triton 3.9 warns where fusing multiply-adds is left to its default, which the next version changes.
    options = constants | {"KIND": getattr(kernels.tl, kind), "enable_fp_fusion": True}
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(x):
        getattr(kernels, kernel)[(programs,)](*arguments, **options)


def _tile(a: Csr, width: int, widest: int) -> dict[str, int]:
    """How much one program takes at once: as many entries of a row as rows have on average, then several rows."""
    columns = min(widest, _power_of_two(width))
    entries = max(FEWEST_ENTRIES, min(MOST_ENTRIES, TILE // columns, _power_of_two(a.col.numel() // a.rows)))
    rows = max(1, min(MOST_ROWS, TILE // (columns * entries)))
    warps = max(1, min(8, rows * entries * columns // 256))
    return {"ROWS": rows, "ENTRIES": entries, "COLUMNS": columns, "num_warps": warps}


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()


def _heads(x: Tensor) -> int:
    return x.shape[1] if x.dim() == 3 else 1


def _interpreted() -> bool:
    if find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _kernels() -> Any:
    from gebt.sparse.backends import triton_kernels

    return triton_kernels
