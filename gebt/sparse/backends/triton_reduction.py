"""Sums and maxima over the entries of each row by Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from gebt.sparse.backends import triton
from gebt.sparse.backends.triton_plan import WIDEST_BLOCK, runs_of, tile_of


def row_reduce(crow: Tensor, entries: Tensor, *, highest: bool) -> Tensor:
    """The sum or the highest of each row's entries, long rows in runs; equal bits from call to call.

    Args:
        crow: where each row begins, [R + 1].
        entries: [E, H].
        highest: the maximum, else the sum.

    Returns:
        [R, H]; 0, or -inf as the highest, for a row without entries.
    """
    out, wide = entries.new_empty(crow.numel() - 1, entries.shape[1]), entries.shape[1]
    if not entries.numel():
        return out.fill_(-torch.inf if highest else 0.0)
    runs = runs_of(crow)
    tile = tile_of(runs.total, entries.shape[0], wide, entries.dtype, WIDEST_BLOCK)
    blocks = -(-wide // tile.columns)
    parts = out.new_empty(runs.parts, wide, dtype=triton.sum_type(entries)) if runs.parts else out
    tensors = (runs.begin, runs.owner, runs.part, entries.contiguous(), out, parts)
    constants = {
        "CUT": runs.parts > 0, "MAX": highest,
        "ROWS": tile.rows, "ENTRIES": tile.entries, "COLUMNS": tile.columns, "num_warps": tile.warps,
    }  # fmt: skip
    programs = -(-runs.total // tile.rows) * blocks
    triton.launch("reduced_rows", programs, (*tensors, runs.total, wide, blocks), entries, constants)
    triton.join_parts(runs, parts, out, highest=highest)
    return out
