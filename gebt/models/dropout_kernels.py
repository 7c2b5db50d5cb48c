"""Compiled dropout kernels; imported only where numba is available (see `gebt._numba`)."""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir
from numba import carray, types, uint64
from numba.extending import intrinsic

from gebt.prune.tie_breaking import FIRST, GOLDEN, SECOND
from gebt.sparse.backends.kernels import I32, I64, callback, inlined, pointer, thread, threads

# Words whose bits are drawn at once; entry i of a stream has lane (i % 32) // 8 of word 8 (i // 32) + i % 8, so that
# the entries of one lane lie side by side.
WORDS = 8
GOLDEN64, FIRST64, SECOND64 = uint64(GOLDEN), uint64(FIRST), uint64(SECOND)


@intrinsic
def _drop_block(
    typingctx: Any, x: Any, y: Any, place: Any, seed: Any, word: Any, threshold: Any, scale: Any, positive: Any
) -> Any:
    """y = dropout(x) for the 32 entries from `place` on, whose bits are the WORDS words from `word` on."""
    signature = types.void(x, y, types.int64, types.int64, types.int64, types.int64, scale, types.int64)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        arrays = (
            context.make_array(kind)(context, builder, a) for kind, a in zip(signature.args[:2], args, strict=False)
        )
        x, y = (array.data for array in arrays)
        _, _, place, seed, word, threshold, scale, positive = args
        scalar = x.type.pointee
        numbers, floats = ir.VectorType(I64, WORDS), ir.VectorType(scalar, WORDS)

        def constant(value: int) -> Any:
            return ir.Constant(numbers, [value] * WORDS)

        def everywhere(value: Any, kind: Any) -> Any:
            first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
            zeros = ir.Constant(ir.VectorType(I32, WORDS), [0] * WORDS)
            return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros)

        z = builder.add(everywhere(word, numbers), ir.Constant(numbers, list(range(1, WORDS + 1))))
        z = builder.add(builder.mul(z, constant(GOLDEN)), everywhere(seed, numbers))
        for shift, factor in ((30, FIRST), (27, SECOND)):
            z = builder.mul(builder.xor(z, builder.lshr(z, constant(shift))), constant(factor))
        z = builder.xor(z, builder.lshr(z, constant(31)))
        nothing = ir.Constant(floats, [0.0] * WORDS)
        minimum, factor = everywhere(threshold, numbers), everywhere(scale, floats)
        any_sign = everywhere(builder.icmp_signed("==", positive, I64(0)), ir.VectorType(ir.IntType(1), WORDS))
        for lane in range(4):
            source, target = (
                builder.bitcast(builder.gep(array, [builder.add(place, I64(lane * WORDS))]), floats.as_pointer())
                for array in (x, y)
            )
            value = builder.load(source, align=4)
            bits = builder.and_(builder.lshr(z, constant(16 * lane)), constant(0xFFFF))
            kept = builder.icmp_unsigned(">=", bits, minimum)
            kept = builder.and_(kept, builder.or_(any_sign, builder.fcmp_unordered(">", value, nothing)))
            builder.store(builder.select(kept, builder.fmul(value, factor), nothing), target, align=4)
        return context.get_dummy_value()

    return signature, generate


@inlined
def _bits(seed, entry):
    """The 16 bits of one entry: lane (entry % 32) // 8 of word 8 (entry // 32) + entry % 8 of the sequence."""
    word = entry // (4 * WORDS) * WORDS + entry % WORDS
    z = uint64(seed) + (uint64(word) + uint64(1)) * GOLDEN64
    z = (z ^ (z >> uint64(30))) * FIRST64
    z = (z ^ (z >> uint64(27))) * SECOND64
    z ^= z >> uint64(31)
    return (z >> uint64(16 * (entry % (4 * WORDS) // WORDS))) & uint64(0xFFFF)


@inlined
def _drop_one(x, y, place, seed, entry, threshold, scale, positive):
    """y = dropout(x) for one entry of a stream."""
    value = x[place]
    kept = _bits(seed, entry) >= uint64(threshold) and not (positive and value <= 0)
    y[place] = value * scale if kept else 0


@inlined
def _drop(x, y, seeds, rows, width, threshold, scale, positive):
    """Dropout of x [rows, streams, width], each stream with its own seed."""
    part, parts, streams = thread(), threads(), seeds.size
    if streams == 1 or rows == 1:
        # Each stream lies in one piece.
        block, entries = 4 * WORDS, rows * width
        blocks = entries // block
        for stream in range(streams):
            start, seed = stream * entries, seeds[stream]
            for number in range(blocks * part // parts, blocks * (part + 1) // parts):
                _drop_block(x, y, start + number * block, seed, number * WORDS, threshold, scale, positive)
            if part + 1 == parts:
                for entry in range(blocks * block, entries):
                    _drop_one(x, y, start + entry, seed, entry, threshold, scale, positive)
        return
    for row in range(rows * part // parts, rows * (part + 1) // parts):
        if width == 1:
            for stream in range(streams):
                _drop_one(x, y, row * streams + stream, seeds[stream], row, threshold, scale, positive)
            continue
        for stream in range(streams):
            start = (row * streams + stream) * width
            for i in range(width):
                _drop_one(x, y, start + i, seeds[stream], row * width + i, threshold, scale, positive)


def _entry(scalar: Any) -> Any:
    @callback
    def entry(p):
        rows, streams, width, threshold, positive = p[0], p[1], p[2], p[3], p[4]
        size = rows * streams * width
        x, y = carray(pointer(p[5]), size, scalar), carray(pointer(p[6]), size, scalar)
        seeds, scale = carray(pointer(p[7]), streams, types.int64), carray(pointer(p[8]), 1, scalar)
        _drop(x, y, seeds, rows, width, threshold, scale[0], positive)

    return entry


@cache
def dropout(scalar: Any) -> Any:
    """The kernel for a scalar type, compiled at its first use.

    Args:
        scalar: the numba type of the entries, float32 or float64.

    Returns:
        The compiled entry point.
    """
    return _entry(scalar)
