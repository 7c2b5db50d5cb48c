"""ReLU and dropout by Triton, under its interpreter and compiled for GPUs that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gebt.models import dropout as module
from gebt.models.dropout import dropout

triton = pytest.importorskip("triton")
from gebt.models import dropout_triton, dropout_triton_kernels  # noqa: E402 - after what skips it

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter, in a process of its own")


@interpreted
class TestInterpreted:
    @pytest.fixture(autouse=True)
    def _on_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_by_triton", lambda x: True)
        # What a kernel forgets to write is NaN.
        monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, float("nan")))

    def kept(self, rate: float, count: int = 5000, seed: int = 7) -> Tensor:
        return dropout_triton.dropped(torch.ones(count), torch.tensor([seed]), rate, False) > 0

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
    def test_the_share_dropped_is_the_rate_in_each_quarter_of_a_program(self, rate: float) -> None:
        kept = self.kept(rate, 32 * 1024).view(8, 4, 1024).double()
        # 8192 entries each: five standard deviations.
        bound = 5 * (rate * (1 - rate) / 8192) ** 0.5
        assert (kept.mean((0, 2)) - (1 - rate)).abs().max() < bound
        lag = (kept.flatten()[1:] * kept.flatten()[:-1]).mean()
        assert abs(float(lag) - (1 - rate) ** 2) < bound

    def test_equal_seeds_drop_equal_entries_and_others_others(self) -> None:
        assert torch.equal(self.kept(0.5), self.kept(0.5))
        assert 0.4 < float((self.kept(0.5) == self.kept(0.5, seed=8)).double().mean()) < 0.6
        assert torch.equal(self.kept(0.5, 1500), self.kept(0.5)[:1500])

    @pytest.mark.parametrize("relu", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    def test_what_stays_is_scaled_and_the_gradient_goes_through_it(self, relu: bool, dtype: torch.dtype) -> None:
        x = torch.randn(7, 300, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        y = dropout(x, 0.25, True, relu=relu)
        (dx,) = torch.autograd.grad(y, x, torch.full_like(x, 3.0))
        stays = y != 0
        assert y.dtype == dx.dtype == dtype
        # The interpreter rounds to bfloat16 towards zero.
        error = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3}[dtype]
        torch.testing.assert_close(y.double(), torch.where(stays, x.double() / 0.75, 0.0), rtol=error, atol=0)
        torch.testing.assert_close(dx.double(), torch.where(stays, 4.0, 0.0).double(), rtol=error, atol=0)
        assert abs(float(stays.double().mean()) - 0.75 * (0.5 if relu else 1.0)) < 0.06
        assert not relu or bool((y >= 0).all())

    def test_nan_is_not_hidden_and_nothing_is_nothing(self) -> None:
        y = dropout(torch.full((64,), float("nan")), 0.5, True, relu=True)
        assert 0 < int(y.isnan().sum()) < 64
        assert dropout(torch.ones(0, 3), 0.5, True, relu=True).shape == (0, 3)

    def test_torchs_generator_seeds_it(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            first, second = (dropout(torch.ones(99), 0.5, True) for _ in range(2))
            torch.manual_seed(1)
            assert torch.equal(dropout(torch.ones(99), 0.5, True), first)
            assert not torch.equal(first, second)

    def test_any_layout_is_taken(self) -> None:
        x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).t().requires_grad_()
        y = dropout(x, 0.5, True)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(dx != 0, y != 0)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["drop", "positive"])
def test_the_kernels_load_128_bits_at_once(
    kernel: str, capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(dropout_triton_kernels, kernel)
    every = {"RELU": True, "KIND": triton.language.float32, "BLOCK": dropout_triton.BLOCK}
    constants = {name: value for name, value in every.items() if name in function.arg_names}
    types = {"seed": "*i64", "numbers": "i32", "threshold": "i32"} | dict.fromkeys(constants, "constexpr")
    types |= {name: "*bf16" for name in function.arg_names if name not in types}
    hints = {(place,): [["tt.divisibility", 16]] for place, name in enumerate(function.arg_names) if "*" in types[name]}
    source = ASTSource(function, {name: types[name] for name in function.arg_names}, constants, hints)
    made = triton.compile(source, GPUTarget("cuda", capability, 32), dropout_triton.OPTIONS)
    assert ".local" not in made.asm["ptx"]
    loads, stores = (len(re.findall(rf"\b{word}\.global[\w.:]*\.v4\.b32", made.asm["ptx"])) for word in ("ld", "st"))
    assert (loads, stores) >= ((4, 4) if kernel == "drop" else (2, 1))


@pytest.mark.skipif(INTERPRETED, reason="runs the tests of this file once more")
def test_the_numbers_are_right_under_the_interpreter() -> None:
    here = Path(__file__)
    command = ["-m", "pytest", "-x", "-k", "TestInterpreted", "-p", "no:cacheprovider", f"--confcutdir={here.parent}"]
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
