"""Where the entries of a sparse matrix are: CSR, its transpose, and the road between the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from gebt.sparse.memory import check_room

INT32_LIMIT = 2**31 - 1


def index_dtype(*sizes: int) -> torch.dtype:
    """int32 while every size fits (half the memory of int64), int64 beyond."""
    return torch.int32 if max(sizes, default=0) <= INT32_LIMIT else torch.int64


@dataclass(frozen=True, eq=False)
class Pattern:
    """The positions of the entries of an R x C sparse matrix, in row-major order.

    `crow` [R + 1] holds where each row starts, `col` [E] each entry's column. `transposed` is built once
    and kept: every gradient to the dense side of a product runs through it.
    """

    crow: Tensor
    col: Tensor
    shape: tuple[int, int]

    @staticmethod
    def from_entries(row: Tensor, col: Tensor, shape: tuple[int, int]) -> tuple[Pattern, Tensor]:
        """Builds the pattern of entries given in any order.

        `row`, `col` [E]: integer positions, each pair at most once. Returns the pattern and `order` [E] such
        that `values[order]` are the values in the pattern's order. Raises `ValueError` for a position
        outside `shape` or given twice.
        """
        rows, cols = shape
        if row.dim() != 1 or row.shape != col.shape:
            got = f"{tuple(row.shape)} and {tuple(col.shape)}"
            raise ValueError(f"rows and columns of entries (got shapes {got}), expected one (E,)")
        for name, index, size in (("row", row, rows), ("column", col, cols)):
            if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
                bad = int(index.min()) if int(index.min()) < 0 else int(index.max())
                raise ValueError(f"{name} index (got {bad}), expected 0 to {size - 1}")
        # Keys before and after the sort, the order, and room for the sort itself: eight bytes each.
        check_room(f"pattern of {rows} x {cols} with {row.numel()} entries", 40 * row.numel(), row.device)
        key, order = torch.sort(row.long() * cols + col.long())
        if key.numel() > 1 and bool((key[1:] == key[:-1]).any()):
            raise ValueError("entries of a pattern (got the same position twice), expected each at most once; coalesce")
        dtype = index_dtype(row.numel(), rows, cols)
        crow = torch.zeros(rows + 1, dtype=torch.long, device=row.device)
        torch.cumsum(torch.bincount(row.long(), minlength=rows), 0, out=crow[1:])
        return Pattern(crow.to(dtype), col[order].to(dtype), shape), order

    @property
    def nnz(self) -> int:
        """Number of entries E."""
        return self.col.numel()

    @property
    def density(self) -> float:
        """Entries / (R * C); 0 for an empty shape."""
        return self.nnz / max(1, self.shape[0] * self.shape[1])

    @cached_property
    def row(self) -> Tensor:
        """Row of each entry [E]."""
        counts = (self.crow[1:] - self.crow[:-1]).long()
        rows = torch.arange(self.shape[0], dtype=self.col.dtype, device=self.col.device)
        return rows.repeat_interleave(counts)

    @cached_property
    def _by_column(self) -> tuple[Pattern, Tensor]:
        turned, order = Pattern.from_entries(self.col, self.row, (self.shape[1], self.shape[0]))
        return turned, order.to(self.col.dtype)

    @property
    def transposed(self) -> Pattern:
        """The pattern of the transpose, C x R."""
        return self if self.__dict__.get("is_mirrored") else self._by_column[0]

    @cached_property
    def permutation(self) -> Tensor:
        """[E]: `values[permutation]` are the values in the order of `transposed`."""
        return self._by_column[1]

    def mirrored(self) -> Pattern:
        """This pattern, which the caller knows to be its own transpose."""
        # A flag and not a reference: a cycle would keep every batch's pattern until the next garbage collection.
        self.__dict__["is_mirrored"] = True
        return self

    def rows(self, chosen: Tensor) -> tuple[Pattern, Tensor]:
        """The pattern of these rows alone, in this order, and which entries of this pattern are its entries."""
        starts = self.crow[chosen]
        counts = self.crow[chosen + 1] - starts
        ends = torch.cumsum(counts, 0, dtype=counts.dtype)
        crow = torch.cat((ends.new_zeros(1), ends))
        entries = torch.arange(int(crow[-1]), dtype=crow.dtype, device=crow.device)
        entries += (starts - crow[:-1]).repeat_interleave(counts)
        return Pattern(crow, self.col[entries], (chosen.numel(), self.shape[1])), entries

    def keep(self, kept: Tensor) -> Pattern:
        """The pattern with only the entries where `kept` [E] is True; the order is preserved."""
        ends = torch.zeros(self.nnz + 1, dtype=torch.long, device=self.col.device)
        torch.cumsum(kept, 0, out=ends[1:])
        return Pattern(ends[self.crow.long()].to(self.crow.dtype), self.col[kept], self.shape)

    def to(self, device: torch.device | str) -> Pattern:
        """The same pattern on another device."""
        return Pattern(self.crow.to(device), self.col.to(device), self.shape)


@dataclass(frozen=True, eq=False)
class Diagonal(Pattern):
    """The pattern of the block-diagonal matrix of `blocks`; its transpose is put together from theirs."""

    blocks: tuple[Pattern, ...]

    @staticmethod
    def of(blocks: Sequence[Pattern]) -> Diagonal:
        """One block below and to the right of the other; at least one."""
        return Diagonal(*_along_the_diagonal(blocks), tuple(blocks))

    @cached_property
    def _by_column(self) -> tuple[Pattern, Tensor]:
        starts = accumulate((block.nnz for block in self.blocks), initial=0)
        orders = [block.permutation.to(self.col.dtype) + start for block, start in zip(self.blocks, starts)]  # noqa: B905
        return Pattern(*_along_the_diagonal([block.transposed for block in self.blocks])), torch.cat(orders)


def _along_the_diagonal(blocks: Sequence[Pattern]) -> tuple[Tensor, Tensor, tuple[int, int]]:
    rows, cols, entries = (sum(sizes) for sizes in zip(*((*b.shape, b.nnz) for b in blocks), strict=True))
    dtype = index_dtype(rows, cols, entries)
    crow, col = [torch.zeros(1, dtype=dtype, device=blocks[0].col.device)], []
    column = entry = 0
    for block in blocks:
        crow.append(block.crow[1:].to(dtype) + entry)
        col.append(block.col.to(dtype) + column)
        column, entry = column + block.shape[1], entry + block.nnz
    return torch.cat(crow), torch.cat(col), (rows, cols)


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """A constant R x C sparse matrix: a pattern and one value an entry (features, or a fixed adjacency)."""

    pattern: Pattern
    values: Tensor

    @staticmethod
    def from_dense(dense: Tensor) -> SparseMatrix:
        """The non-zero entries of a dense [R, C] tensor."""
        row, col = dense.nonzero(as_tuple=True)
        pattern, order = Pattern.from_entries(row, col, (dense.shape[0], dense.shape[1]))
        return SparseMatrix(pattern, dense[row, col][order])

    @property
    def shape(self) -> tuple[int, int]:
        """(R, C)."""
        return self.pattern.shape

    @cached_property
    def transposed_values(self) -> Tensor:
        """The values in the order of `pattern.transposed`, gathered once."""
        return self.values.index_select(0, self.pattern.permutation)

    def rows(self, chosen: Tensor) -> SparseMatrix:
        """The matrix of these rows alone, in this order."""
        pattern, entries = self.pattern.rows(chosen)
        return SparseMatrix(pattern, self.values[entries])

    def columns(self, kept: Tensor) -> SparseMatrix:
        """The matrix of the columns `kept` (ascending indices) alone."""
        number = torch.full((self.shape[1],), -1, dtype=self.pattern.col.dtype, device=kept.device)
        number[kept] = torch.arange(kept.numel(), dtype=number.dtype, device=kept.device)
        col = number[self.pattern.col.long()]
        stays = col >= 0
        smaller = self.pattern.keep(stays)
        return SparseMatrix(Pattern(smaller.crow, col[stays], (self.shape[0], kept.numel())), self.values[stays])

    def to_dense(self) -> Tensor:
        """The matrix as a dense [R, C] tensor (small matrices and tests only)."""
        dense = torch.zeros(self.shape, dtype=self.values.dtype, device=self.values.device)
        dense[self.pattern.row.long(), self.pattern.col.long()] = self.values
        return dense

    def to(self, device: torch.device | str) -> SparseMatrix:
        """The same matrix on another device."""
        return SparseMatrix(self.pattern.to(device), self.values.to(device))
