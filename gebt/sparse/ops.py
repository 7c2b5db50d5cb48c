"""Sparse products as registered torch ops: exact gradients, honest flops, never an E x d tensor.

Notation: A is an R x C sparse matrix with E entries given by a `Pattern` and `values` [E]; X is dense. With H heads
the values are [E, H] and X is [C, H, d]: H matrices of one pattern, each with its own X (attention, or many tickets at
once). Which engine multiplies is settled in `gebt.sparse.backends`; its name travels with the op to the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gebt.sparse.backends import BACKENDS, Csr, Product, engine
from gebt.sparse.pattern import Pattern, SparseMatrix
from gebt.sparse.precision import autocasted


@torch.library.custom_op("gebt::spmm", mutates_args=())
def _spmm(
    crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, perm: Tensor, values: Tensor, tvalues: Tensor, x: Tensor,
    backend: str,
) -> Tensor:  # fmt: skip
    return BACKENDS[backend].spmm(Csr(crow, col), values, x)


@_spmm.register_fake
def _(
    crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, perm: Tensor, values: Tensor, tvalues: Tensor, x: Tensor,
    backend: str,
) -> Tensor:  # fmt: skip
    return x.new_empty(crow.shape[0] - 1, *x.shape[1:])


@torch.library.custom_op("gebt::spmm_gradients", mutates_args=())
def _spmm_gradients(
    crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, perm: Tensor, tvalues: Tensor, x: Tensor, grad: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return BACKENDS[backend].gradients(Csr(crow, col), Csr(tcrow, tcol), perm, tvalues, x, grad)


@_spmm_gradients.register_fake
def _(
    crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, perm: Tensor, tvalues: Tensor, x: Tensor, grad: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return x.new_empty(x.shape), tvalues.new_empty(tvalues.shape)


@torch.library.custom_op("gebt::sddmm", mutates_args=())
def _sddmm(
    crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, perm: Tensor, a: Tensor, b: Tensor, backend: str
) -> Tensor:
    return BACKENDS[backend].sddmm(Csr(crow, col), a, b)


@_sddmm.register_fake
def _(
    crow: Tensor, col: Tensor, tcrow: Tensor, tcol: Tensor, perm: Tensor, a: Tensor, b: Tensor, backend: str
) -> Tensor:
    return a.new_empty(col.shape[0], *a.shape[1:-1])


def _spmm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, x, ctx.backend = inputs
    # Only what a wanted gradient reads is kept alive: x for the values, the values for x.
    ctx.save_for_backward(*tensors, x if ctx.needs_input_grad[5] else None)


def _spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    crow, col, tcrow, tcol, perm, values, tvalues, x = ctx.saved_tensors
    _refuse_second_gradients("spmm")
    to_values, to_x = ctx.needs_input_grad[5], ctx.needs_input_grad[7]
    dx = dvalues = None
    if to_values and to_x:
        dx, dvalues = _spmm_gradients(crow, col, tcrow, tcol, perm, tvalues, x, grad, ctx.backend)
    elif to_values:
        dvalues = _sddmm(crow, col, tcrow, tcol, perm, grad, x, ctx.backend)
    elif to_x:
        dx = _spmm(tcrow, tcol, crow, col, perm, tvalues, values, grad, ctx.backend)
    return None, None, None, None, None, dvalues, None, dx, None


def _sddmm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    crow, col, tcrow, tcol, perm, a, b = ctx.saved_tensors
    _refuse_second_gradients("sddmm")
    da = db = None
    if ctx.needs_input_grad[5]:
        da = _spmm(crow, col, crow, col, perm, grad, grad, b, ctx.backend)
    if ctx.needs_input_grad[6]:
        db = _spmm(tcrow, tcol, crow, col, perm, grad.index_select(0, perm), grad, a, ctx.backend)
    return None, None, None, None, None, da, db, None


def _refuse_second_gradients(op: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op} (got create_graph=True), expected first gradients only: second ones are not there")


_spmm.register_autograd(_spmm_backward, setup_context=_spmm_context)
_sddmm.register_autograd(_sddmm_backward, setup_context=_sddmm_context)


@register_flop_formula(torch.ops.gebt.spmm)
def spmm_flops(
    crow: Any, col: Any, tcrow: Any, tcol: Any, perm: Any, values: Any, tvalues: Any, x: Any, backend: str,
    out_shape: Any = None, **_: Any,
) -> int:  # fmt: skip
    """Flops of `spmm`: 2 E H d."""
    return 2 * col[0] * math.prod(x[1:])


@register_flop_formula(torch.ops.gebt.spmm_gradients)
def spmm_gradients_flops(
    crow: Any, col: Any, tcrow: Any, tcol: Any, perm: Any, tvalues: Any, x: Any, grad: Any, backend: str,
    out_shape: Any = None, **_: Any,
) -> int:  # fmt: skip
    """Flops of both gradients of `spmm`: 4 E H d."""
    return 4 * col[0] * math.prod(x[1:])


@register_flop_formula(torch.ops.gebt.sddmm)
def sddmm_flops(
    crow: Any, col: Any, tcrow: Any, tcol: Any, perm: Any, a: Any, b: Any, backend: str,
    out_shape: Any = None, **_: Any,
) -> int:  # fmt: skip
    """Flops of `sddmm`: 2 E H d."""
    return 2 * col[0] * math.prod(a[1:])


def spmm(
    pattern: Pattern, values: Tensor, x: Tensor, tvalues: Tensor | None = None, *, symmetric: bool = False
) -> Tensor:
    """Sparse times dense: y = A X, with gradients to X and to the values of A.

    y_r = sum over entries e = (r, c) of values_e * x_c; dX = A^T dY through the stored transpose;
    dvalues_e = <dY_r, X_c>, computed entry by entry, with dX in one pass where the engine can.

    `values` [E] and `x` [C, d], or with heads [E, H] and [C, H, d], of one floating dtype. `tvalues` are the values in
    the order of `pattern.transposed` when the caller already has them (constant A); they are gathered here otherwise.
    `symmetric` says that A = A^T, values included: nothing is gathered, and the gradient of an entry may stand at
    its mirror entry. Returns [R, d] or [R, H, d]. Raises `ValueError` when sizes or dtypes do not fit, and
    `BackendError` when the engine in use does not take these tensors.
    """
    _check_dense("x", x, pattern.shape[1], values.dtype, pattern)
    if values.shape != (pattern.nnz, *x.shape[1:-1]):
        expected = (pattern.nnz, *x.shape[1:-1])
        raise ValueError(f"values (got shape {tuple(values.shape)}), expected {expected}, one for each entry")
    _check_device("values", values, pattern)
    own, grads = Csr(pattern.crow, pattern.col), torch.is_grad_enabled()
    to_values, to_x = grads and values.requires_grad, grads and x.requires_grad
    if symmetric and pattern.shape[0] != pattern.shape[1]:
        raise ValueError(f"pattern (got {pattern.shape}), expected a square one; leave symmetric=False")
    # Without a gradient to x no transpose is read; that of a symmetric A is A itself, rows, values and all.
    transposed, permutation = own, own.col[:0]
    if not to_x or symmetric:
        tvalues = values
    else:
        transposed, permutation = Csr(pattern.transposed.crow, pattern.transposed.col), pattern.permutation
        if tvalues is None:
            tvalues = values.detach().index_select(0, permutation)
        if (tvalues.shape, tvalues.dtype) != (values.shape, values.dtype):
            got = f"{tuple(tvalues.shape)} of {tvalues.dtype}"
            raise ValueError(f"tvalues (got {got}), expected {tuple(values.shape)} of {values.dtype} as the values")
        _check_device("tvalues", tvalues, pattern)
    backend = engine(Product(own, transposed, permutation, x, to_values, to_x)).name
    return _spmm(*own, *transposed, permutation, values, tvalues.detach(), x, backend)


def mixed_spmm(
    pattern: Pattern, values: Tensor, x: Tensor, tvalues: Tensor | None = None, *, symmetric: bool = False
) -> Tensor:
    """`spmm` as torch's autocast would call it: in its type where it is on, else in the type of x.

    Sums are float32. A 16-bit x takes values of any type. On the CPU, where no engine multiplies 16 bits, x is
    converted to float32, values are not rounded, and the result alone is. Arguments and errors as `spmm`.
    """
    x = autocasted(x)
    if x.itemsize > 2:
        return spmm(pattern, values, x, tvalues, symmetric=symmetric)
    work = torch.float32 if x.device.type == "cpu" else x.dtype
    tvalues = None if tvalues is None else tvalues.to(work)
    return spmm(pattern, values.to(work), x.to(work), tvalues, symmetric=symmetric).to(x.dtype)


def sddmm(pattern: Pattern, a: Tensor, b: Tensor) -> Tensor:
    """Sampled dense-dense product: out_e = <a_r, b_c> for each entry e = (r, c) of the pattern.

    `a` [R, d], `b` [C, d], or with heads [R, H, d] and [C, H, d]. Returns [E] or [E, H]; gradients go to both sides.
    Raises `ValueError` as `spmm`.
    """
    _check_dense("a", a, pattern.shape[0], a.dtype, pattern)
    _check_dense("b", b, pattern.shape[1], a.dtype, pattern)
    if a.shape[1:] != b.shape[1:]:
        got = f"{tuple(a.shape[1:])} and {tuple(b.shape[1:])}"
        raise ValueError(f"a, b (got rows of {got}), expected equal widths")
    own = Csr(pattern.crow, pattern.col)
    transposed, permutation = own, own.col[:0]
    if torch.is_grad_enabled() and b.requires_grad:
        transposed, permutation = Csr(pattern.transposed.crow, pattern.transposed.col), pattern.permutation
    backend = engine(Product(own, own, own.col[:0], b, to_values=True, to_x=False)).name
    return _sddmm(*own, *transposed, permutation, a, b, backend)


def matmul(matrix: SparseMatrix, x: Tensor) -> Tensor:
    """y = A X for a constant sparse matrix A; the gradient goes to X alone."""
    tvalues = matrix.transposed_values if torch.is_grad_enabled() and x.requires_grad else None
    return mixed_spmm(matrix.pattern, matrix.values, x, tvalues)


def _check_dense(name: str, x: Tensor, rows: int, dtype: torch.dtype, pattern: Pattern) -> None:
    if x.dim() not in (2, 3) or x.shape[0] != rows:
        raise ValueError(f"{name} (got shape {tuple(x.shape)}), expected a matrix of {rows} rows")
    if x.dtype != dtype:
        raise ValueError(f"{name} (got {x.dtype}), expected {dtype} as the values have")
    _check_device(name, x, pattern)


def _check_device(name: str, tensor: Tensor, pattern: Pattern) -> None:
    if tensor.device != pattern.col.device:
        raise ValueError(
            f"{name} (got a tensor on {tensor.device}), expected {pattern.col.device} as the pattern; move it"
        )
