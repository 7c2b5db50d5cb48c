"""The Triton kernels compiled for GPUs that are not here: registers, spills, and how much one load fetches."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from gebt.graph.edges import Edges
from gebt.sparse.backends import Csr, triton_normalization, triton_plan, triton_reduction
from gebt.sparse.backends import triton as backend
from gebt.sparse.backends.base import PairEntries

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="the interpreter does not compile")

TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
CAPABILITIES = [80, 90]
FLOAT, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64


class Launch(NamedTuple):
    """A call of a kernel as the backend makes it."""

    kernel: str
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


class Made(NamedTuple):
    """What a kernel was compiled to: registers a thread, bytes of stack and local memory, PTX and machine code."""

    registers: int
    stack: int
    local: int
    ptx: str
    code: str


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """What the backend would launch; rows are padded however small the product is."""
    made: list[Launch] = []

    def launch(kernel: str, programs: int, arguments: tuple[Any, ...], x: Tensor, constants: dict[str, Any]) -> None:
        kind = triton.language.float64 if x.dtype == torch.float64 else triton.language.float32
        made.append(Launch(kernel, arguments, constants | {"KIND": kind, "enable_fp_fusion": True}))

    monkeypatch.setattr(backend, "launch", launch)
    monkeypatch.setattr(triton_plan, "PADDED_BYTES", 0)
    return made


def product(what: str, width: int, dtype: torch.dtype, heads: int, index: torch.dtype, hub: bool) -> None:
    lengths = torch.tensor([500 if hub else 16] + [16] * 99)
    crow = torch.cat((lengths.new_zeros(1), lengths.cumsum(0))).to(index)
    a = Csr(crow, torch.zeros(int(crow[-1]), dtype=index))
    many = (heads,) if heads else ()
    values, x = (torch.zeros(size, dtype=dtype) for size in ((a.col.numel(), *many), (100, *many, width)))
    engine = backend.Triton()
    if what == "product":
        engine.spmm(a, values, x)
    elif what == "sampled":
        engine.sddmm(a, x, x)
    else:
        engine.gradients(a, a, a.col[:0] if what == "symmetric" else a.col, values, x, x)


def compiled(launch: Launch, capability: int) -> Made:
    """Compiles with the specializations of a call: 1 is a constant, multiples of 16 are known to be such."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gebt.sparse.backends import triton_kernels

    function = getattr(triton_kernels, launch.kernel)
    options = {name: launch.constants[name] for name in ("num_warps", "enable_fp_fusion")}
    constants = {name: value for name, value in launch.constants.items() if name not in options}
    types, hints = dict.fromkeys(constants, "constexpr"), {}
    # Constants follow the arguments.
    for place, (parameter, value) in enumerate(zip(function.params, launch.arguments, strict=False)):
        specialized = isinstance(value, Tensor) or not parameter.do_not_specialize
        types[parameter.name] = f"*{TYPES[value.dtype]}" if isinstance(value, Tensor) else "i32"
        if isinstance(value, Tensor) or (specialized and value % 16 == 0):
            hints[(place,)] = [["tt.divisibility", 16]]
        elif specialized and value == 1:
            types[parameter.name], constants[parameter.name] = "constexpr", 1
    source = ASTSource(function, {name: types[name] for name in function.arg_names}, constants, hints)
    made = triton.compile(source, GPUTarget("cuda", capability, 32), options)
    return read(made.asm["cubin"], made.asm["ptx"])


def read(cubin: bytes, ptx: str) -> Made:
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    file = Path(os.environ["TRITON_CACHE_DIR"], "kernel.cubin")
    file.write_bytes(cubin)
    usage, code = (
        subprocess.run([tools / tool, *words, file], capture_output=True, text=True, check=True).stdout
        for tool, *words in (("cuobjdump", "-res-usage"), ("nvdisasm",))
    )
    numbers = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    return Made(*numbers, ptx, code)


def check(made: Made) -> None:
    assert made.registers <= 255
    assert (made.stack, made.local) == (0, 0)
    assert not re.search(r"\b(LDL|STL)\b", made.code), "registers are spilled to memory"
    assert not re.search(r"\b(atom|red)\.", made.ptx), "sums in no order"


CASES = [
    *(("product", width, FLOAT) for width in (4, 7, 40, 130, 257)),
    *(("product", width, HALF) for width in (7, 128)),
    *(("permuted", width, FLOAT) for width in (7, 64, 1000)),
    *(("symmetric", width, dtype) for width, dtype in ((128, FLOAT), (41, HALF))),
    *(("sampled", width, dtype) for width, dtype in ((7, HALF), (128, FLOAT))),
]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("what", "width", "dtype"), CASES, ids=str)
def test_rows_are_loaded_128_bits_at_once_and_nothing_is_spilled(
    what: str, width: int, dtype: torch.dtype, capability: int, launches: list[Launch]
) -> None:
    product(what, width, dtype, 0, torch.int32, hub=True)
    made = compiled(launches[0], capability)
    check(made)
    constants = launches[0].constants
    numbers = constants["ROWS"] * constants["ENTRIES"] * constants["COLUMNS"]
    # All of them: a turn of a program fetches that much of x.
    loads = numbers * dtype.itemsize // (16 * 32 * constants["num_warps"])
    assert len(re.findall(r"\bld\.global[\w.:]*\.v4\.b32", made.ptx)) >= loads >= 4
    assert len(re.findall(r"\bLDG\.E[\w.]*\.128", made.code)) >= loads


@pytest.mark.parametrize(
    ("what", "width", "dtype", "heads", "index"),
    [("permuted", 512, DOUBLE, 8, torch.int64), ("product", 8, FLOAT, 8, torch.int32),
     ("permuted", 1, FLOAT, 0, torch.int32), ("sampled", 2048, HALF, 2, torch.int64)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("hub", [False, True], ids=["rows", "runs"])
def test_other_kernels_spill_nothing(
    what: str, width: int, dtype: torch.dtype, heads: int, index: torch.dtype, hub: bool, launches: list[Launch]
) -> None:
    product(what, width, dtype, heads, index, hub)
    assert [launch.kernel for launch in launches[1:]] == (["join_parts"] if hub and what != "sampled" else [])
    for launch in launches:
        check(compiled(launch, 90))


@pytest.mark.parametrize("nodes", [9, 200], ids=["rows", "runs"])
def test_the_kernels_of_the_normalization_spill_nothing(nodes: int, launches: list[Launch]) -> None:
    star = torch.stack((torch.zeros(nodes - 1, dtype=torch.long), torch.arange(1, nodes)))
    edges = Edges.from_pairs(star, nodes)
    places = (edges.pattern.crow, edges.pattern.col, edges.source, edges.places, *edges.pairs)
    scale, values = triton_normalization.forward(PairEntries(*places), torch.ones(nodes - 1))[1], torch.ones(nodes - 1)
    triton_normalization.backward(PairEntries(*places), values, scale, torch.ones(edges.pattern.nnz))
    parts = ["join_parts"] if nodes > 9 else []
    expected = ["row_sums", *parts, "normalized_entries", "pair_sums", "row_sums", *parts, "pair_gradients"]
    assert [launch.kernel for launch in launches] == expected
    for launch in launches:
        if launch.kernel != "join_parts":
            check(compiled(launch, 90))


@pytest.mark.parametrize(("dtype", "heads", "highest"), [(FLOAT, 1, True), (HALF, 8, False), (DOUBLE, 300, True)])
def test_the_reductions_spill_nothing(dtype: torch.dtype, heads: int, highest: bool, launches: list[Launch]) -> None:
    crow = torch.tensor([0, 200, 216], dtype=torch.int32)
    triton_reduction.row_reduce(crow, torch.ones(216, heads, dtype=dtype), highest=highest)
    assert [launch.kernel for launch in launches] == ["reduced_rows", "join_parts"]
    for launch in launches:
        check(compiled(launch, 90))
