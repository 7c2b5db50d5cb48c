"""What every backend of the sparse products offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class BackendError(ValueError):
    """A backend that is not here, or that cannot do what is asked."""


class Csr(NamedTuple):
    """Rows of a sparse matrix: `crow` [R + 1] where each begins, `col` [E] the columns of its entries."""

    crow: Tensor
    col: Tensor

    @property
    def rows(self) -> int:
        """R."""
        return self.crow.numel() - 1


class PairEntries(NamedTuple):
    """Where the P pairs of N nodes are in the symmetric pattern of A + I, E = 2P + N entries (`gebt.graph.Edges`).

    `crow` [N + 1], `col` [E]; `source` [E] the pair of each entry, or P + u for the self-loop of node u; `places` [E]
    the two entries of each pair, pair by pair, then that of each self-loop; `u` and `v` [P] the ends of each pair.
    """

    crow: Tensor
    col: Tensor
    source: Tensor
    places: Tensor
    u: Tensor
    v: Tensor


class Backend(ABC):
    """One implementation of the products over a CSR pattern.

    `values` [E] or, with H heads, [E, H]; dense sides [n, d] or [n, H, d]. Results are equal bit for bit from call to
    call with equal inputs and threads, but for cuSPARSE's (`torch-csr` on CUDA). Sizes are checked by the callers.
    """

    name: str

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot be used in this process and how to get it; None when it can."""

    @abstractmethod
    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it multiplies tensors of this kind."""

    @abstractmethod
    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        """y_r = sum over entries e = (r, c) of values_e x_c; [R, d] or [R, H, d]."""

    @abstractmethod
    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        """out_e = <left_r, right_c> for every entry e = (r, c); [E] or [E, H]."""

    def gradients(
        self, a: Csr, transposed: Csr, permutation: Tensor, tvalues: Tensor, x: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both gradients of y = A x: dx = A^T grad and dvalues_e = <grad_r, x_c>.

        `transposed` is the transpose of `a`, `tvalues` are the values in its order, and entry `permutation[t]` of `a`
        is entry t of it. An empty `permutation` says that A = A^T, values included: dvalues may then stand mirrored.
        """
        return self.spmm(transposed, tvalues, grad), self.sddmm(a, grad, x)


def by_head(product: str, backend: Backend, a: Csr, first: Tensor, second: Tensor) -> Tensor:
    """A product with heads by a backend that has none: one call a head."""
    call = getattr(backend, product)
    return torch.stack([call(a, first[:, h].contiguous(), second[:, h].contiguous()) for h in range(first.shape[1])], 1)
