"""Slow and plainly right: what the tests hold every other backend against. Never chosen by "auto"."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from gebt.sparse.backends.base import Backend, Csr, by_head
from gebt.sparse.precision import without_autocast


def rows_of(a: Csr) -> Tensor:
    """The row of every entry, [E] int64."""
    counts = (a.crow[1:] - a.crow[:-1]).long()
    return torch.arange(a.rows, device=a.col.device).repeat_interleave(counts)


class Dense(Backend):
    """Through the dense R x C matrix."""

    name = "dense"

    def missing(self) -> str | None:
        """Never."""
        return None

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Every floating type."""
        return dtype.is_floating_point

    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        """See `Backend.spmm`."""
        if values.dim() == 2:
            return by_head("spmm", self, a, values, x)
        matrix = values.new_zeros(a.rows, x.shape[0])
        matrix[rows_of(a), a.col.long()] = values
        with without_autocast(x):
            return matrix @ x

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """See `Backend.sddmm`."""
        if left.dim() == 3:
            return by_head("sddmm", self, a, left, right)
        with without_autocast(left):
            return (left @ right.T)[rows_of(a), a.col.long()]


class Scipy(Backend):
    """scipy's CSR product; sampled products entry by entry."""

    name = "scipy"

    def missing(self) -> str | None:
        """When scipy is not installed."""
        return None if find_spec("scipy") else "pip install scipy"

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """float32 and float64 on the CPU."""
        return device.type == "cpu" and dtype in (torch.float32, torch.float64)

    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        """See `Backend.spmm`."""
        from scipy.sparse import csr_matrix

        if values.dim() == 2:
            return by_head("spmm", self, a, values, x)
        arrays = (values.numpy(), a.col.numpy(), a.crow.numpy())
        return torch.from_numpy(csr_matrix(arrays, (a.rows, x.shape[0])) @ x.numpy())

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """See `Backend.sddmm`."""
        return (left[rows_of(a)] * right[a.col.long()]).sum(-1)
