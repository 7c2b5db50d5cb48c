"""Symmetric normalization of the values of an undirected graph, as a registered torch op with a closed gradient.

One value a pair of nodes, w = D^-1/2 (A + I) D^-1/2 at every entry. On CUDA with Triton a few passes over the entries
do it, without atomics; elsewhere torch's own ops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gebt.sparse.backends import triton, triton_normalization
from gebt.sparse.backends.base import PairEntries
from gebt.sparse.backends.triton_normalization import degree_gradient
from gebt.sparse.precision import widened


def normalize(entries: PairEntries, values: Tensor) -> Tensor:
    """w_uv = a_uv / sqrt(d_u d_v), w_uu = 1 / d_u, with d_u = 1 + sum of a over the pairs of u.

    Forward and gradient move 48 and 76 bytes a pair on CUDA with Triton, beside what is of the nodes (float32 values,
    int32 indices, int64 ends).

    Args:
        entries: of the graph.
        values: a, [P].

    Returns:
        w, [E], equal at the two entries of a pair, float32 for values of 16 bits; its gradient goes to `values`, once.

    Raises:
        RuntimeError: in a backward pass with create_graph=True.
    """
    return _normalize(*entries, widened(values))[0]


@torch.library.custom_op("gebt::normalize", mutates_args=())
def _normalize(
    crow: Tensor, col: Tensor, source: Tensor, places: Tensor, u: Tensor, v: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    entries = PairEntries(crow, col, source, places, u, v)
    if _by_triton(values):
        return triton_normalization.forward(entries, values)
    scale = values.new_zeros(crow.numel() - 1).index_add_(0, u, values).index_add_(0, v, values).add_(1).rsqrt_()
    pair = values * scale.index_select(0, u) * scale.index_select(0, v)
    return torch.cat((pair, scale * scale)).index_select(0, source), scale


@_normalize.register_fake
def _(
    crow: Tensor, col: Tensor, source: Tensor, places: Tensor, u: Tensor, v: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    return values.new_empty(col.shape[0]), values.new_empty(crow.shape[0] - 1)


@torch.library.custom_op("gebt::normalize_gradient", mutates_args=())
def _normalize_gradient(
    crow: Tensor, col: Tensor, source: Tensor, places: Tensor, u: Tensor, v: Tensor, values: Tensor, scale: Tensor,
    grad: Tensor,
) -> Tensor:  # fmt: skip
    entries = PairEntries(crow, col, source, places, u, v)
    if _by_triton(values):
        return triton_normalization.backward(entries, values, scale, grad)
    both, by_loop = grad.index_select(0, places).split((2 * u.numel(), scale.numel()))
    pair = both.view(-1, 2).sum(1)
    su, sv = scale.index_select(0, u), scale.index_select(0, v)
    direct = pair * values
    dscale = torch.zeros_like(scale).index_add_(0, u, direct * sv).index_add_(0, v, direct * su)
    ddegree = degree_gradient(dscale, by_loop, scale)
    return pair * su * sv + ddegree.index_select(0, u) + ddegree.index_select(0, v)


@_normalize_gradient.register_fake
def _(
    crow: Tensor, col: Tensor, source: Tensor, places: Tensor, u: Tensor, v: Tensor, values: Tensor, scale: Tensor,
    grad: Tensor,
) -> Tensor:  # fmt: skip
    return values.new_empty(values.shape)


def _context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "normalize (got create_graph=True), expected first gradients only: second ones are not there"
        )
    return *(None,) * len(PairEntries._fields), _normalize_gradient(*ctx.saved_tensors, grad)


_normalize.register_autograd(_backward, setup_context=_context)


def _by_triton(values: Tensor) -> bool:
    return values.dtype in (torch.float32, torch.float64) and triton.takes(values)
