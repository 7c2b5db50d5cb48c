"""Sparse products as registered torch ops: exact gradients, honest flops, never an E x d tensor.

Notation: A is an R x C sparse matrix with E entries given by a `Pattern` and `values` [E]; X is dense.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gebt.sparse.pattern import Pattern, SparseMatrix


@cache
def _take_beta_warning() -> None:
    # torch says once a process that its CSR tensors are beta; users of this op can do nothing about it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.zeros(2, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0))


def _csr(crow: Tensor, col: Tensor, values: Tensor, columns: int) -> Tensor:
    _take_beta_warning()
    # Patterns are checked when they are built, so the invariants hold and need not be checked at each product.
    return torch.sparse_csr_tensor(crow, col, values, (crow.numel() - 1, columns), check_invariants=False)


@torch.library.custom_op("gebt::spmm", mutates_args=())
def _spmm(crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, values: Tensor, tvalues: Tensor, x: Tensor) -> Tensor:
    if values.numel() == 0 or x.numel() == 0:
        return x.new_zeros(crow.numel() - 1, x.shape[1])
    return torch.mm(_csr(crow, col, values, x.shape[0]), x.contiguous())


@_spmm.register_fake
def _(crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, values: Tensor, tvalues: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(crow.shape[0] - 1, x.shape[1])


@torch.library.custom_op("gebt::sddmm", mutates_args=())
def _sddmm(crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, perm: Tensor, a: Tensor, b: Tensor) -> Tensor:
    if col.numel() == 0 or a.shape[1] == 0:
        return a.new_zeros(col.numel())
    zero = _csr(crow, col, a.new_zeros(col.numel()), b.shape[0])
    # A row-major a and a column-major b' are the layout the kernel reads without a copy of its own.
    return torch.sparse.sampled_addmm(zero, a.contiguous(), b.contiguous().t(), beta=0).values().clone()


@_sddmm.register_fake
def _(crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, perm: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(col.shape[0])


def _spmm_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    crow, col, tcrow, tcol, values, tvalues, x = inputs
    # Only what a wanted gradient reads is kept alive: x for the values, the values for x.
    ctx.save_for_backward(crow, col, tcrow, tcol, values, tvalues, x if ctx.needs_input_grad[4] else None)


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    crow, col, tcrow, tcol, values, tvalues, x = ctx.saved_tensors
    if torch.is_grad_enabled():
        raise RuntimeError("spmm (got create_graph=True), expected first gradients only: second ones are not there")
    dx = dvalues = None
    if ctx.needs_input_grad[4]:
        # No permutation is passed: only the gradient of this product would read it, and that is refused above.
        dvalues = _sddmm(crow, col, tcrow, tcol, col[:0], grad, x)
    if ctx.needs_input_grad[6]:
        dx = _spmm(tcrow, tcol, crow, col, tvalues, values, grad)
    return None, None, None, None, dvalues, None, dx


def _sddmm_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    crow, col, tcrow, tcol, perm, a, b = ctx.saved_tensors
    da = db = None
    tgrad = grad.index_select(0, perm)
    if ctx.needs_input_grad[5]:
        da = _spmm(crow, col, tcrow, tcol, grad, tgrad, b)
    if ctx.needs_input_grad[6]:
        db = _spmm(tcrow, tcol, crow, col, tgrad, grad, a)
    return None, None, None, None, None, da, db


_spmm.register_autograd(_spmm_backward, setup_context=_spmm_context)
_sddmm.register_autograd(_sddmm_backward, setup_context=_sddmm_context)


@register_flop_formula(torch.ops.gebt.spmm)
def spmm_flops(
    crow: Any, col: Any, tcrow: Any, tcol: Any, values: Any, tvalues: Any, x: Any, out_shape: Any = None, **_: Any
) -> int:
    """Flops of `spmm`: 2 E d."""
    return 2 * col[0] * x[1]


@register_flop_formula(torch.ops.gebt.sddmm)
def sddmm_flops(
    crow: Any, col: Any, tcrow: Any, tcol: Any, perm: Any, a: Any, b: Any, out_shape: Any = None, **_: Any
) -> int:
    """Flops of `sddmm`: 2 E d."""
    return 2 * col[0] * a[1]


def spmm(pattern: Pattern, values: Tensor, x: Tensor, tvalues: Tensor | None = None) -> Tensor:
    """Sparse times dense: y = A X, with gradients to X and to the values of A.

    y_r = sum over entries e = (r, c) of values_e * x_c; dX = A^T dY through the stored transpose;
    dvalues_e = <dY_r, X_c>, computed entry by entry (`sddmm`).

    `values` [E], `x` [C, d], both of one floating dtype. `tvalues` [E] are the values in the order of
    `pattern.transposed` when the caller already has them (constant or symmetric A); they are gathered here
    otherwise. Returns [R, d]. Raises `ValueError` when sizes or dtypes do not fit.
    """
    _check_dense("x", x, pattern.shape[1], values.dtype)
    if values.shape != (pattern.nnz,):
        raise ValueError(f"values (got shape {tuple(values.shape)}), expected one for each of {pattern.nnz} entries")
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _spmm(pattern.crow, pattern.col, pattern.crow, pattern.col, values, values, x)
    turned = pattern.transposed
    if tvalues is not None and tvalues.shape != values.shape:
        raise ValueError(f"tvalues (got shape {tuple(tvalues.shape)}), expected {tuple(values.shape)}")
    if tvalues is None:
        tvalues = values.detach().index_select(0, pattern.permutation)
    return _spmm(pattern.crow, pattern.col, turned.crow, turned.col, values, tvalues.detach(), x)


def sddmm(pattern: Pattern, a: Tensor, b: Tensor) -> Tensor:
    """Sampled dense-dense product: out_e = <a_r, b_c> for each entry e = (r, c) of the pattern.

    `a` [R, d], `b` [C, d]. Returns [E]; gradients go to both sides. Raises `ValueError` as `spmm`.
    """
    _check_dense("a", a, pattern.shape[0], a.dtype)
    _check_dense("b", b, pattern.shape[1], a.dtype)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a, b (got {a.shape[1]} and {b.shape[1]} columns), expected equal widths")
    turned = pattern.transposed
    return _sddmm(pattern.crow, pattern.col, turned.crow, turned.col, pattern.permutation, a, b)


def matmul(matrix: SparseMatrix, x: Tensor) -> Tensor:
    """y = A X for a constant sparse matrix A; the gradient goes to X alone."""
    tvalues = matrix.transposed_values if torch.is_grad_enabled() and x.requires_grad else None
    return spmm(matrix.pattern, matrix.values, x, tvalues)


def _check_dense(name: str, x: Tensor, rows: int, dtype: torch.dtype) -> None:
    if x.dim() != 2 or x.shape[0] != rows:
        raise ValueError(f"{name} (got shape {tuple(x.shape)}), expected a matrix of {rows} rows")
    if x.dtype != dtype:
        raise ValueError(f"{name} (got {x.dtype}), expected {dtype} as the values have")
