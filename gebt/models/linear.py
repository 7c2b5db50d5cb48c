"""Layers without edges: projections of dense and sparse matrices, normalization, fresh weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.sparse import to_sparse_semi_structured

from gebt.sparse.ops import matmul, spmm
from gebt.sparse.pattern import Pattern, SparseMatrix


def glorot(weight: Tensor, generator: torch.Generator) -> None:
    """Fills `weight` [..., out, in] in place, uniform in +-sqrt(6 / (in + out)). Glorot & Bengio 2010."""
    bound = math.sqrt(6.0 / (weight.shape[-1] + weight.shape[-2]))
    with torch.no_grad():
        # Drawn where the generator is, so that a seed means the same weights on every device.
        drawn = torch.empty(weight.shape, device=generator.device)
        weight.copy_(drawn.uniform_(-bound, bound, generator=generator))


class Biased(nn.Module):
    """A layer that adds `bias` [out] last. Where `normed`, a batch normalization follows and takes it away again."""

    bias: Any  # a parameter [out], or None
    normed = False

    @property
    def shift(self) -> Tensor | None:
        """The bias as it is added; before a normalization with a gradient of exact zeros.

        There the gradient is zero but for rounding, of which Adam would make whole steps of either sign.
        """
        return self.bias if self.bias is None or not self.normed else self.bias.detach() + 0.0 * self.bias


class Linear(Biased):
    """y = X W^T + b for dense or sparse X [N, in]; `weight` [out, in] and `bias` [out] as in `torch.nn.Linear`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def reset(self, generator: torch.Generator) -> None:
        """Glorot-uniform weights from `generator`, zero bias."""
        glorot(self.weight, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def product(self, x: Tensor | SparseMatrix) -> Tensor:
        """X W^T alone, [N, out]."""
        return matmul(x, self.weight.t()) if isinstance(x, SparseMatrix) else F.linear(x, self.weight)

    def forward(self, x: Tensor | SparseMatrix) -> Tensor:
        """Returns [N, out]."""
        shift = self.shift
        if isinstance(x, Tensor) or shift is None:
            return self.product(x) if shift is None else F.linear(x, self.weight, shift)  # type: ignore[arg-type]
        return self.product(x).add_(shift)  # nobody else reads it


class SparseLinear(nn.Module):
    """y = X W^T for dense X [N, in] and W [out, in] of which only the kept entries exist: `values` [k], row by row."""

    def __init__(self, weight: Tensor, kept: Tensor) -> None:
        super().__init__()
        row, col = kept.to(weight.device).nonzero(as_tuple=True)
        self.pattern, order = Pattern.from_entries(row, col, (weight.shape[0], weight.shape[1]))
        self.values = nn.Parameter(weight.detach()[row, col][order].clone())

    @property
    def weight(self) -> Tensor:
        """W as a dense tensor, zeros where nothing is kept."""
        return SparseMatrix(self.pattern, self.values.detach()).to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, out]."""
        return spmm(self.pattern, self.values, x.t().contiguous()).t()


class SemiStructuredLinear(nn.Module):
    """y = X W^T for inference with a W of the 2:4 pattern, on the sparse tensor cores of a CUDA device."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.detach()
        self._packed = to_sparse_semi_structured(self.weight.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, out]."""
        return F.linear(x, self._packed)


class BatchNorm(nn.Module):
    """Batch normalization over nodes; named as in PyG, whose own class wraps `torch.nn.BatchNorm1d` too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.module = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, channels]."""
        return self.module(x)
