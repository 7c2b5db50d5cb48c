"""Products compiled for the CPU by numba: one pass over the entries gives both gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gebt import _numba
from gebt.sparse.backends.base import Backend, Csr


class Compiled(Backend):
    """Rows in parallel, a block of columns in registers, both gradients from one pass over the entries."""

    name = "compiled"

    def missing(self) -> str | None:
        """When numba is not installed, or torch runs on threads that cannot be shared."""
        return _numba.missing()

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """float32 and float64 on the CPU."""
        return device.type == "cpu" and dtype in (torch.float32, torch.float64)

    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        """See `Backend.spmm`."""
        out = x.new_empty(a.rows, *x.shape[1:])
        nothing = x.new_empty(0)
        _run("sums", a, values.contiguous(), x.contiguous(), out, nothing, nothing, a.col[:0])
        return out

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """See `Backend.sddmm`."""
        dots = left.new_zeros(a.col.numel(), *left.shape[1:-1])
        nothing = left.new_empty(0)
        _run("dots", a, nothing, right.contiguous(), nothing, left.contiguous(), dots, a.col[:0])
        return dots

    def gradients(
        self, a: Csr, transposed: Csr, permutation: Tensor, tvalues: Tensor, x: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`; every row of `grad` is read once for both."""
        dx, dvalues = torch.empty_like(x, memory_format=torch.contiguous_format), torch.zeros_like(tvalues)
        _run("both", transposed, tvalues.contiguous(), grad.contiguous(), dx, x.contiguous(), dvalues, permutation)
        return dx, dvalues


def _run(
    kind: str, a: Csr, values: Tensor, x: Tensor, out: Tensor, own: Tensor, dots: Tensor, permutation: Tensor
) -> None:
    heads = x.shape[1] if x.dim() == 3 else 1
    sizes = (a.rows, x.shape[0], a.col.numel(), permutation.numel(), heads, x.shape[-1])
    # The kernel reads all three as the type of the columns.
    crow, permutation = a.crow.to(a.col.dtype), permutation.to(a.col.dtype)
    tensors = (crow, a.col, values, x, out, own, dots, permutation)
    _numba.run(_kernel(kind, a.col.dtype, x.dtype), *sizes, *tensors)


def _kernel(kind: str, index: torch.dtype, scalar: torch.dtype) -> Any:
    from numba import types

    from gebt.sparse.backends import kernels

    names = {
        torch.int32: types.int32,
        torch.int64: types.int64,
        torch.float32: types.float32,
        torch.float64: types.float64,
    }
    return kernels.product(kind, names[index], names[scalar])
