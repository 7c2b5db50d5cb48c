"""Layers without edges: linear layers for dense and sparse matrices, batch normalization, Glorot initialization."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.sparse import to_sparse_semi_structured

from gebt.sparse.ops import matmul, mixed_spmm
from gebt.sparse.pattern import Pattern, SparseMatrix
from gebt.sparse.precision import current


def glorot(weight: Tensor, generator: torch.Generator) -> None:
    """Fills a weight matrix in place, uniform in +-sqrt(6 / (in + out)).

    Args:
        weight: [..., out, in].
        generator: the source of random numbers; equal ones give equal weights on every device.

    Source:
        Glorot & Bengio 2010.

    Example:
        >>> weight = torch.empty(2, 4)
        >>> glorot(weight, torch.Generator().manual_seed(0))
        >>> bool((weight.abs() <= 1).all())
        True
    """
    with torch.no_grad():
        weight.copy_(uniform(weight.shape, math.sqrt(6.0 / (weight.shape[-1] + weight.shape[-2])), generator))


def uniform(shape: Sequence[int], bound: float, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [-bound, bound), the same on every device and processor.

    They are those of `Tensor.uniform_` where the processor multiplies and adds in one rounding. Others round twice
    there, and a ticket that names its start weights by a seed would not find them again.

    Args:
        shape: of the tensor.
        bound: above 0.
        generator: the source of random numbers.

    Returns:
        float32, on the device of the generator.

    Example:
        >>> uniform((2,), 0.5, torch.Generator().manual_seed(0)).tolist()
        [-0.003743410110473633, 0.26822179555892944]
    """
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    low = torch.tensor(-bound)
    width = (-low - low).double()
    return drawn.double().mul_(width).add_(low.double()).float()


class Biased(nn.Module):
    """A layer that adds `bias` [out] last. Where `normed`, a batch normalization follows and cancels it."""

    bias: Any  # a parameter [out], or None
    normed = False

    @property
    def shift(self) -> Tensor | None:
        """The bias as it is added; before a normalization with a gradient of exact zeros.

        There the gradient is zero but for rounding errors, which Adam would turn into full steps of either sign.
        """
        return self.bias if self.bias is None or not self.normed else self.bias.detach() + 0.0 * self.bias


class Linear(Biased):
    """y = X W^T + b for dense or sparse X [N, in]; `weight` [out, in] and `bias` [out] as in `torch.nn.Linear`.

    Args:
        in_channels: width of X.
        out_channels: width of y.
        bias: whether there is b.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None

    def reset(self, generator: torch.Generator) -> None:
        """Draws Glorot-uniform weights; the bias is zero.

        Args:
            generator: the source of random numbers.
        """
        glorot(self.weight, generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def product(self, x: Tensor | SparseMatrix) -> Tensor:
        """Multiplies without the bias.

        Args:
            x: [N, in_channels], dense or sparse.

        Returns:
            X W^T, [N, out_channels].
        """
        return matmul(x, self.weight.t()) if isinstance(x, SparseMatrix) else F.linear(x, self.weight)

    def forward(self, x: Tensor | SparseMatrix) -> Tensor:
        """Multiplies and adds the bias.

        Args:
            x: [N, in_channels], dense or sparse.

        Returns:
            y, [N, out_channels].
        """
        shift = self.shift
        if isinstance(x, Tensor) or shift is None:
            return self.product(x) if shift is None else F.linear(x, self.weight, shift)  # type: ignore[arg-type]
        return self.product(x).add_(shift)  # nobody else reads it


class SparseLinear(nn.Module):
    """y = X W^T for dense X [N, in] and a sparse W that stores its kept entries only, `values` [k], row by row.

    Args:
        weight: W, [out, in].
        kept: which entries are stored, bool [out, in].

    Example:
        >>> lin = SparseLinear(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, False], [False, True]]))
        >>> lin.weight.tolist()
        [[1.0, 0.0], [0.0, 4.0]]
    """

    def __init__(self, weight: Tensor, kept: Tensor) -> None:
        super().__init__()
        row, col = kept.to(weight.device).nonzero(as_tuple=True)
        self.pattern, order = Pattern.from_entries(row, col, (weight.shape[0], weight.shape[1]))
        self.values = nn.Parameter(weight.detach()[row, col][order].clone())

    @property
    def weight(self) -> Tensor:
        """W as a dense tensor, with zeros at pruned entries."""
        return SparseMatrix(self.pattern, self.values.detach()).to_dense()

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies.

        Args:
            x: [N, in_channels].

        Returns:
            y, [N, out_channels].
        """
        return mixed_spmm(self.pattern, self.values, x.t().contiguous()).t()


class SemiStructuredLinear(nn.Module):
    """y = X W^T for inference with a W of the 2:4 pattern, on the sparse tensor cores of a CUDA device.

    Packed as bfloat16 in precision "bf16" (`gebt.sparse.precision`): on an H100 torch has no kernel for float32. It is
    faster than the dense product from about 1024 units a layer.

    Args:
        weight: W, [out, in], with two zeros in every four entries of a row.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.detach()
        packed = self.weight.bfloat16() if current() == "bf16" else self.weight
        self._packed = to_sparse_semi_structured(packed.contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies.

        Args:
            x: [N, in_channels].

        Returns:
            y, [N, out_channels].
        """
        return F.linear(x.to(self._packed.dtype), self._packed)


class BatchNorm(nn.Module):
    """Batch normalization over nodes; named as in PyG, whose class wraps `torch.nn.BatchNorm1d` too.

    Args:
        channels: width of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.module = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes.

        Args:
            x: [N, channels].

        Returns:
            The normalized features, [N, channels].
        """
        return self.module(x)
