"""Every backend against the dense product: numbers, gradients, types, layouts, bits, NaN and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gebt.sparse import Pattern, sddmm, spmm
from gebt.sparse.backends import BACKENDS, ORACLES, BackendError, Csr, using

MakePattern = Callable[..., Pattern]
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
# Triton's interpreter must be asked for before Triton is imported: one test below does so in a process of its own.
ON_CPU = [name for name in BACKENDS if name != "triton" or INTERPRETED]
ON_CUDA = ["torch-csr", "torch-sparse", "triton"] if torch.cuda.is_available() else []
ENGINES = [f"{name}-cpu" for name in ON_CPU] + [pytest.param(f"{n}-cuda", marks=pytest.mark.gpu) for n in ON_CUDA]
WIDTHS = [1, 3, 7, 16, 17, 64, 65, 130, 200]
WANTED = [(True, True), (True, False), (False, True)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


class Engine:
    """A backend and the device it is tried on."""

    def __init__(self, engine: str) -> None:
        self.name, _, self.device = engine.rpartition("-")
        self.backend = BACKENDS[self.name]

    def drawn(self, *shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
        drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        return drawn.to(self.device, dtype)

    def of(
        self, pattern: Pattern, width: int, heads: int = 0, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values, x and an upstream gradient."""
        many = (heads,) if heads else ()
        shapes = ((pattern.nnz, *many), (pattern.shape[1], *many, width), (pattern.shape[0], *many, width))
        values, x, grad = (self.drawn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))
        return values, x, grad


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(request.param)
    if (why := engine.backend.missing()) is not None:
        pytest.skip(why)
    if engine.device == "cpu":
        # Fills new memory with NaN, so that what a kernel forgets to write is seen.
        torch.set_deterministic_debug_mode("error")
    with using(engine.name):
        yield engine
    torch.set_deterministic_debug_mode("default")


def dense_of(pattern: Pattern, values: Tensor) -> Tensor:
    """[R, C, H] in double precision."""
    wide = values.double() if values.dim() == 2 else values.double()[:, None]
    place = (pattern.row.long(), pattern.col.long())
    return wide.new_zeros(*pattern.shape, wide.shape[1]).index_put(place, wide)


def dense_product(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
    wide = x.double() if x.dim() == 3 else x.double()[:, None]
    out = torch.einsum("rch,chd->rhd", dense_of(pattern, values), wide)
    return out if x.dim() == 3 else out[:, 0]


def with_gradients(
    product: Callable[[Tensor, Tensor], Tensor], values: Tensor, x: Tensor, grad: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    values, x = values.detach().requires_grad_(wanted[0]), x.detach().requires_grad_(wanted[1])
    out = product(values, x)
    inputs = [tensor for tensor in (values, x) if tensor.requires_grad]
    return (out, *torch.autograd.grad(out, inputs, grad.to(out.dtype)))


def close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], dtype: torch.dtype) -> None:
    for ours, right in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        assert ours.is_contiguous()
        scale = float(right.detach().abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(ours.double(), right.double(), rtol=0.0, atol=TOLERANCE[dtype] * scale)


def check(engine: Engine, pattern: Pattern, width: int, heads: int = 0, dtype: torch.dtype = torch.float32) -> None:
    """Product and gradients, wanted apart and together, are those of the dense matrix."""
    pattern = pattern.to(engine.device)
    values, x, grad = engine.of(pattern, width, heads, dtype)
    for wanted in WANTED:
        got = with_gradients(partial(spmm, pattern), values, x, grad, wanted)
        close(got, with_gradients(partial(dense_product, pattern), values, x, grad, wanted), dtype)


@pytest.mark.parametrize(("width", "heads"), [*((width, 0) for width in WIDTHS), (1, 1), (3, 5), (17, 2), (130, 2)])
def test_products_and_gradients_of_every_width(
    engine: Engine, width: int, heads: int, make_pattern: MakePattern
) -> None:
    check(engine, make_pattern(7, 9, 20), width, heads)


def test_products_and_gradients_of_every_size(
    engine: Engine, size: tuple[int, int, int], make_pattern: MakePattern
) -> None:
    check(engine, make_pattern(*size), 5, heads=2)


@pytest.mark.parametrize("width", [1, 20])
def test_rows_of_very_different_lengths(engine: Engine, width: int) -> None:
    # One full row between empty ones, and one column that nearly every row has: more entries than any block takes.
    mask = torch.zeros(19, 70, dtype=torch.bool)
    mask[9] = mask[3:16, 60] = mask[18, 69] = True
    row, col = mask.nonzero(as_tuple=True)
    check(engine, Pattern.from_entries(row, col, (19, 70))[0], width)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_type_that_a_backend_takes(engine: Engine, dtype: torch.dtype, make_pattern: MakePattern) -> None:
    if engine.backend.supports(torch.device(engine.device), dtype):
        check(engine, make_pattern(9, 8, 30), 18, 2, dtype)
    else:
        with pytest.raises(BackendError, match=rf"{engine.name}' \(got {dtype} on {engine.device}"):
            check(engine, make_pattern(9, 8, 30), 18, 2, dtype)


@pytest.mark.parametrize(("width", "heads"), [(1, 0), (130, 0), (20, 2)])
def test_sampled_products_and_their_gradients_of_every_width(
    engine: Engine, width: int, heads: int, make_pattern: MakePattern
) -> None:
    check_sampled(engine, make_pattern(7, 9, 20), width, heads)


def test_sampled_products_and_their_gradients_of_every_size(
    engine: Engine, size: tuple[int, int, int], make_pattern: MakePattern
) -> None:
    check_sampled(engine, make_pattern(*size), 5, 2)


def check_sampled(engine: Engine, pattern: Pattern, width: int, heads: int) -> None:
    pattern = pattern.to(engine.device)
    grad, b, a = engine.of(pattern, width, heads)
    row, col = pattern.row.long(), pattern.col.long()
    for wanted in WANTED:
        got = with_gradients(partial(sddmm, pattern), a, b, grad, wanted)
        right = with_gradients(lambda a, b: (a.double()[row] * b.double()[col]).sum(-1), a, b, grad, wanted)
        close(got, right, torch.float32)


def test_gradients_pass_gradcheck(engine: Engine, make_pattern: MakePattern) -> None:
    pattern = make_pattern(3, 4, 5).to(engine.device)
    values, x, a = (tensor.requires_grad_() for tensor in engine.of(pattern, 2, dtype=torch.float64))
    assert gradcheck(partial(spmm, pattern), (values, x), fast_mode=True)
    assert gradcheck(partial(sddmm, pattern), (a, x), fast_mode=True)


def test_indices_beyond_int32_switch_to_int64_by_themselves(
    engine: Engine, make_pattern: MakePattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_pattern(7, 9, 20).permutation.dtype == torch.int32
    monkeypatch.setattr("gebt.sparse.pattern.INT32_LIMIT", 19)
    pattern = make_pattern(7, 9, 20)
    parts = (pattern.crow, pattern.col, pattern.permutation, pattern.transposed.crow, pattern.transposed.col)
    assert {part.dtype for part in parts} == {torch.int64}
    check(engine, pattern, 18, 2)


def test_a_permutation_of_another_index_type_is_read_as_what_it_is(engine: Engine, make_pattern: MakePattern) -> None:
    pattern = make_pattern(7, 9, 20).to(engine.device)
    turned, (values, x, grad) = pattern.transposed, engine.of(pattern, 5)
    tvalues = values[pattern.permutation.long()]
    index = (Csr(pattern.crow, pattern.col), Csr(turned.crow, turned.col))
    narrow = engine.backend.gradients(*index, pattern.permutation, tvalues, x, grad)
    wide = engine.backend.gradients(*index, pattern.permutation.long(), tvalues, x, grad)
    assert all(torch.equal(a, b) for a, b in zip(wide, narrow, strict=True))


@pytest.mark.parametrize("heads", [0, 2])
def test_a_symmetric_matrix_needs_no_transpose(engine: Engine, heads: int, make_pattern: MakePattern) -> None:
    linked = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.2
    row, col = (linked | linked.t()).nonzero(as_tuple=True)
    pattern = Pattern.from_entries(row, col, (8, 8))[0].to(engine.device)
    values, x, grad = engine.of(pattern, 19, heads)
    mirror = pattern.permutation.long()
    values = values + values[mirror]
    for wanted in WANTED:
        fast = with_gradients(partial(spmm, pattern, symmetric=True), values, x, grad, wanted)
        general = with_gradients(partial(spmm, pattern), values, x, grad, wanted)
        if wanted[0]:
            # Where the gradient of an entry stands at its mirror entry, the sum of both does not change.
            fast, general = ((out[0], out[1] + out[1][mirror], *out[2:]) for out in (fast, general))
        close(fast, general, torch.float32)


@pytest.mark.parametrize("heads", [0, 2])
def test_any_memory_layout_gives_the_same_numbers(engine: Engine, heads: int, make_pattern: MakePattern) -> None:
    pattern = make_pattern(4, 5, 12).to(engine.device)
    plain = engine.of(pattern, 6, heads)

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, -tensor], -1)[..., 0]

    def turned(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    values, x, grad = plain
    expected = [with_gradients(partial(spmm, pattern), *plain, wanted) for wanted in WANTED]
    sampled = with_gradients(partial(sddmm, pattern), grad, x, values, (True, True))
    for layout in (strided, turned):
        v, other, upstream = (layout(tensor) for tensor in plain)
        for wanted, right in zip(WANTED, expected, strict=True):
            close(with_gradients(partial(spmm, pattern), v, other, upstream, wanted), right, torch.float32)
        close(with_gradients(partial(sddmm, pattern), upstream, other, v, (True, True)), sampled, torch.float32)
    everywhere = grad[:1, ..., :1].expand(grad.shape)
    got = with_gradients(partial(spmm, pattern), values, x, everywhere, (True, True))
    close(got, with_gradients(partial(spmm, pattern), values, x, everywhere.clone(), (True, True)), torch.float32)


def test_repeats_give_equal_bits(engine: Engine, make_pattern: MakePattern) -> None:
    pattern = make_pattern(15, 12, 90).to(engine.device)
    inputs = engine.of(pattern, 19, 2)
    first, *others = (with_gradients(partial(spmm, pattern), *inputs, (True, True)) for _ in range(3))
    assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))


@pytest.mark.skipif(BACKENDS["compiled"].missing() is not None, reason=str(BACKENDS["compiled"].missing()))
def test_compiled_products_have_the_same_bits_on_any_number_of_threads(make_pattern: MakePattern) -> None:
    pattern, threads = make_pattern(50, 40, 600), torch.get_num_threads()
    inputs = Engine("compiled-cpu").of(pattern, 19, 2)
    found = []
    try:
        with using("compiled"):
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                found.append(with_gradients(partial(spmm, pattern), *inputs, (True, True)))
                found[-1] += with_gradients(partial(sddmm, pattern), inputs[2], inputs[1], inputs[0], (True, True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(other, found[0], strict=True))


# The interpreter multiplies in numpy, which warns.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_and_infinity_go_where_an_entry_takes_them_and_nowhere_else(
    engine: Engine, make_pattern: MakePattern
) -> None:
    if engine.name == "dense":
        pytest.skip("the dense product multiplies the zeros between the entries too")
    pattern = make_pattern(9, 8, 20).to(engine.device)
    values, x, grad = engine.of(pattern, 17)
    values[3], values[5] = float("nan"), 0.0
    x[2, 4], x[6, 16], x[1, 0] = float("nan"), float("inf"), float("-inf")
    grad[0, 1], grad[4, 16] = float("nan"), float("inf")
    row, col = pattern.row.long(), pattern.col.long()

    def entry_by_entry(values: Tensor, x: Tensor) -> Tensor:
        return x.new_zeros(9, 17).index_add(0, row, values[:, None] * x[col])

    expected = with_gradients(entry_by_entry, values, x, grad, (True, True))
    for wanted, of_all in zip(WANTED, [(0, 1, 2), (0, 1), (0, 2)], strict=True):
        got = with_gradients(partial(spmm, pattern), values, x, grad, wanted)
        right = tuple(expected[i] for i in of_all)
        torch.testing.assert_close(got, right, equal_nan=True)
        assert all(tensor.isnan().any() and tensor.isfinite().any() for tensor in got)


def test_no_tensor_of_entries_times_columns_is_made(
    engine: Engine,
    make_pattern: MakePattern,
    largest_allocation: Callable[[Callable[[], object]], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if engine.name in ORACLES or engine.device == "cuda":
        pytest.skip("allocations are watched on the CPU, and oracles may be wasteful")
    monkeypatch.setattr("gebt.sparse.backends.torch_sparse.CHUNK", 8)
    pattern = make_pattern(12, 12, 140)
    values, x, grad = engine.of(pattern, 32)
    limit = 140 * 16  # of the 140 * 32 * 4 bytes that E x d would take
    for wanted in WANTED:
        product = partial(with_gradients, partial(spmm, pattern), values, x, grad, wanted)
        assert largest_allocation(product) <= limit
    sampled = partial(with_gradients, partial(sddmm, pattern), grad, x, values, (True, True))
    assert largest_allocation(sampled) <= limit


@pytest.mark.skipif(INTERPRETED, reason="runs the tests of this file once more")
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_triton_kernels_pass_under_the_interpreter() -> None:
    here = Path(__file__)
    command = ["-m", "pytest", "-x", "-k", "triton-cpu", "-p", "no:cacheprovider", f"--confcutdir={here.parent}"]
    done = subprocess.run(
        [sys.executable, *command, str(here)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
