"""The Triton programs themselves; imported only where Triton is.

A program owns ROWS rows of one head and walks along their entries, ENTRIES of each row at a time and COLUMNS features
of each: so many loads are under way at once, and no two programs write to one place. All offsets are int64. Where a row
has ended the masked loads give zeros, which add nothing.
"""

# ruff: noqa: N803 - Triton's way to write constants. It also reads the annotations: they must not become strings.
import triton
import triton.language as tl


@triton.jit
def sums(
    crow, col, values, x, out, own, dots, permutation, rows, heads, width, blocks,
    DOTS: tl.constexpr, PERMUTED: tl.constexpr, KIND: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[row, head, block] = sum over the row's entries e of values[e, head] * x[col[e], head, block].

    DOTS: also dots[place of e, head] = <own[row, head], x[col[e], head]>; then one block holds the whole width. The
    place is permutation[e] where PERMUTED, else e. Sums are of type KIND.
    """
    program = tl.program_id(0).to(tl.int64)
    head, block = program // blocks % heads, program % blocks
    row = program // blocks // heads * ROWS + tl.arange(0, ROWS)
    exists = row < rows
    first = tl.load(crow + row, mask=exists, other=0).to(tl.int64)
    last = tl.load(crow + row + 1, mask=exists, other=0).to(tl.int64)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    here = (row * heads + head)[:, None] * width + column[None, :]
    stored = exists[:, None] & inside[None, :]
    if DOTS:
        mine = tl.load(own + here, mask=stored, other=0.0).to(KIND)
    total = tl.zeros((ROWS, ENTRIES, COLUMNS), dtype=KIND)
    for start in range(0, tl.max(last - first, axis=0), ENTRIES):
        entry = first[:, None] + start + tl.arange(0, ENTRIES)[None, :]
        given = entry < last[:, None]
        other = tl.load(col + entry, mask=given, other=0).to(tl.int64) * heads + head
        there = other[:, :, None] * width + column[None, None, :]
        tile = tl.load(x + there, mask=given[:, :, None] & inside[None, None, :], other=0.0).to(KIND)
        value = tl.load(values + entry * heads + head, mask=given, other=0.0).to(KIND)
        total += value[:, :, None] * tile
        if DOTS:
            place = entry
            if PERMUTED:
                place = tl.load(permutation + entry, mask=given, other=0).to(tl.int64)
            dot = tl.sum(mine[:, None, :] * tile, axis=2)
            tl.store(dots + place * heads + head, dot.to(dots.dtype.element_ty), mask=given)
    tl.store(out + here, tl.sum(total, axis=1).to(out.dtype.element_ty), mask=stored)


@triton.jit
def products(
    crow, col, left, right, dots, rows, heads, width,
    KIND: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """dots[e, head] = <left[row, head], right[col[e], head]> for the entries e of each row."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    row = program // heads * ROWS + tl.arange(0, ROWS)
    exists = row < rows
    first = tl.load(crow + row, mask=exists, other=0).to(tl.int64)
    last = tl.load(crow + row + 1, mask=exists, other=0).to(tl.int64)
    here = (row * heads + head) * width
    for start in range(0, tl.max(last - first, axis=0), ENTRIES):
        entry = first[:, None] + start + tl.arange(0, ENTRIES)[None, :]
        given = entry < last[:, None]
        there = (tl.load(col + entry, mask=given, other=0).to(tl.int64) * heads + head) * width
        total = tl.zeros((ROWS, ENTRIES, COLUMNS), dtype=KIND)
        for begin in range(0, width, COLUMNS):
            column = begin + tl.arange(0, COLUMNS)
            inside = column < width
            mine = tl.load(left + here[:, None] + column[None, :], mask=exists[:, None] & inside[None, :], other=0.0)
            place = there[:, :, None] + column[None, None, :]
            tile = tl.load(right + place, mask=given[:, :, None] & inside[None, None, :], other=0.0)
            total += mine.to(KIND)[:, None, :] * tile.to(KIND)
        tl.store(dots + entry * heads + head, tl.sum(total, axis=2).to(dots.dtype.element_ty), mask=given)
