"""What can be said of the Triton kernels without a GPU, beside their numbers (see test_backends)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.sparse.backends import BACKENDS, BackendError, Csr
from gebt.sparse.backends import triton as backend


@pytest.mark.parametrize("widest", [backend.WIDEST_BLOCK, backend.WIDEST_FUSED])
@pytest.mark.parametrize("mean", [0, 1, 5, 32, 33, 10**6])
@pytest.mark.parametrize("width", [1, 2, 3, 16, 17, 100, 128, 129, 512, 513])
def test_a_program_takes_powers_of_two_and_no_more_than_its_registers_hold(width: int, mean: int, widest: int) -> None:
    rows = 3
    entries = torch.empty(1, dtype=torch.int32).expand(rows * mean)
    tile = backend._tile(Csr(torch.empty(rows + 1, dtype=torch.int32), entries), width, widest)
    assert all(number & (number - 1) == 0 for number in tile.values())
    assert tile["COLUMNS"] == min(widest, 1 << (width - 1).bit_length())
    size = tile["ROWS"] * tile["ENTRIES"] * tile["COLUMNS"]
    # At most 16 numbers a thread, and no warp without its share.
    assert 32 * tile["num_warps"] <= max(32, size) <= 16 * 32 * tile["num_warps"]


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


@pytest.mark.skipif(bool(os.environ.get("TRITON_INTERPRET")), reason="the interpreter does not compile")
@pytest.mark.parametrize(
    ("kernel", "index", "scalar", "constants"),
    [
        ("sums", "i32", "bf16", {"DOTS": False, "PERMUTED": False, "ROWS": 2, "ENTRIES": 4, "COLUMNS": 128}),
        ("sums", "i64", "fp64", {"DOTS": True, "PERMUTED": True, "ROWS": 16, "ENTRIES": 32, "COLUMNS": 2}),
        ("products", "i32", "fp32", {"ROWS": 1, "ENTRIES": 8, "COLUMNS": 128}),
    ],
)
def test_kernels_compile_for_a_gpu(
    kernel: str, index: str, scalar: str, constants: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gebt.sparse.backends import triton_kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_kernels, kernel)
    constants = constants | {"KIND": triton.language.float64 if scalar == "fp64" else triton.language.float32}
    types = dict.fromkeys(("crow", "col", "permutation"), f"*{index}")
    types |= dict.fromkeys(("values", "x", "out", "own", "dots", "left", "right"), f"*{scalar}")
    types |= dict.fromkeys(("rows", "heads", "width", "blocks"), "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(function, {name: types[name] for name in function.arg_names}, constants)
    made = triton.compile(source, GPUTarget("cuda", 90, 32), {"num_warps": 4, "enable_fp_fusion": True})
    assert made.asm["cubin"]
    assert "atom" not in made.asm["ptx"]
