"""The Triton programs of `dropout_triton`; imported only where Triton is."""

# ruff: noqa: N803 - Triton's way to write constants. It also reads the annotations: they must not become strings.
import triton
import triton.language as tl


@triton.jit
def _given(place, numbers, TAIL: tl.constexpr):
    """Which places exist; in all programs but the last all do, and then loads are as wide as they can be."""
    return place < numbers if TAIL else tl.full(place.shape, 1, tl.int1)


@triton.jit
def _scale(threshold, KIND: tl.constexpr):
    # With 24 bits both steps but the division are exact in float32.
    return 1.0 / (1.0 - threshold.to(KIND) / 16777216.0)


@triton.jit
def _fate(x, y, place, numbers, bits, threshold, TAIL: tl.constexpr, RELU: tl.constexpr, KIND: tl.constexpr):
    given = _given(place, numbers, TAIL)
    value = tl.load(x + place, mask=given, other=0.0).to(KIND)
    if RELU:
        # As torch's relu this lets NaN through; a maximum would not.
        value = tl.where(value < 0, 0.0, value)
    kept = (bits.to(tl.uint32, bitcast=True) >> 8).to(tl.int32) >= threshold
    value = tl.where(kept, value * _scale(threshold, KIND), 0.0)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=given)


@triton.jit
def _fates(
    x, y, first, numbers, a, b, c, d, threshold,
    TAIL: tl.constexpr, RELU: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _fate(x, y, first, numbers, a, threshold, TAIL, RELU, KIND)
    _fate(x, y, first + BLOCK, numbers, b, threshold, TAIL, RELU, KIND)
    _fate(x, y, first + 2 * BLOCK, numbers, c, threshold, TAIL, RELU, KIND)
    _fate(x, y, first + 3 * BLOCK, numbers, d, threshold, TAIL, RELU, KIND)


@triton.jit(do_not_specialize=["numbers", "threshold"])
def drop(x, seed, y, numbers, threshold, RELU: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """y = dropout(x): entry 4 B p + B i + l, B = BLOCK, has the i-th of the four numbers of counter B p + l.

    Args:
        x: contiguous.
        seed: [1] int64.
        y: where to write.
        numbers: how many x has.
        threshold: an entry stays when its 24 bits are at least that.
        RELU: whether a ReLU comes first.
        KIND: type to compute in.
        BLOCK: a quarter of the numbers of a program.
    """
    program = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    a, b, c, d = tl.randint4x(tl.load(seed), (program * BLOCK + lane).to(tl.uint32))
    first = program * BLOCK * 4 + lane
    if (program + 1) * BLOCK * 4 <= numbers:
        _fates(x, y, first, numbers, a, b, c, d, threshold, False, RELU, KIND, BLOCK)
    else:
        _fates(x, y, first, numbers, a, b, c, d, threshold, True, RELU, KIND, BLOCK)


@triton.jit
def _positive(grad, y, out, place, numbers, threshold, TAIL: tl.constexpr, KIND: tl.constexpr):
    given = _given(place, numbers, TAIL)
    value = tl.load(grad + place, mask=given, other=0.0).to(KIND) * _scale(threshold, KIND)
    kept = tl.load(y + place, mask=given, other=0.0) > 0
    tl.store(out + place, tl.where(kept, value, 0.0).to(out.dtype.element_ty), mask=given)


@triton.jit(do_not_specialize=["numbers", "threshold"])
def positive(grad, y, out, numbers, threshold, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """out = grad * scale where y > 0, else 0.

    Args:
        grad: contiguous.
        y: what `drop` wrote.
        out: where to write.
        numbers: how many there are.
        threshold: as in `drop`.
        KIND: type to compute in.
        BLOCK: numbers of a program.
    """
    program = tl.program_id(0).to(tl.int64)
    place = program * BLOCK + tl.arange(0, BLOCK)
    if (program + 1) * BLOCK <= numbers:
        _positive(grad, y, out, place, numbers, threshold, False, KIND)
    else:
        _positive(grad, y, out, place, numbers, threshold, True, KIND)
