"""torch's own CSR products: MKL on the CPU, cuSPARSE on CUDA. The default."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from gebt.sparse.backends.base import Backend, Csr, by_head
from gebt.sparse.precision import without_autocast


@cache
def _take_beta_warning() -> None:
    # torch says once a process that its CSR tensors are beta; users of these products can do nothing about it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0))


def csr_tensor(a: Csr, values: Tensor, columns: int) -> Tensor:
    """The CSR tensor of a pattern that is known to be sound."""
    _take_beta_warning()
    # Patterns are checked when they are built, so the invariants need not be checked at each product.
    return torch.sparse_csr_tensor(a.crow, a.col, values.contiguous(), (a.rows, columns), check_invariants=False)


class TorchCsr(Backend):
    """`torch.mm` of a CSR tensor and `torch.sparse.sampled_addmm`."""

    name = "torch-csr"

    def missing(self) -> str | None:
        """Never: it comes with torch."""
        return None

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """float32 and float64; on CUDA the 16-bit types too."""
        return dtype in (torch.float32, torch.float64) or (
            device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
        )

    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        """See `Backend.spmm`."""
        if values.dim() == 2:
            return by_head("spmm", self, a, values, x)
        if values.numel() == 0 or x.numel() == 0:
            return x.new_zeros(a.rows, x.shape[1])
        with without_autocast(x):
            return torch.mm(csr_tensor(a, values, x.shape[0]), x.contiguous())

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """See `Backend.sddmm`."""
        if left.dim() == 3:
            return by_head("sddmm", self, a, left, right)
        if a.col.numel() == 0 or left.shape[1] == 0:
            return left.new_zeros(a.col.numel())
        if left.itemsize == 2:
            # cuSPARSE multiplies matrices of 16-bit types, but torch samples products of 32 bits and more only.
            return self.sddmm(a, left.float(), right.float()).to(left.dtype)
        zero = csr_tensor(a, left.new_zeros(a.col.numel()), right.shape[0])
        # A row-major left and a column-major right' are the layout the kernel reads without a copy of its own.
        with without_autocast(left):
            return torch.sparse.sampled_addmm(zero, left.contiguous(), right.contiguous().t(), beta=0).values().clone()
