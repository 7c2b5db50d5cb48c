"""The normalization of `gebt.sparse.normalization` by Triton: rows summed in runs, no atomics, so bits are stable."""

from __future__ import annotations

import torch
from torch import Tensor

from gebt.sparse.backends import triton
from gebt.sparse.backends.base import PairEntries
from gebt.sparse.backends.triton_plan import Tile, runs_of, tile_of

# Pairs of a program.
PAIRS = 1024


def forward(entries: PairEntries, values: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of D^-1/2 (A + I) D^-1/2, [E], and the diagonal of D^-1/2, [N]: two passes over the entries.

    Args:
        entries: of the pairs.
        values: a of the pairs, [P].

    Returns:
        Both.
    """
    values, weights = values.contiguous(), values.new_empty(entries.col.numel())
    scale = _row_sums(entries, values).add_(1).rsqrt_()
    if weights.numel():
        runs, tile = runs_of(entries.crow), _tile(entries)
        tensors = (runs.begin, runs.owner, entries.col, entries.source, values, scale, weights)
        constants = {"CUT": runs.parts > 0, "ROWS": tile.rows, "ENTRIES": tile.entries, "num_warps": tile.warps}
        programs = -(-runs.total // tile.rows)
        triton.launch("normalized_entries", programs, (*tensors, runs.total, values.numel()), values, constants)
    return weights, scale


def backward(entries: PairEntries, values: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the values, [P], of `forward`'s entries: a pass over the pairs, the entries, the pairs.

    Args:
        entries: of the pairs.
        values: a of the pairs, [P].
        scale: what `forward` returned, [N].
        grad: of the entries, [E].

    Returns:
        The gradient.
    """
    values, grad, pairs = values.contiguous(), grad.contiguous(), values.numel()
    direct, dvalues = torch.empty_like(values), torch.empty_like(values)
    if not pairs:
        return dvalues
    programs, constants = -(-pairs // PAIRS), {"PAIRS": PAIRS, "num_warps": 4}
    triton.launch("pair_sums", programs, (entries.places, grad, direct, pairs), values, constants)
    dscale = _row_sums(entries, values, direct, scale)
    by_loop = grad.index_select(0, entries.places[2 * pairs :])
    ddegree = degree_gradient(dscale, by_loop, scale)
    tensors = (entries.u.contiguous(), entries.v.contiguous(), direct, scale, ddegree, dvalues)
    triton.launch("pair_gradients", programs, (*tensors, pairs), values, constants)
    return dvalues


def degree_gradient(dscale: Tensor, by_loop: Tensor, scale: Tensor) -> Tensor:
    """The gradient of the degrees d.

    Args:
        dscale: the gradient of d^-1/2 through the entries of the pairs, [N].
        by_loop: the gradient of the entries of the self-loops, [N].
        scale: d^-1/2, [N].

    Returns:
        [N].
    """
    return (dscale + 2 * by_loop * scale) * scale**3 * -0.5


def _row_sums(
    entries: PairEntries, values: Tensor, direct: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """The sum of the values of every node's pairs; given `direct` and `scale`, times those of pair and neighbor."""
    runs, sums = runs_of(entries.crow), values.new_empty(entries.crow.numel() - 1)
    if not sums.numel():
        return sums
    tile, parts = _tile(entries), sums
    if runs.parts:
        parts = sums.new_empty(runs.parts)
    # Without weights their addresses are not read.
    weights = (values if tensor is None else tensor for tensor in (direct, scale))
    tensors = (runs.begin, runs.owner, runs.part, entries.col, entries.source, values, *weights, sums, parts)
    constants = {
        "CUT": runs.parts > 0, "WEIGHTED": direct is not None,
        "ROWS": tile.rows, "ENTRIES": tile.entries, "num_warps": tile.warps,
    }  # fmt: skip
    triton.launch("row_sums", -(-runs.total // tile.rows), (*tensors, runs.total, values.numel()), values, constants)
    triton.join_parts(runs, parts, sums)
    return sums


def _tile(entries: PairEntries) -> Tile:
    return tile_of(runs_of(entries.crow).total, entries.col.numel(), 1, torch.float32, 1)
