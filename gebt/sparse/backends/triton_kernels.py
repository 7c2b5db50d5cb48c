"""The Triton programs of the products; imported only where Triton is.

A program owns ROWS runs of one head (see `triton_plan.Runs`) and walks along their entries, ENTRIES of each run at a
time and COLUMNS features of each: so many loads are under way at once, and no two programs write to one place. Offsets
into tensors are int64. Where a run has ended the masked loads give zeros, which add nothing.

Widths come in units of VECTOR numbers, a power of two that the compiler knows: so it sees that rows begin at multiples
of so many bytes, and loads as many at once, without a kernel for every width.
"""

# ruff: noqa: N803 - Triton's way to write constants. It also reads the annotations: they must not become strings.
import triton
import triton.language as tl


@triton.jit
def _run(begin, owner, program, heads, runs, CUT: tl.constexpr, ROWS: tl.constexpr):
    """Numbers of the runs of a program, whether each exists, its first entry, its length and its row."""
    run = program // heads * ROWS + tl.arange(0, ROWS)
    exists = run < runs
    first = tl.load(begin + run, mask=exists, other=0).to(tl.int64)
    length = (tl.load(begin + run + 1, mask=exists, other=0).to(tl.int64) - first).to(tl.int32)
    row = run
    if CUT:
        row = tl.load(owner + run, mask=exists, other=0).to(tl.int64)
    return run, exists, first, length, row


@triton.jit(do_not_specialize=["runs", "units", "own_units"])
def sums(
    begin, owner, part, col, values, x, out, parts, own, dots, permutation,
    runs, heads, blocks, units, own_units,
    CUT: tl.constexpr, DOTS: tl.constexpr, PERMUTED: tl.constexpr, PADDED: tl.constexpr, KIND: tl.constexpr,
    VECTOR: tl.constexpr, OWN_VECTOR: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[row, head, block] = sum over the row's entries e of values[e, head] * x[col[e], head, block].

    CUT: the sum of a run that is part of a row goes to parts[its number] instead. DOTS: also dots[place of e, head] =
    <own[row, head], x[col[e], head]>; then one block holds the whole width. The place is permutation[e] where PERMUTED,
    else e. Sums are of type KIND. Rows of x are units * VECTOR apart, those of all else own_units * OWN_VECTOR, the
    width; PADDED says that these differ.
    """
    program = tl.program_id(0).to(tl.int64)
    block, program = program % blocks, program // blocks
    head = program % heads
    run, exists, first, length, row = _run(begin, owner, program, heads, runs, CUT, ROWS)
    stride, width = units * VECTOR, own_units * OWN_VECTOR
    column = block.to(tl.int32) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    here = (row * heads + head)[:, None] * width + column[None, :]
    stored = exists[:, None] & inside[None, :]
    if DOTS:
        mine = tl.load(own + here, mask=stored, other=0.0).to(KIND)
    total = tl.zeros((ROWS, ENTRIES, COLUMNS), dtype=KIND)
    for start in tl.range(0, tl.max(length, axis=0), ENTRIES, num_stages=STAGES):
        number = start + tl.arange(0, ENTRIES)[None, :]
        given = number < length[:, None]
        entry = first[:, None] + number
        other = tl.load(col + entry, mask=given, other=0).to(tl.int64) * heads + head
        value = tl.load(values + entry * heads + head, mask=given, other=0.0).to(KIND)
        there = (other * stride)[:, :, None] + column[None, None, :]
        tile = tl.load(x + there, mask=given[:, :, None] & (column < stride)[None, None, :], other=0.0).to(KIND)
        if PADDED:
            # What a padded row has behind its numbers is not defined: it may be NaN.
            tile = tl.where(inside[None, None, :], tile, 0.0)
        total += value[:, :, None] * tile
        if DOTS:
            place = entry
            if PERMUTED:
                place = tl.load(permutation + entry, mask=given, other=0).to(tl.int64)
            dot = tl.sum(mine[:, None, :] * tile, axis=2)
            tl.store(dots + place * heads + head, dot.to(dots.dtype.element_ty), mask=given)
    summed = tl.sum(total, axis=1)
    if CUT:
        number = tl.load(part + run, mask=exists, other=-1).to(tl.int64)
        there = (number * heads + head)[:, None] * width + column[None, :]
        tl.store(parts + there, summed, mask=stored & (number >= 0)[:, None])
        stored = stored & (number < 0)[:, None]
    tl.store(out + here, summed.to(out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["wide"])
def join_parts(
    parts, first, cut, out, wide, blocks,
    MAX: tl.constexpr, KIND: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[cut[i]] = sum, or where MAX the highest, of parts[first[i]] to parts[first[i + 1]], `wide` numbers each."""
    program = tl.program_id(0).to(tl.int64)
    i = program // blocks
    column = program % blocks * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < wide
    neutral: tl.constexpr = float("-inf") if MAX else 0.0
    begin, end = tl.load(first + i).to(tl.int64), tl.load(first + i + 1).to(tl.int64)
    total = tl.full((PARTS, COLUMNS), neutral, dtype=KIND)
    for start in range(begin, end, PARTS):
        number = start + tl.arange(0, PARTS)
        there = number[:, None] * wide + column[None, :]
        tile = tl.load(parts + there, mask=(number < end)[:, None] & inside[None, :], other=neutral)
        total = tl.maximum(total, tile) if MAX else total + tile
    row = tl.load(cut + i).to(tl.int64)
    joined = tl.max(total, axis=0) if MAX else tl.sum(total, axis=0)
    tl.store(out + row * wide + column, joined.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["runs", "units", "own_units"])
def products(
    begin, owner, col, left, right, dots, runs, heads, units, own_units,
    CUT: tl.constexpr, KIND: tl.constexpr, VECTOR: tl.constexpr, OWN_VECTOR: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dots[e, head] = <left[row, head], right[col[e], head]> for the entries e of each row; rows as in `sums`."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    _, exists, first, length, row = _run(begin, owner, program, heads, runs, CUT, ROWS)
    stride, width = units * VECTOR, own_units * OWN_VECTOR
    here = (row * heads + head) * width
    for start in tl.range(0, tl.max(length, axis=0), ENTRIES, num_stages=STAGES):
        number = start + tl.arange(0, ENTRIES)[None, :]
        given = number < length[:, None]
        entry = first[:, None] + number
        there = (tl.load(col + entry, mask=given, other=0).to(tl.int64) * heads + head) * stride
        total = tl.zeros((ROWS, ENTRIES, COLUMNS), dtype=KIND)
        for origin in range(0, width, COLUMNS):
            column = origin + tl.arange(0, COLUMNS)
            inside = column < width
            mine = tl.load(left + here[:, None] + column[None, :], mask=exists[:, None] & inside[None, :], other=0.0)
            place = there[:, :, None] + column[None, None, :]
            tile = tl.load(right + place, mask=given[:, :, None] & (column < stride)[None, None, :], other=0.0)
            tile = tl.where(inside[None, None, :], tile.to(KIND), 0.0)
            total += mine.to(KIND)[:, None, :] * tile
        tl.store(dots + entry * heads + head, tl.sum(total, axis=2).to(dots.dtype.element_ty), mask=given)


@triton.jit(do_not_specialize=["runs", "wide"])
def reduced_rows(
    begin, owner, part, entries, out, parts, runs, wide, blocks,
    CUT: tl.constexpr, MAX: tl.constexpr, KIND: tl.constexpr,
    ROWS: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[row] = sum, or where MAX the highest, of the row's `entries`, `wide` numbers each; parts as in `sums`."""
    program = tl.program_id(0).to(tl.int64)
    run, exists, first, length, row = _run(begin, owner, program // blocks, 1, runs, CUT, ROWS)
    column = program % blocks * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < wide
    neutral: tl.constexpr = float("-inf") if MAX else 0.0
    total = tl.full((ROWS, ENTRIES, COLUMNS), neutral, dtype=KIND)
    for start in range(0, tl.max(length, axis=0), ENTRIES):
        number = start + tl.arange(0, ENTRIES)[None, :]
        there = (first[:, None] + number)[:, :, None] * wide + column[None, None, :]
        given = (number < length[:, None])[:, :, None] & inside[None, None, :]
        tile = tl.load(entries + there, mask=given, other=neutral).to(KIND)
        total = tl.maximum(total, tile) if MAX else total + tile
    joined = tl.max(total, axis=1) if MAX else tl.sum(total, axis=1)
    stored = exists[:, None] & inside[None, :]
    if CUT:
        number = tl.load(part + run, mask=exists, other=-1).to(tl.int64)
        tl.store(parts + number[:, None] * wide + column[None, :], joined, mask=stored & (number >= 0)[:, None])
        stored = stored & (number < 0)[:, None]
    tl.store(out + row[:, None] * wide + column[None, :], joined.to(out.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["runs", "pairs"])
def row_sums(
    begin, owner, part, col, source, values, direct, scale, out, parts, runs, pairs,
    CUT: tl.constexpr, WEIGHTED: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """out[row] = sum of values[source[e]] over the row's entries e of pairs, source[e] < pairs; parts as in `sums`.

    WEIGHTED: each value times direct[source[e]] * scale[col[e]].
    """
    run, exists, first, length, row = _run(begin, owner, tl.program_id(0).to(tl.int64), 1, runs, CUT, ROWS)
    total = tl.zeros((ROWS, ENTRIES), dtype=KIND)
    for start in range(0, tl.max(length, axis=0), ENTRIES):
        number = start + tl.arange(0, ENTRIES)[None, :]
        given = number < length[:, None]
        entry = first[:, None] + number
        pair = tl.load(source + entry, mask=given, other=0).to(tl.int64)
        given = given & (pair < pairs)
        term = tl.load(values + pair, mask=given, other=0.0)
        if WEIGHTED:
            other = tl.load(col + entry, mask=given, other=0).to(tl.int64)
            term *= tl.load(direct + pair, mask=given, other=0.0) * tl.load(scale + other, mask=given, other=0.0)
        total += term
    summed = tl.sum(total, axis=1)
    if CUT:
        number = tl.load(part + run, mask=exists, other=-1).to(tl.int64)
        tl.store(parts + number, summed, mask=exists & (number >= 0))
        exists = exists & (number < 0)
    tl.store(out + row, summed, mask=exists)


@triton.jit(do_not_specialize=["runs", "pairs"])
def normalized_entries(
    begin, owner, col, source, values, scale, weights, runs, pairs,
    CUT: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr, ENTRIES: tl.constexpr,
):  # fmt: skip
    """weights[e] = values[source[e]] * scale[row] * scale[col[e]], the value of a self-loop being 1."""
    _, exists, first, length, row = _run(begin, owner, tl.program_id(0).to(tl.int64), 1, runs, CUT, ROWS)
    own = tl.load(scale + row, mask=exists, other=0.0)
    for start in range(0, tl.max(length, axis=0), ENTRIES):
        number = start + tl.arange(0, ENTRIES)[None, :]
        given = number < length[:, None]
        entry = first[:, None] + number
        pair = tl.load(source + entry, mask=given, other=0).to(tl.int64)
        value = tl.load(values + pair, mask=given & (pair < pairs), other=1.0)
        other = tl.load(col + entry, mask=given, other=0).to(tl.int64)
        # Both scales first: then the two entries of a pair are equal bit for bit.
        both = own[:, None] * tl.load(scale + other, mask=given, other=0.0)
        tl.store(weights + entry, value * both, mask=given)


@triton.jit(do_not_specialize=["pairs"])
def pair_sums(places, entries, out, pairs, KIND: tl.constexpr, PAIRS: tl.constexpr):
    """out[p] = the sum of `entries` at both places of pair p."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    given = pair < pairs
    one = tl.load(places + 2 * pair, mask=given, other=0).to(tl.int64)
    other = tl.load(places + 2 * pair + 1, mask=given, other=0).to(tl.int64)
    total = tl.load(entries + one, mask=given, other=0.0) + tl.load(entries + other, mask=given, other=0.0)
    tl.store(out + pair, total, mask=given)


@triton.jit(do_not_specialize=["pairs"])
def pair_gradients(u, v, direct, scale, ddegree, out, pairs, KIND: tl.constexpr, PAIRS: tl.constexpr):
    """out[p] = direct[p] * scale[u[p]] * scale[v[p]] + ddegree[u[p]] + ddegree[v[p]]."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    given = pair < pairs
    one = tl.load(u + pair, mask=given, other=0).to(tl.int64)
    other = tl.load(v + pair, mask=given, other=0).to(tl.int64)
    scales = tl.load(scale + one, mask=given, other=0.0) * tl.load(scale + other, mask=given, other=0.0)
    degrees = tl.load(ddegree + one, mask=given, other=0.0) + tl.load(ddegree + other, mask=given, other=0.0)
    tl.store(out + pair, tl.load(direct + pair, mask=given, other=0.0) * scales + degrees, mask=given)
