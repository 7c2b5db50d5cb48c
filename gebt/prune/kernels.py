"""Compiled kernels of drawing: one pass over the values writes the mask as bits. Imported only where numba is.

A kernel reads its arguments from an array of int64 (see `gebt._numba`); each of torch's threads takes its part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from gebt._numba import toolbox
from gebt.prune.tie_breaking import FIRST, GOLDEN, SECOND

tools = toolbox()
thread, threads, inlined, callback = tools.thread, tools.threads, tools.inlined, tools.callback

F32, I64, U32, U64 = types.float32, types.int64, types.uint32, types.uint64
U = np.uint64
WORD = 64
BINS = 1 << 16
DIGIT_BITS = 11
GOLDEN_U, FIRST_U, SECOND_U = U(GOLDEN), U(FIRST), U(SECOND)
ODD, PAIRS, NIBBLES, BYTES = U(0x5555555555555555), U(0x3333333333333333), U(0x0F0F0F0F0F0F0F0F), U(0x0101010101010101)


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """The int64 `address` as a pointer."""
    return types.voidptr(types.int64), lambda _, builder, __, args: builder.inttoptr(args[0], cgutils.voidptr_t)


@inlined
def rank(entry: Any, start: Any) -> Any:
    """The rank of `gebt.prune.tie_breaking.TieBreaker`, as an unsigned number.

    Args:
        entry: number of the entry.
        start: `TieBreaker.start`.

    Returns:
        uint64.
    """
    mixed = U(entry) * GOLDEN_U + start
    mixed = (mixed ^ (mixed >> U(30))) * FIRST_U
    mixed = (mixed ^ (mixed >> U(27))) * SECOND_U
    return mixed ^ (mixed >> U(31))


@inlined
def _ones(word: Any) -> Any:
    """How many bits are set; LLVM knows these lines as one instruction."""
    word = word - ((word >> U(1)) & ODD)
    word = (word & PAIRS) + ((word >> U(2)) & PAIRS)
    word = (word + (word >> U(4))) & NIBBLES
    return (word * BYTES) >> U(56)


@inlined
def _score_of(values: Any, weight: Any, entry: Any) -> Any:
    """|value| * weight, or |value| where there are no weights."""
    return np.abs(values[entry]) * weight[entry] if weight.size else np.abs(values[entry])


@intrinsic
def _compare(typingctx: Any, values: Any, weight: Any, begin: Any, low: Any, high: Any) -> Any:
    """Two words of bits for the 64 entries from `begin` on: score > high, and not score < low, which is true of a NaN.

    `weight` may be None. Emitted as vectors, which LLVM splits into what the processor has.
    """
    numbers, scores = ir.VectorType(ir.IntType(32), WORD), ir.VectorType(ir.FloatType(), WORD)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def load(array: Any, kind: Any) -> Any:
            place = builder.gep(context.make_array(kind)(context, builder, array).data, [args[2]])
            return builder.load(builder.bitcast(place, scores.as_pointer()), align=4)

        def everywhere(scalar: Any) -> Any:
            first = builder.insert_element(ir.Constant(scores, ir.Undefined), scalar, ir.IntType(32)(0))
            return builder.shuffle_vector(first, first, ir.Constant(numbers, [0] * WORD))

        def bits(flags: Any) -> Any:
            return builder.bitcast(flags, ir.IntType(WORD))

        value = builder.bitcast(load(args[0], signature.args[0]), numbers)
        score = builder.bitcast(builder.and_(value, ir.Constant(numbers, [0x7FFFFFFF] * WORD)), scores)
        if signature.args[1] is not types.none:
            score = builder.fmul(score, load(args[1], signature.args[1]))
        over = bits(builder.fcmp_ordered(">", score, everywhere(args[4])))
        inside = bits(builder.fcmp_unordered(">=", score, everywhere(args[3])))
        return context.make_tuple(builder, signature.return_type, [over, inside])

    return types.UniTuple(U64, 2)(values, weight, begin, low, high), generate


@inlined
def _compare_last(values: Any, weight: Any, begin: Any, low: Any, high: Any) -> Any:
    """`_compare` for the last entries, fewer than 64."""
    over, inside = U(0), U(0)
    for entry in range(begin, values.size):
        score = _score_of(values, weight, entry)
        over |= U(score > high) << U(entry - begin)
        inside |= U(not score < low) << U(entry - begin)
    return over, inside


@inlined
def _share_of(words: Any) -> Any:
    """The words of this thread: from the first to before the second."""
    return words * thread() // threads(), words * (thread() + 1) // threads()


@inlined
def _floats(low: Any, high: Any) -> Any:
    """Two floats, from their bits."""
    bits = np.empty(2, np.uint32)
    bits[0], bits[1] = low, high
    return bits.view(np.float32)


@inlined
def _scan_words(
    values: Any, weight: Any, bounds: Any, cuts: Any, start: Any, words: Any, entries: Any, scores: Any
) -> Any:
    """This thread's part of `scan`: how many entries are above, how many inside, and whether one is NaN."""
    low, high = bounds[0], bounds[1]
    above, found, nan = U(0), 0, False
    first, last = _share_of(words.size)
    for j in range(first, last):
        if (j + 1) * WORD > values.size:
            kept, left = _compare_last(values, weight, j * WORD, low, high)
        elif weight.size:
            kept, left = _compare(values, weight, j * WORD, low, high)
        else:
            kept, left = _compare(values, None, j * WORD, low, high)
        left &= ~kept
        while left:
            bit = left & (~left + U(1))
            left ^= bit
            entry = j * WORD + I64(_ones(bit - U(1)))
            score = _score_of(values, weight, entry)
            nan |= score != score
            if low == high:
                place = rank(entry, start)
                if place > cuts[1]:
                    kept |= bit
                if place < cuts[0] or place > cuts[1]:
                    continue
            if found < entries.size:
                entries[found], scores[found] = entry, score
            found += 1
        words[j] = kept
        above += _ones(kept)
    return I64(above), found, nan


@callback
def scan(p: Any) -> None:
    """Writes the bits of the entries above a span and collects those inside.

    An entry is inside when low <= score <= high and, if these are equal, its rank is from one cut to the other.

    Args:
        p: entries, entries of the weight, room, start of the ranks, low, high (bits of floats), both cuts; then arrays:
            values, weight; `words` gets the bits of those above; `entries` and `scores`, `room` for each thread, those
            inside as far as there is room; `out` [threads, 3] how many are above, how many inside, and whether one is
            NaN.
    """
    size, room = p[0], p[2]
    mine, everything = thread() * room, threads() * room
    values, weight = carray(_pointer(p[8]), size, F32), carray(_pointer(p[9]), p[1], F32)
    words = carray(_pointer(p[10]), (size + WORD - 1) // WORD, U64)
    entries = carray(_pointer(p[11]), everything, I64)[mine : mine + room]
    scores = carray(_pointer(p[12]), everything, F32)[mine : mine + room]
    out = carray(_pointer(p[13]), (threads(), 3), I64)
    bounds, cuts = _floats(p[4], p[5]), (U(p[6]), U(p[7]))
    above, inside, nan = _scan_words(values, weight, bounds, cuts, U(p[3]), words, entries, scores)
    out[thread(), 0], out[thread(), 1], out[thread(), 2] = above, inside, nan


@callback
def histogram(p: Any) -> None:
    """Counts scores by bits of their floats, which are ordered as non-negative floats are.

    Args:
        p: entries, entries of the weight, upper, values, weight, counts. `counts` [threads, 65536] counts the scores by
            the upper 16 bits or, unless `upper` is -1, those whose upper bits are `upper` by the lower 16.
    """
    size, upper = p[0], p[2]
    values, weight = carray(_pointer(p[3]), size, F32), carray(_pointer(p[4]), p[1], F32)
    counts = carray(_pointer(p[5]), (threads(), BINS), I64)[thread()]
    score = np.zeros(1, np.float32)
    bits = score.view(np.uint32)
    for entry in range(size * thread() // threads(), size * (thread() + 1) // threads()):
        score[0] = _score_of(values, weight, entry)
        key = I64(bits[0] & U32(0x7FFFFFFF))
        if upper < 0:
            counts[key >> 16] += 1
        elif key >> 16 == upper:
            counts[key & 0xFFFF] += 1


@inlined
def _kth_smallest(keys: Any, k: Any) -> Any:
    """The k-th smallest (from 1) of unsigned numbers, which are moved about.

    A histogram of their range says in which bin it lies, then one of that bin, until all keys in it are equal.
    """
    counts = np.empty(1 << DIGIT_BITS, np.int64)
    size = keys.size
    while True:
        least, most = keys[0], keys[0]
        for i in range(size):
            least, most = min(least, keys[i]), max(most, keys[i])
        if least == most:
            return least
        shift = U(0)
        while (most - least) >> shift >> U(DIGIT_BITS):
            shift += U(1)
        counts[:] = 0
        for i in range(size):
            counts[(keys[i] - least) >> shift] += 1
        digit = 0
        while k > counts[digit]:
            k -= counts[digit]
            digit += 1
        inside = 0
        for i in range(size):
            if (keys[i] - least) >> shift == U(digit):
                keys[inside] = keys[i]
                inside += 1
        size = inside


@inlined
def _gathered(entries: Any, bits: Any, room: Any, counts: Any) -> Any:
    """Moves what the threads have collected, `counts` [threads] entries, to the front; returns how many there are."""
    total = 0
    for part in range(counts.size):
        for i in range(counts[part]):
            entries[total], bits[total] = entries[part * room + i], bits[part * room + i]
            total += 1
    return total


@inlined
def _settle_entries(entries: Any, bits: Any, prune: Any, start: Any, words: Any) -> Any:
    """Keeps all but the `prune` (at least 1) lowest of the entries; returns the highest score pruned, as bits."""
    keys = bits.astype(np.uint64)
    threshold = np.uint32(_kth_smallest(keys, prune))
    tied = 0
    for i in range(entries.size):
        if bits[i] < threshold:
            prune -= 1
        elif bits[i] == threshold:
            keys[tied] = rank(entries[i], start)
            tied += 1
    last = _kth_smallest(keys[:tied], prune) if prune < tied else ~U(0)
    for i in range(entries.size):
        if bits[i] > threshold or (bits[i] == threshold and rank(entries[i], start) > last):
            words[entries[i] // WORD] |= U(1) << U(entries[i] % WORD)
    return threshold


@callback
def settle(p: Any) -> None:
    """Sets the bits of the entries inside that are kept; out[0, 0] becomes the highest score pruned, as bits.

    Args:
        p: threads of the scan, words, room, start of the ranks, how many of those inside to prune; then the arrays
            words, entries, scores, out as in `scan`.
    """
    parts, room = p[0], p[2]
    words, out = carray(_pointer(p[5]), p[1], U64), carray(_pointer(p[8]), (parts, 3), I64)
    entries, bits = carray(_pointer(p[6]), parts * room, I64), carray(_pointer(p[7]), parts * room, U32)
    total = _gathered(entries, bits, room, out[:, 1])
    out[0, 0] = _settle_entries(entries[:total], bits[:total], p[4], U(p[3]), words)


@callback
def differing(p: Any) -> None:
    """Counts the bits in which two arrays of words differ.

    Args:
        p: words, a, b, counts. counts[thread] becomes the number of bits in which a and b differ.
    """
    first, last = _share_of(p[0])
    a, b = carray(_pointer(p[1]), p[0], U64)[first:last], carray(_pointer(p[2]), p[0], U64)[first:last]
    count = U(0)
    for i in range(a.size):
        count += _ones(a[i] ^ b[i])
    carray(_pointer(p[3]), threads(), I64)[thread()] = count
