"""The Triton programs themselves; imported only where Triton is."""

# Triton reads the annotations of these functions, so they must not become strings.
import triton
import triton.language as tl


@triton.jit
def sums(crow, col, values, x, out, width, BLOCK: tl.constexpr):  # noqa: N803 - Triton's way to write constants
    """out[row, block] = sum over the row's entries of value * x[column, block]; sums in float32 or wider."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    kind: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((BLOCK,), dtype=kind)
    for entry in range(tl.load(crow + row), tl.load(crow + row + 1)):
        place = tl.load(col + entry).to(tl.int64) * width + columns
        total += tl.load(values + entry).to(kind) * tl.load(x + place, mask=inside, other=0.0).to(kind)
    tl.store(out + row * width + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def dots(crow, col, left, right, out, width, BLOCK: tl.constexpr):  # noqa: N803 - Triton's way to write constants
    """out[entry] = <left[row], right[column]>, block by block of columns; sums in float32 or wider."""
    row = tl.program_id(0).to(tl.int64)
    kind: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    for entry in range(tl.load(crow + row), tl.load(crow + row + 1)):
        column = tl.load(col + entry).to(tl.int64)
        total = tl.zeros((BLOCK,), dtype=kind)
        for start in range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            mine = tl.load(left + row * width + columns, mask=columns < width, other=0.0).to(kind)
            other = tl.load(right + column * width + columns, mask=columns < width, other=0.0).to(kind)
            total += mine * other
        tl.store(out + entry, tl.sum(total, axis=0).to(out.dtype.element_ty))
