"""Triton kernels for CUDA: runs of rows in parallel, both gradients in one pass, no atomics, so bits are stable."""

from __future__ import annotations

import math
import os
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gebt.sparse.backends.base import Backend, BackendError, Csr
from gebt.sparse.backends.triton_plan import (
    PART_COLUMNS,
    PARTS,
    WIDEST_BLOCK,
    WIDEST_FUSED,
    Rows,
    Runs,
    Tile,
    rows_of,
    runs_of,
    stride_of,
    tile_of,
)

MOST_PROGRAMS = 2**31 - 1
# Compute capability of the oldest GPUs that Triton compiles for (Ampere).
OLDEST = (8, 0)
# Turns of a loop whose loads are under way at once (`num_stages`). One: 32 warps of a multiprocessor that fetch 4 KiB
# each hide the latency of memory already, and more stages bring every row through shared memory.
STAGES = 1


class Triton(Backend):
    """A program sums a few runs of one head, several entries at a time; a second pass adds up the runs of long rows."""

    name = "triton"

    def missing(self) -> str | None:
        """When Triton is not installed, or there is no CUDA device that it compiles for."""
        if find_spec("triton") is None:
            return "Triton is not installed; it comes with torch's CUDA builds for Linux"
        if not torch.cuda.is_available() and not _interpreted():
            return "there is no CUDA device"
        if torch.cuda.is_available() and (found := torch.cuda.get_device_capability()) < OLDEST:
            return f"the device has compute capability {found[0]}.{found[1]}, and Triton compiles for 8.0 and newer"
        return None

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """float32, float64 and the 16-bit types, on CUDA (or under Triton's interpreter, for tests)."""
        floating = dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        return floating and (device.type == "cuda" or _interpreted())

    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        """See `Backend.spmm`."""
        out = x.new_empty(a.rows, *x.shape[1:])
        if not a.col.numel():
            return out.zero_()
        if out.numel():
            _sums(a, values, x, out, None, None, None)
        return out

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """See `Backend.sddmm`."""
        dots = left.new_zeros(a.col.numel(), *left.shape[1:-1])
        if dots.numel() and left.shape[-1]:
            runs = runs_of(a.crow)
            tile = tile_of(runs.total, a.col.numel(), right.shape[-1], right.dtype, WIDEST_FUSED)
            source, rows = _gathered(a, right)
            tensors = (runs.begin, runs.owner, a.col, left.contiguous(), source, dots)
            arguments = (*tensors, runs.total, _heads(left), *rows.units)
            programs = -(-runs.total // tile.rows) * _heads(left)
            launch("products", programs, arguments, left, _constants(runs, rows, tile))
        return dots

    def gradients(
        self, a: Csr, transposed: Csr, permutation: Tensor, tvalues: Tensor, x: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`; every row of `grad` is read once for both."""
        if not tvalues.numel() or not 0 < x.shape[-1] <= WIDEST_FUSED:
            return super().gradients(a, transposed, permutation, tvalues, x, grad)
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        dvalues = torch.empty_like(tvalues, memory_format=torch.contiguous_format)
        _sums(transposed, tvalues, grad, dx, x, dvalues, permutation)
        return dx, dvalues


BACKEND = Triton()


def _sums(
    a: Csr, values: Tensor, x: Tensor, out: Tensor, own: Tensor | None, dots: Tensor | None, permutation: Tensor | None
) -> None:
    heads, width, runs = _heads(x), x.shape[-1], runs_of(a.crow)
    tile = tile_of(runs.total, a.col.numel(), width, x.dtype, WIDEST_BLOCK if own is None else WIDEST_FUSED)
    blocks = -(-width // tile.columns)
    source, rows = _gathered(a, x)
    permuted = permutation is not None and permutation.numel() > 0
    parts = out
    if runs.parts:
        parts = out.new_empty(runs.parts, *out.shape[1:], dtype=sum_type(x))
    # An argument that the program does not read still needs an address: that of `out`.
    others = [
        out if tensor is None else tensor.contiguous() for tensor in (own, dots, permutation if permuted else None)
    ]
    tensors = (runs.begin, runs.owner, runs.part, a.col, values.contiguous(), source, out, parts, *others)
    sizes = (runs.total, heads, blocks, *rows.units)
    options = {"DOTS": own is not None, "PERMUTED": permuted, "PADDED": rows.padded}
    options |= _constants(runs, rows, tile)
    launch("sums", -(-runs.total // tile.rows) * heads * blocks, (*tensors, *sizes), x, options)
    join_parts(runs, parts, out)


def join_parts(runs: Runs, parts: Tensor, out: Tensor, *, highest: bool = False) -> None:
    """Writes the rows of `out` that were cut, each the sum of its parts in their order; nothing when none was.

    Args:
        runs: of the pattern.
        parts: [runs.parts, ...].
        out: [R, ...].
        highest: their maximum instead.
    """
    if runs.parts:
        wide = math.prod(out.shape[1:])
        blocks = -(-wide // PART_COLUMNS)
        constants = {"MAX": highest, "PARTS": PARTS, "COLUMNS": PART_COLUMNS, "num_warps": 4}
        arguments = (parts, runs.first, runs.cut, out, wide, blocks)
        launch("join_parts", runs.cut.numel() * blocks, arguments, out, constants)


def _gathered(a: Csr, x: Tensor) -> tuple[Tensor, Rows]:
    """What the kernel gathers rows of x from, and where they are in it: x itself, or a copy with padded rows."""
    rows = rows_of(x.shape[-1], stride_of(a, x), x.element_size())
    if not rows.padded:
        return x.contiguous(), rows
    padded = x.new_empty(*x.shape[:-1], rows.stride)
    padded[..., : rows.width].copy_(x)
    return padded, rows


def _constants(runs: Runs, rows: Rows, tile: Tile) -> dict[str, Any]:
    return {
        "CUT": runs.parts > 0, "VECTOR": rows.vector, "OWN_VECTOR": rows.own_vector, "STAGES": STAGES,
        "ROWS": tile.rows, "ENTRIES": tile.entries, "COLUMNS": tile.columns, "num_warps": tile.warps,
    }  # fmt: skip


def launch(kernel: str, programs: int, arguments: tuple[Any, ...], x: Tensor, constants: dict[str, Any]) -> None:
    """Launches a kernel of `triton_kernels` on the device of `x`.

    Args:
        kernel: its name.
        programs: how many.
        arguments: in the kernel's order.
        x: whose device and type decide; sums of float64 are float64, all others float32.
        constants: the kernel's constants and Triton's options.

    Raises:
        BackendError: for more programs than a launch can have.
    """
    if programs > MOST_PROGRAMS:
        raise BackendError(f"product for triton (got {programs} programs), expected at most {MOST_PROGRAMS}; split it")
    kernels, kind = _kernels(), "float64" if x.dtype == torch.float64 else "float32"
    # Triton 3.9 warns where fusing multiply-adds is left to its default, which the next version changes.
    options = constants | {"KIND": getattr(kernels.tl, kind), "enable_fp_fusion": True}
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(x):
        getattr(kernels, kernel)[(programs,)](*arguments, **options)


def sum_type(x: Tensor) -> torch.dtype:
    """The type that sums of numbers of x are taken in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _heads(x: Tensor) -> int:
    return x.shape[1] if x.dim() == 3 else 1


def takes(x: Tensor) -> bool:
    """Whether Triton's kernels can be used on x, in this process."""
    return BACKEND.supports(x.device, x.dtype) and _usable()


@cache
def _usable() -> bool:
    return BACKEND.missing() is None


def _interpreted() -> bool:
    # Asked for before Triton is imported, which takes a while and is for nothing on most CPUs.
    if "TRITON_INTERPRET" not in os.environ or find_spec("triton") is None:
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


@cache
def _kernels() -> Any:
    from gebt.sparse.backends import triton_kernels

    return triton_kernels
