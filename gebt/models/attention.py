"""Attention weights on a sparse pattern: the softmax over the entries of each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gebt.sparse.pattern import Pattern
from gebt.sparse.precision import widened
from gebt.sparse.reduction import row_reduce


def row_softmax(pattern: Pattern, to: Tensor, of: Tensor, slope: float, weights: Tensor | None = None) -> Tensor:
    """Softmax over the entries of each row of a sparse pattern, with entry weights.

    alpha_e = a_e exp(z_e) / sum of the same over e's row, z_e = leaky_relu(to_r + of_c) for entry e = (r, c). An entry
    of weight zero has alpha zero and the others share as if it were not there; a row without weight has alpha zero.
    Memory is 3 E H floats, whatever the width of what is attended to.

    Args:
        pattern: the R x C pattern, E entries.
        to: the rows' part of the score, [R, H] for H heads.
        of: the columns' part, [C, H].
        slope: of the leaky ReLU for negative numbers.
        weights: a >= 0 of the entries, [E]; None: 1.

    Returns:
        alpha, [E, H], float32 where scores have 16 bits; gradients go to `to`, `of` and `weights`.

    Example:
        >>> pattern, _ = Pattern.from_entries(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), (2, 2))
        >>> row_softmax(pattern, torch.zeros(2, 1), torch.zeros(2, 1), 0.2).tolist()
        [[0.5], [0.5], [1.0]]
    """
    to, of = widened(to), widened(of)
    return _RowSoftmax.apply(to, of, weights, pattern, slope)  # type: ignore[no-untyped-call]


class _RowSoftmax(torch.autograd.Function):
    """One gradient for all steps: of the E x H intermediate tensors only two are saved."""

    @staticmethod
    def forward(ctx: Any, to: Tensor, of: Tensor, weights: Tensor | None, pattern: Pattern, slope: float) -> Tensor:
        raw = to.index_select(0, pattern.row).add_(of.index_select(0, pattern.col))
        falling = raw < 0
        score = torch.where(falling, raw * slope, raw)
        # Shifted by the highest of its row, no exponential overflows, and the highest is 1.
        highest = row_reduce(pattern, score, "max")
        score.sub_(highest.index_select(0, pattern.row)).exp_()
        weighted = score if weights is None else score * weights.unsqueeze(1)
        total = row_reduce(pattern, weighted, "sum")
        share = torch.where(total == 0, 0.0, 1.0 / total).index_select(0, pattern.row)
        alpha = weighted * share
        ctx.pattern, ctx.slope = pattern, slope
        gated = weights is not None and weights.requires_grad
        ctx.save_for_backward(alpha, falling, score.mul_(share) if gated else None)
        return alpha

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        alpha, falling, unweighted = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        mean = row_reduce(pattern, alpha * grad, "sum")
        centered = grad - mean.index_select(0, pattern.row)
        dweights = (unweighted * centered).sum(1) if ctx.needs_input_grad[2] else None
        draw = centered.mul_(alpha)
        draw = torch.where(falling, draw * ctx.slope, draw)
        dto = row_reduce(pattern, draw, "sum")
        dof = row_reduce(pattern.transposed, draw.index_select(0, pattern.permutation), "sum")
        return dto, dof, dweights, None, None
