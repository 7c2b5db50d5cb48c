"""The Triton engine: rows cut into runs, padded rows, and, under Triton's interpreter, numbers against float64."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gebt.sparse import Pattern, sddmm, spmm
from gebt.sparse.backends import BACKENDS, BackendError, Csr, triton_plan, using
from gebt.sparse.backends import triton as backend
from gebt.sparse.backends.triton_plan import LONGEST_RUN, WIDEST_BLOCK, WIDEST_FUSED, runs_of, tile_of

# The interpreter must be asked for before Triton is imported: the last test does so, in a process of its own.
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter, in a process of its own")
WIDTHS = [1, 3, 4, 7, 16, 40, 64, 130, 257]
# Entries of the longest row of a real citation graph.
HUB = 12_188


def with_hubs(rows: int = 12, columns: int = 130, run: int = 16) -> Pattern:
    """A long row, rows of exactly one and of one more than a run, empty rows at both ends, and one full column."""
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(0)) < 0.03
    mask[2] = mask[:, 7] = True
    mask[4], mask[5] = torch.arange(columns) < run, torch.arange(columns) < run + 1
    mask[0] = mask[3] = mask[rows - 1] = False
    row, col = mask.nonzero(as_tuple=True)
    return Pattern.from_entries(row, col, (rows, columns))[0]


def lengths_to_crow(lengths: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.cat((torch.zeros(1, dtype=dtype), torch.tensor(lengths).cumsum(0).to(dtype)))


@pytest.fixture(params=[False, True], ids=["as they are", "padded"])
def padded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(triton_plan, "PADDED_BYTES", 0 if request.param else 1 << 60)
    monkeypatch.setattr(triton_plan, "PADDED_READS", 0)
    return request.param


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, tuple[Any, ...], dict[str, Any]]]:
    """What would be launched; nothing is."""
    made: list[tuple[str, int, tuple[Any, ...], dict[str, Any]]] = []

    def launch(kernel: str, programs: int, arguments: tuple[Any, ...], x: Tensor, constants: dict[str, Any]) -> None:
        made.append((kernel, programs, arguments, constants))

    monkeypatch.setattr(backend, "launch", launch)
    return made


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_runs_are_the_rows_in_pieces(dtype: torch.dtype) -> None:
    whole, cut = LONGEST_RUN, 2 * LONGEST_RUN + 1
    runs = runs_of(lengths_to_crow([0, cut, 3, whole, whole + 1, 0], dtype))
    assert runs.owner.tolist() == [0, 1, 1, 1, 2, 3, 4, 4, 5]
    assert runs.begin.diff().tolist() == [0, whole, whole, 1, 3, whole, whole, 1, 0]
    assert runs.part.tolist() == [-1, 0, 1, 2, -1, -1, 3, 4, -1]
    assert (runs.total, runs.parts, runs.cut.tolist(), runs.first.tolist()) == (9, 5, [1, 4], [0, 3, 5])
    assert {tensor.dtype for tensor in runs if isinstance(tensor, Tensor)} == {dtype}


def test_without_a_long_row_runs_are_rows() -> None:
    crow = lengths_to_crow([0, LONGEST_RUN, 3])
    runs = runs_of(crow)
    assert runs.begin is crow
    assert (runs.total, runs.parts) == (3, 0)


@pytest.mark.parametrize("longest", [LONGEST_RUN, LONGEST_RUN + 1], ids=["rows", "runs"])
def test_runs_are_found_once_a_pattern_and_forgotten_with_it(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    gc.collect()
    known = len(triton_plan._runs)
    crow = lengths_to_crow([longest])
    first = runs_of(crow)
    monkeypatch.setattr(triton_plan, "_cut", None)
    assert all(a is b for a, b in zip(runs_of(crow), first, strict=True))
    assert len(triton_plan._runs) == known + 1
    del crow, first
    assert len(triton_plan._runs) == known


def test_a_recording_must_know_its_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(BackendError, match=r"got a first product while a CUDA graph is recorded.*run the step once"):
        runs_of(lengths_to_crow([1]))


class Calls(TorchDispatchMode):
    """The torch ops inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_a_later_product_only_allocates_on_the_device_and_waits_for_nothing(
    launches: list[Any], padded: bool, short_runs: None
) -> None:
    pattern, engine = with_hubs(), BACKENDS["triton"]
    a, transposed = (Csr(p.crow, p.col) for p in (pattern, pattern.transposed))
    values, x, grad = torch.ones(pattern.nnz), torch.ones(130, 7), torch.ones(12, 7)

    def step() -> None:
        engine.spmm(a, values, x)
        engine.sddmm(a, grad, x)
        engine.gradients(a, transposed, pattern.permutation, values, x, grad)

    step()
    first = [(kernel, n) for kernel, n, *_ in launches]
    launches.clear()
    with Calls() as calls:
        step()
    assert [(kernel, n) for kernel, n, *_ in launches] == first
    assert [kernel for kernel, _ in first] == ["sums", "join_parts", "products", "sums"]
    made = {"aten.new_empty.default", "aten.empty_like.default", "aten.new_zeros.default"}
    assert calls.names <= made | ({"aten.slice.Tensor", "aten.copy_.default"} if padded else set())


@pytest.mark.parametrize("width", [*WIDTHS, 256, 512, 1024])
@pytest.mark.parametrize("mean", [1, 5, 300])
def test_a_hub_takes_at_most_32_turns(width: int, mean: int, launches: list[Any]) -> None:
    crow = lengths_to_crow([mean] * 50 + [HUB] + [mean] * 50)
    col = torch.zeros(int(crow[-1]), dtype=torch.int32)
    a, x, values = Csr(crow, col), torch.zeros(101, width), torch.zeros(col.numel())
    BACKENDS["triton"].spmm(a, values, x)
    BACKENDS["triton"].gradients(a, a, col[:0], values, x, x)
    BACKENDS["triton"].sddmm(a, x, x)
    runs = runs_of(crow)
    longest, most = int(runs.begin.diff().max()), int(runs.first.diff().max())
    assert (longest, most) == (LONGEST_RUN, -(-HUB // LONGEST_RUN))
    turns = [-(-most // given["PARTS"]) if kernel == "join_parts" else -(-longest // given["ENTRIES"])
             for kernel, _, _, given in launches]  # fmt: skip
    kernels = [kernel for kernel, *_ in launches]
    assert kernels == ["sums", "join_parts", "sums", "join_parts", "products"]
    assert max(turns[0] + turns[1], turns[2] + turns[3], turns[4]) <= 32


@pytest.mark.parametrize("widest", [WIDEST_BLOCK, WIDEST_FUSED])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mean", [0, 1, 5, 32, 33, 10**6])
@pytest.mark.parametrize("width", [1, 2, 3, 16, 17, 100, 128, 129, 512, 513])
def test_a_program_takes_powers_of_two_and_no_more_than_its_registers_hold(
    width: int, mean: int, dtype: torch.dtype, widest: int
) -> None:
    tile = tile_of(3, 3 * mean, width, dtype, widest)
    assert all(number & (number - 1) == 0 for number in tile)
    assert tile.columns == min(widest, 1 << (width - 1).bit_length())
    assert LONGEST_RUN % tile.entries == 0
    size = tile.rows * tile.entries * tile.columns
    most = 16 if dtype == torch.float64 else 32
    assert size <= most * 32 * tile.warps
    # One warp but for rows of which it could not hold enough at once.
    assert tile.warps == 1 or (tile.rows, size) == (1, most * 32 * tile.warps)


@pytest.mark.parametrize(
    ("width", "dtype", "stride"),
    [(128, torch.float32, 128), (130, torch.float32, 132), (7, torch.float32, 8), (7, torch.bfloat16, 8),
     (41, torch.bfloat16, 48), (2, torch.float32, 2), (1, torch.float32, 1), (5, torch.float64, 6)],
)  # fmt: skip
def test_rows_are_padded_to_16_bytes_where_it_pays(
    width: int, dtype: torch.dtype, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.zeros(10, 3, width, dtype=dtype)
    a = Csr(lengths_to_crow([40]), torch.zeros(40, dtype=torch.int32))
    assert triton_plan.stride_of(a, x) == width, "a copy costs a launch, and so few bytes do not repay it"
    monkeypatch.setattr(triton_plan, "PADDED_BYTES", 1)
    assert triton_plan.stride_of(a, x) == stride
    assert triton_plan.stride_of(Csr(a.crow - 1, a.col[1:]), x) == width, "rows are not read often enough"


def test_more_programs_than_a_launch_can_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "MOST_PROGRAMS", 2)
    a = Csr(torch.arange(65, dtype=torch.int32), torch.zeros(64, dtype=torch.int32))
    x, values = torch.ones(1, 3, 5), torch.ones(64, 3)
    for product in (
        lambda: BACKENDS["triton"].spmm(a, values, x),
        lambda: BACKENDS["triton"].sddmm(a, torch.ones(64, 3, 5), x),
    ):
        with pytest.raises(BackendError, match=r"product for triton \(got 12 programs\), expected at most 2; split it"):
            product()


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def oracle(pattern: Pattern, values: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Product, gradient of the values and of x, in float64, by dense matrices."""
    values, x, grad = values.double(), x.double(), grad.double()
    row, col = pattern.row.long(), pattern.col.long()
    dense = values.new_zeros(*pattern.shape, *values.shape[1:]).index_put((row, col), values)
    if x.dim() == 2:
        return dense @ x, (grad @ x.t())[row, col], dense.t() @ grad
    sampled = torch.einsum("rhd,chd->rch", grad, x)[row, col]
    return torch.einsum("rch,chd->rhd", dense, x), sampled, torch.einsum("rch,rhd->chd", dense, grad)


def found(pattern: Pattern, values: Tensor, x: Tensor, grad: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    values, x = values.detach().requires_grad_(), x.detach().requires_grad_()
    with using("triton"):
        out = spmm(pattern, values, x, **options)
        dvalues, dx = torch.autograd.grad(out, (values, x), grad)
    return out.detach(), dvalues, dx


def close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for ours, right in zip(got, expected, strict=True):
        scale = float(right.abs().max())
        torch.testing.assert_close(ours.double(), right, rtol=0.0, atol=tolerance * scale)


@interpreted
@pytest.mark.usefixtures("short_runs", "new_memory_is_nan")
class TestNumbers:
    def sizes(self, pattern: Pattern, width: int, heads: int = 0) -> list[tuple[int, ...]]:
        many = (heads,) if heads else ()
        return [(pattern.nnz, *many), (pattern.shape[1], *many, width), (pattern.shape[0], *many, width)]

    @pytest.mark.parametrize("width", WIDTHS)
    def test_of_every_width(self, width: int, padded: bool) -> None:
        pattern = with_hubs()
        inputs = drawn(*self.sizes(pattern, width))
        close(found(pattern, *inputs), oracle(pattern, *inputs))
        close((sddmm_of(pattern, inputs[2], inputs[1]),), oracle(pattern, *inputs)[1:2])

    @pytest.mark.parametrize(("width", "heads"), [(7, 3), (40, 2), (1, 5)])
    def test_of_heads(self, width: int, heads: int, padded: bool) -> None:
        pattern = with_hubs()
        inputs = drawn(*self.sizes(pattern, width, heads))
        close(found(pattern, *inputs), oracle(pattern, *inputs))
        close((sddmm_of(pattern, inputs[2], inputs[1]),), oracle(pattern, *inputs)[1:2])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
    def test_of_other_types(self, dtype: torch.dtype, padded: bool) -> None:
        pattern = with_hubs()
        inputs = drawn(*self.sizes(pattern, 19), dtype=dtype)
        close(found(pattern, *inputs), oracle(pattern, *inputs), 8e-3 if dtype == torch.bfloat16 else 1e-12)

    def test_of_int64_offsets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gebt.sparse.pattern.INT32_LIMIT", 19)
        pattern = with_hubs()
        assert {pattern.crow.dtype, pattern.col.dtype, pattern.permutation.dtype} == {torch.int64}
        inputs = drawn(*self.sizes(pattern, 16))
        close(found(pattern, *inputs), oracle(pattern, *inputs))

    def test_of_rows_wider_than_a_program(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backend, "WIDEST_BLOCK", 16)
        monkeypatch.setattr(backend, "WIDEST_FUSED", 32)
        pattern = with_hubs()
        inputs = drawn(*self.sizes(pattern, 37))
        close(found(pattern, *inputs), oracle(pattern, *inputs))

    def test_of_a_symmetric_matrix(self) -> None:
        wide = with_hubs(40, 40)
        mask = torch.zeros(40, 40).index_put((wide.row.long(), wide.col.long()), torch.ones(()))
        row, col = (mask + mask.t()).nonzero(as_tuple=True)
        pattern = Pattern.from_entries(row, col, (40, 40))[0]
        values, x, grad = drawn(*self.sizes(pattern, 24))
        mirror = pattern.permutation.long()
        values = values + values[mirror]
        (y, dvalues, dx), right = found(pattern, values, x, grad, symmetric=True), oracle(pattern, values, x, grad)
        # The gradient of an entry may stand at its mirror entry.
        close((y, dvalues + dvalues[mirror], dx), (right[0], right[1] + right[1][mirror], right[2]))

    def test_repeat_bit_for_bit(self, padded: bool) -> None:
        pattern = with_hubs()
        inputs = drawn(*self.sizes(pattern, 19, 2))
        first, *others = (found(pattern, *inputs) for _ in range(3))
        assert all(torch.equal(a, b) for other in others for a, b in zip(other, first, strict=True))

    def test_need_the_runs_of_each_direction_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pattern, cut, calls = with_hubs(), triton_plan._cut, []
        monkeypatch.setattr(triton_plan, "_cut", lambda crow, longest: calls.append(crow) or cut(crow, longest))
        inputs = drawn(*self.sizes(pattern, 3))
        for _ in range(2):
            found(pattern, *inputs)
        # The registered ops hand on the pattern's own tensors, whose runs are kept.
        assert [id(crow) for crow in calls] == [id(pattern.crow), id(pattern.transposed.crow)]


def sddmm_of(pattern: Pattern, left: Tensor, right: Tensor) -> Tensor:
    with using("triton"):
        return sddmm(pattern, left, right)


@pytest.mark.skipif(INTERPRETED, reason="runs the tests of these files once more")
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_numbers_are_right_under_the_interpreter() -> None:
    here = Path(__file__)
    command = [
        "-m",
        "pytest",
        "-x",
        "-k",
        "TestNumbers or TestNormalization",
        "-p",
        "no:cacheprovider",
        f"--confcutdir={here.parent}",
    ]
    done = subprocess.run(
        [sys.executable, *command, str(here), str(here.with_name("test_triton_rows.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=here.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
