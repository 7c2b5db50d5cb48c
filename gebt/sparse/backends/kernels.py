"""The compiled products, written for the registers: imported only where numba is (see `gebt._numba`).

The inner loops are emitted as LLVM vectors of 64 bytes, which LLVM lowers to what the processor has. A block of
columns of one output row stays in registers while the row's entries go by: each entry costs its own loads and
multiply-adds and nothing else. Kernels know no threads but their own part of the rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from gebt._numba import toolbox

tools = toolbox()
thread, threads, inlined, callback = tools.thread, tools.threads, tools.inlined, tools.callback

I32, I64 = ir.IntType(32), ir.IntType(64)
VECTOR_BYTES = 64
# Vectors of a block: with both gradients 2 x 4 registers hold sums and the row's own features, and one more streams.
BLOCK = 4
# Entries between a load and the prefetch of its successor's row.
AHEAD = 16


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """The int64 `address` as a pointer."""
    return types.voidptr(types.int64), lambda _, builder, __, args: builder.inttoptr(args[0], cgutils.voidptr_t)


class Emitter:
    """Emits vector instructions for arrays of one scalar type."""

    def __init__(self, builder: Any, dtype: Any) -> None:
        double = dtype == types.float64
        self.builder, self.bytes = builder, 8 if double else 4
        self.scalar = ir.DoubleType() if double else ir.FloatType()
        self.lanes = VECTOR_BYTES // self.bytes
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.name = f"v{self.lanes}{'f64' if double else 'f32'}"

    def zeros(self) -> Any:
        return ir.Constant(self.vector, [0.0] * self.lanes)

    def splat(self, scalar: Any) -> Any:
        kind = ir.VectorType(scalar.type, self.lanes)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, I32(0))
        everywhere = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), everywhere)

    def lanes_below(self, count: Any) -> Any:
        """The mask of the lanes smaller than `count`."""
        numbers = ir.Constant(ir.VectorType(I64, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", numbers, self.splat(count))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        return self.builder.fadd(self.builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])

    def call(self, name: str, returns: Any, *args: Any, flags: tuple[str, ...] = ()) -> Any:
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(returns, [a.type for a in args]), name)
        return self.builder.call(function, args, fastmath=flags)

    def load(self, place: Any, mask: Any) -> Any:
        place = self.builder.bitcast(place, self.vector.as_pointer())
        if mask is None:
            return self.builder.load(place, align=self.bytes)
        return self.call(f"llvm.masked.load.{self.name}.p0", self.vector, place, I32(self.bytes), mask, self.zeros())

    def store(self, value: Any, place: Any, mask: Any) -> None:
        place = self.builder.bitcast(place, self.vector.as_pointer())
        if mask is None:
            self.builder.store(value, place, align=self.bytes)
        else:
            self.call(f"llvm.masked.store.{self.name}.p0", ir.VoidType(), value, place, I32(self.bytes), mask)

    def prefetch(self, place: Any) -> None:
        self.call("llvm.prefetch.p0", ir.VoidType(), place, I32(0), I32(3), I32(1))

    def total(self, vector: Any) -> Any:
        zero = ir.Constant(self.scalar, 0.0)
        return self.call(f"llvm.vector.reduce.fadd.{self.name}", self.scalar, zero, vector, flags=("reassoc",))


@intrinsic(prefer_literal=True)
def row_block(
    typingctx: Any, first: Any, last: Any, col: Any, x: Any, column: Any, width: Any, row: Any, step: Any, head: Any,
    values: Any, out: Any, own: Any, dots: Any, permutation: Any, vectors: Any,
) -> Any:  # fmt: skip
    """One block of columns of one row: sums over its entries, products with its own features, or both.

    sums: out[row, block] = sum over entries e of values[e] * x[col[e], block], unless `out` is None
    dots: dots[place e] += <own[row, block], x[col[e], block]>, unless `dots` is None; the place is permutation[e], or e
    where that is empty. With several heads e stands for entry e * step + head.
    """
    if not isinstance(vectors, types.IntegerLiteral):
        return None
    index = types.int64
    signature = types.void(
        index, index, col, x, index, index, index, index, index, values, out, own, dots, permutation, vectors
    )
    with_sum, with_dots = out is not types.none, dots is not types.none

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first, last, _, _, column, width, row, step, head, *_ = args
        kinds = (*signature.args[2:4], *signature.args[9:14])
        arrays: list[Any] = [
            context.make_array(kind)(context, builder, value) if kind is not types.none else None
            for kind, value in zip(kinds, (*args[2:4], *args[9:14]), strict=True)
        ]
        col, x, values, out, own, dots, permutation = arrays
        count = vectors.literal_value
        emit = Emitter(builder, signature.args[3].dtype)
        length = cgutils.unpack_tuple(builder, x.shape)[1]
        offsets = [builder.add(column, I64(i * emit.lanes)) for i in range(count)]
        masks = [None] * (count - 1) + [emit.lanes_below(builder.sub(width, I64((count - 1) * emit.lanes)))]
        own_row = builder.mul(row, length)

        def at(array: Any, *parts: Any) -> Any:
            place = parts[0]
            for part in parts[1:]:
                place = builder.add(place, part)
            return builder.gep(array.data, [place])

        def column_of(entry: Any) -> Any:
            found = builder.load(at(col, entry))
            return found if found.type == I64 else builder.sext(found, I64)

        mine = [emit.load(at(own, own_row, o), m) for o, m in zip(offsets, masks, strict=True)] if with_dots else []
        final = builder.sub(cgutils.unpack_tuple(builder, col.shape)[0], I64(1))
        before = builder.block
        loop, done = builder.append_basic_block("entries"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", first, last), loop, done)

        builder.position_at_end(loop)
        entry = builder.phi(I64)
        entry.add_incoming(first, before)
        sums = [builder.phi(emit.vector) for _ in range(count if with_sum else 0)]
        for each in sums:
            each.add_incoming(emit.zeros(), before)
        ahead = builder.add(entry, I64(AHEAD))
        ahead = builder.mul(column_of(builder.select(builder.icmp_signed("<", ahead, final), ahead, final)), length)
        for offset in offsets:
            emit.prefetch(at(x, ahead, offset))
        start = builder.mul(column_of(entry), length)
        rows = [emit.load(at(x, start, o), m) for o, m in zip(offsets, masks, strict=True)]
        added = []
        if with_sum:
            value = emit.splat(builder.load(at(values, builder.mul(entry, step), head)))
            added = [emit.multiply_add(value, r, s) for r, s in zip(rows, sums, strict=True)]
        if with_dots:
            product = emit.zeros()
            for r, m in zip(rows, mine, strict=True):
                product = emit.multiply_add(r, m, product)
            place = _place_of(builder, permutation, entry, at)
            place = at(dots, builder.mul(place, step), head)
            builder.store(builder.fadd(builder.load(place), emit.total(product)), place)
        following = builder.add(entry, I64(1))
        entry.add_incoming(following, builder.block)
        for each, new in zip(sums, added, strict=True):
            each.add_incoming(new, builder.block)
        ending = builder.block
        builder.cbranch(builder.icmp_signed("<", following, last), loop, done)

        builder.position_at_end(done)
        results = []
        for new in added:
            result = builder.phi(emit.vector)
            result.add_incoming(emit.zeros(), before)
            result.add_incoming(new, ending)
            results.append(result)
        for result, offset, mask in zip(results, offsets, masks, strict=False):
            emit.store(result, at(out, own_row, offset), mask)
        return context.get_dummy_value()

    return signature, generate


def _place_of(builder: Any, permutation: Any, entry: Any, at: Any) -> Any:
    size = cgutils.unpack_tuple(builder, permutation.shape)[0]
    given = builder.icmp_signed(">", size, I64(0))
    # Without a permutation the load reads its first element's address only if there is one: select the address first.
    before = builder.block
    load, after = builder.append_basic_block("permuted"), builder.append_basic_block("placed")
    builder.cbranch(given, load, after)
    builder.position_at_end(load)
    found = builder.load(at(permutation, entry))
    found = found if found.type == I64 else builder.sext(found, I64)
    builder.branch(after)
    builder.position_at_end(after)
    place = builder.phi(I64)
    place.add_incoming(entry, before)
    place.add_incoming(found, load)
    return place


@inlined
def first_row(crow, part, parts):
    """Where a part of the rows begins: entries and rows before it are a `part` / `parts` share of all."""
    rows = crow.size - 1
    goal = (crow[rows] + rows) * part // parts
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        if crow[middle] + middle < goal:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def over_rows(crow, col, values, x, out, own, dots, permutation, heads, width):
    """All rows of this thread's part, all heads, all blocks of columns; see `row_block`."""
    lanes = VECTOR_BYTES // x.itemsize
    for row in range(first_row(crow, thread(), threads()), first_row(crow, thread() + 1, threads())):
        first, last = crow[row], crow[row + 1]
        for head in range(heads):
            column, left = head * width, width
            while left > 0:
                part = min(left, BLOCK * lanes)
                if part <= lanes:
                    row_block(
                        first, last, col, x, column, part, row, heads, head, values, out, own, dots, permutation, 1
                    )
                elif part <= 2 * lanes:
                    row_block(
                        first, last, col, x, column, part, row, heads, head, values, out, own, dots, permutation, 2
                    )
                elif part <= 3 * lanes:
                    row_block(
                        first, last, col, x, column, part, row, heads, head, values, out, own, dots, permutation, 3
                    )
                else:
                    row_block(
                        first, last, col, x, column, part, row, heads, head, values, out, own, dots, permutation, 4
                    )
                column += part
                left -= part


def _entry(sums: bool, products: bool, index: Any, scalar: Any) -> Any:
    # numba keys its cache on disk by these four: they must be plain values, and what is called here a global.
    @callback
    def entry(p):
        rows, dense_rows, entries, permuted, heads, width = p[0], p[1], p[2], p[3], p[4], p[5]
        crow, col = carray(pointer(p[6]), rows + 1, index), carray(pointer(p[7]), entries, index)
        values = carray(pointer(p[8]), entries * heads, scalar)
        x = carray(pointer(p[9]), (dense_rows, heads * width), scalar)
        out = carray(pointer(p[10]), (rows, heads * width), scalar)
        own = carray(pointer(p[11]), (rows, heads * width), scalar)
        dots = carray(pointer(p[12]), entries * heads, scalar)
        permutation = carray(pointer(p[13]), permuted, index)
        if sums and products:
            over_rows(crow, col, values, x, out, own, dots, permutation, heads, width)
        elif sums:
            over_rows(crow, col, values, x, out, own, None, permutation, heads, width)
        else:
            over_rows(crow, col, values, x, None, own, dots, permutation, heads, width)

    return entry


@cache
def product(kind: str, index: Any, scalar: Any) -> Any:
    """The kernel of "sums", "dots" or "both", compiled for an index and a scalar type at its first use."""
    return _entry(kind != "dots", kind != "sums", index, scalar)
