"""Sums and maxima over the entries of each row of a pattern, as a registered torch op without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gebt.sparse.backends import triton, triton_reduction
from gebt.sparse.pattern import Pattern


def row_reduce(pattern: Pattern, entries: Tensor, reduce: str) -> Tensor:
    """The sum or the highest of each row's entries; no gradient.

    On CUDA with Triton rows are reduced in runs: torch's own op walks along a row entry by entry.

    Args:
        pattern: R x C, E entries.
        entries: [E, H].
        reduce: "sum" or "max".

    Returns:
        [R, H]; 0, or -inf as the highest, for a row without entries.

    Raises:
        ValueError: for another `reduce`.

    Example:
        >>> pattern, _ = Pattern.from_entries(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), (3, 2))
        >>> row_reduce(pattern, torch.tensor([[1.0], [2.0], [4.0]]), "sum").tolist()
        [[3.0], [4.0], [0.0]]
    """
    if reduce not in ("sum", "max"):
        raise ValueError(f"reduce (got {reduce!r}), expected 'sum' or 'max'")
    return _row_reduce(pattern.crow, entries, reduce)


@torch.library.custom_op("gebt::row_reduce", mutates_args=())
def _row_reduce(crow: Tensor, entries: Tensor, reduce: str) -> Tensor:
    if triton.takes(entries):
        return triton_reduction.row_reduce(crow, entries, highest=reduce == "max")
    return torch.segment_reduce(entries, reduce, offsets=crow, axis=0, unsafe=True, initial=None)


@_row_reduce.register_fake
def _(crow: Tensor, entries: Tensor, reduce: str) -> Tensor:
    return entries.new_empty(crow.shape[0] - 1, *entries.shape[1:])
