"""The torch-sparse package (extra "torch-sparse", built from source): its products under our contract."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from gebt.sparse.backends.base import Backend, BackendError, Csr, by_head
from gebt.sparse.backends.oracles import rows_of

# Entries gathered at once for a sampled product, which torch-sparse does not have: E x d is never built.
CHUNK = 1 << 16
INSTALL = "pip install --no-build-isolation torch-scatter torch-sparse"


@cache
def _load() -> None:
    with warnings.catch_warnings():
        # It compiles itself with torch.jit, which torch calls deprecated; users can do nothing about it.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import torch_sparse  # noqa: F401 - registers torch.ops.torch_sparse
        except (ImportError, OSError, RuntimeError) as error:
            got = str(error).splitlines()[0]
            raise BackendError(
                f"backend 'torch-sparse' (got {got}), expected it built for torch {torch.__version__}; {INSTALL}"
            ) from error


class TorchSparse(Backend):
    """`torch.ops.torch_sparse.spmm_sum`, whose backward gives the gradient of the values as well."""

    name = "torch-sparse"

    def missing(self) -> str | None:
        """When torch-sparse is not installed."""
        if all(find_spec(module) for module in ("torch_sparse", "torch_scatter")):
            return None
        return f"torch-sparse is not installed; {INSTALL}"

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """float32 and float64."""
        return dtype in (torch.float32, torch.float64)

    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        """See `Backend.spmm`."""
        if values.dim() == 2:
            return by_head("spmm", self, a, values, x)
        if values.numel() == 0 or x.numel() == 0:
            return x.new_zeros(a.rows, x.shape[1])
        _load()
        crow, col, none = a.crow.long(), a.col.long(), None
        # Detached, since for inputs that require gradients it demands what only its own backward reads.
        values, x = values.detach().contiguous(), x.detach().contiguous()
        return torch.ops.torch_sparse.spmm_sum(none, crow, col, values, none, none, x)

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """See `Backend.sddmm`; in chunks of entries."""
        row, col = rows_of(a), a.col.long()
        parts = [(left[r] * right[c]).sum(-1) for r, c in zip(row.split(CHUNK), col.split(CHUNK), strict=True)]
        return torch.cat(parts)

    def gradients(
        self, a: Csr, transposed: Csr, permutation: Tensor, tvalues: Tensor, x: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.gradients`; through torch-sparse's own backward."""
        if tvalues.dim() == 2 or not permutation.numel() or x.numel() == 0:
            return super().gradients(a, transposed, permutation, tvalues, x, grad)
        _load()
        back = permutation.long()
        values = torch.empty_like(tvalues).index_copy_(0, back, tvalues)
        with torch.enable_grad():
            inputs = values.requires_grad_(), x.detach().contiguous().requires_grad_()
            out = torch.ops.torch_sparse.spmm_sum(
                rows_of(a), a.crow.long(), a.col.long(), inputs[0], transposed.crow.long(), back, inputs[1]
            )
            dvalues, dx = torch.autograd.grad(out, inputs, grad.contiguous())
        return dx, dvalues
