"""Which backend multiplies: named by the user, or found by measurement."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gebt import _numba
from gebt.sparse import Pattern, sddmm, spmm
from gebt.sparse import backends as room
from gebt.sparse.backends import BACKENDS, ORACLES, Backend, BackendError, Csr, choices, current, timing, use, using
from gebt.sparse.backends.torch_sparse import _load
from tests.pretend_cuda import pretend_cuda

MakePattern = Callable[..., Pattern]
WANTED = [(False, False), (True, False), (False, True), (True, True)]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_choices", {})
    monkeypatch.setattr(room, "_current", room.DEFAULT)


@pytest.fixture
def import_of_torch_sparse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Makes these lines what the import of torch_sparse runs."""

    def lines(text: str) -> None:
        (tmp_path / "torch_sparse.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        # Set and deleted, so that what stands there after the import goes with the test.
        monkeypatch.setitem(sys.modules, "torch_sparse", None)
        monkeypatch.delitem(sys.modules, "torch_sparse")
        monkeypatch.setattr(BACKENDS["torch-sparse"], "missing", lambda: None)
        _load.cache_clear()

    yield lines
    _load.cache_clear()


class Fake(Backend):
    """The dense oracle with `spoil` done to one product; each takes `delay` seconds of a clock made up."""

    clock = 0.0

    def __init__(
        self, name: str, delay: float = 0.001, spoiled: str = "", spoil: Callable[[Tensor], object] = id
    ) -> None:
        self.name, self.delay, self.spoiled, self.spoil, self.calls = name, delay, spoiled, spoil, 0

    def missing(self) -> str | None:
        return None

    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        return dtype == torch.float32

    def _do(self, product: str, *arguments: Tensor | Csr) -> Tensor:
        self.calls += 1
        Fake.clock += self.delay
        result = getattr(BACKENDS["dense"], product)(*arguments)
        return self.spoil(result) if product == self.spoiled else result  # type: ignore[return-value]

    def spmm(self, a: Csr, values: Tensor, x: Tensor) -> Tensor:
        return self._do("spmm", a, values, x)

    def sddmm(self, a: Csr, left: Tensor, right: Tensor) -> Tensor:
        return self._do("sddmm", a, left, right)


class Mirroring(Fake):
    """Leaves out the permutation, as is right for a symmetric matrix alone."""

    def gradients(
        self, a: Csr, turned: Csr, permutation: Tensor, tvalues: Tensor, x: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.spmm(turned, tvalues, grad), self.sddmm(turned, x, grad)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Fake]]:
    """Makes the given backends the only ones beside the oracles."""

    def install(*fakes: Fake) -> list[Fake]:
        for name in [name for name in BACKENDS if name not in ORACLES]:
            monkeypatch.delitem(BACKENDS, name)
        for fake in fakes:
            monkeypatch.setitem(BACKENDS, fake.name, fake)
        # However busy the machine is, a call takes as long as the fake says.
        monkeypatch.setattr(timing, "_now", lambda _: Fake.clock)
        return list(fakes)

    return install


def multiply(
    pattern: Pattern, width: int = 4, heads: int = 0, wanted: tuple[bool, bool] = (True, True), symmetric: bool = False
) -> tuple[Tensor, ...]:
    generator, many = torch.Generator().manual_seed(0), (heads,) if heads else ()
    values = torch.randn(pattern.nnz, *many, generator=generator).requires_grad_(wanted[0])
    x = torch.randn(pattern.shape[1], *many, width, generator=generator).requires_grad_(wanted[1])
    out = spmm(pattern, values, x, symmetric=symmetric)
    inputs = [tensor for tensor in (values, x) if tensor.requires_grad]
    return (out, *(torch.autograd.grad(out.square().sum(), inputs) if inputs else ()))


def test_the_engine_is_what_was_last_asked_for() -> None:
    assert current() == "torch-csr"
    with using("dense"):
        assert current() == "dense"
        with pytest.raises(KeyError), using("scipy"):
            raise KeyError
        assert current() == "dense"
        use("auto")
        assert current() == "auto"
    assert current() == "torch-csr"


def test_the_engine_in_use_is_the_one_that_multiplies(
    only: Callable[..., list[Fake]], make_pattern: MakePattern
) -> None:
    one, other = only(Fake("one"), Fake("other"))
    with using("one"):
        multiply(make_pattern(5, 4, 9))
    assert (one.calls, other.calls) == (3, 0)


def test_the_engine_of_the_product_is_that_of_its_gradients(
    only: Callable[..., list[Fake]], make_pattern: MakePattern
) -> None:
    one, other = only(Fake("one"), Fake("other"))
    x = torch.rand(4, 2, requires_grad=True)
    with using("one"):
        out = spmm(make_pattern(5, 4, 9), torch.rand(9), x)
    with using("other"):
        out.sum().backward()
    assert (one.calls, other.calls) == (2, 0)


def test_a_name_that_no_backend_has_is_refused() -> None:
    with pytest.raises(
        BackendError, match=r"backend \(got 'cusp'\), expected one of auto, torch-csr, compiled, torch-s"
    ):
        use("cusp")
    assert current() == "torch-csr"


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("compiled", "gebt._numba", r"numba is not installed; pip install 'gebt\[compiled\]'"),
        (
            "torch-sparse",
            "gebt.sparse.backends.torch_sparse",
            "pip install --no-build-isolation torch-scatter torch-sp",
        ),
        (
            "triton",
            "gebt.sparse.backends.triton",
            "Triton is not installed; it comes with torch's CUDA builds for Linux",
        ),
        ("scipy", "gebt.sparse.backends.oracles", "pip install scipy"),
    ],
)
def test_a_backend_that_is_not_here_says_how_to_get_it(
    name: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _numba.missing.cache_clear()
    monkeypatch.setattr(f"{module}.find_spec", lambda _: None)
    try:
        with pytest.raises(BackendError, match=rf"backend '{name}' \(got none here: .*{message}.*or choose 'auto'"):
            use(name)
    finally:
        _numba.missing.cache_clear()
    assert current() == "torch-csr"


def test_triton_without_a_gpu_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebt.sparse.backends.triton.find_spec", lambda _: object())
    monkeypatch.setattr("gebt.sparse.backends.triton._interpreted", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BackendError, match=r"backend 'triton' \(got none here: there is no CUDA device\)"):
        use("triton")


def test_a_type_that_the_engine_does_not_take_is_refused(make_pattern: MakePattern) -> None:
    pattern, half = make_pattern(5, 4, 9), partial(torch.ones, dtype=torch.float16)
    with pytest.raises(
        BackendError, match=r"backend 'torch-csr' \(got torch.float16 on cpu\), expected a type and dev"
    ):
        spmm(pattern, half(9), half(4, 2))
    with pytest.raises(
        BackendError, match=r"backend 'torch-csr' \(got torch.float16 on cpu\), expected a type and dev"
    ):
        sddmm(pattern, half(5, 2), half(4, 2))


def test_torch_sparse_that_cannot_be_imported_says_what_to_do(
    make_pattern: MakePattern, import_of_torch_sparse: Callable[[str], None]
) -> None:
    # An extension that was built for another torch: found, but its import ends with a missing symbol.
    import_of_torch_sparse("raise OSError('undefined symbol: _ZN\\nin libtorch')")
    message = (
        r"backend 'torch-sparse' \(got undefined symbol: _ZN\), expected it built for torch .*; pip install --no-b"
    )
    with using("torch-sparse"), pytest.raises(BackendError, match=message):
        multiply(make_pattern(5, 4, 9))


def test_what_the_import_of_torch_sparse_deprecates_stays_inside(import_of_torch_sparse: Callable[[str], None]) -> None:
    import_of_torch_sparse("import warnings\nwarnings.warn('old', DeprecationWarning)\nDONE = 1")
    _load()  # warnings are errors here
    assert sys.modules["torch_sparse"].DONE


def test_auto_takes_the_fastest_of_those_that_agree(
    only: Callable[..., list[Fake]], make_pattern: MakePattern, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = Fake("wrong", spoiled="spmm", spoil=lambda y: y * 1.001)
    broken = Fake("broken", spoiled="sddmm", spoil=lambda _: torch.ones(2, 3) @ torch.ones(2, 3))
    only(Fake("slow", delay=0.02), Fake("fast"), wrong, broken)
    state = torch.get_rng_state()
    with using("auto"), caplog.at_level(logging.INFO, logger="gebt.sparse"):
        multiply(make_pattern(50, 40, 600))
    assert torch.equal(torch.get_rng_state(), state)
    (choice,) = choices()
    assert choice["chosen"] == "fast"
    seconds, dropped = choice["seconds"], choice["dropped"]
    assert isinstance(seconds, dict)
    assert isinstance(dropped, dict)
    assert set(seconds) == {"slow", "fast"}
    assert (seconds["slow"], seconds["fast"]) == pytest.approx((0.06, 0.003))
    assert dropped["wrong"] == "its result differs"
    assert dropped["broken"].startswith("RuntimeError: mat1 and mat2 shapes")
    assert [choice[size] for size in ("rows", "columns", "entries", "width", "heads")] == [50, 40, 600, 4, 1]
    (record,) = caplog.records
    assert record.name == "gebt.sparse"
    line = record.getMessage()
    assert line.startswith("sparse product 50 x 40, 600 entries, width 4, gradients values and x: fast (slow ")
    assert "wrong dropped: its result differs" in line
    assert "\n" not in line


@pytest.mark.parametrize("size", [(50, 40, 600), (30, 30, 200)])
@pytest.mark.parametrize(
    ("product", "wanted"), [("spmm", (False, False)), ("spmm", (False, True)), ("sddmm", (True, False))]
)
def test_auto_sees_what_is_wrong_in_any_product(
    product: str,
    wanted: tuple[bool, bool],
    size: tuple[int, int, int],
    only: Callable[..., list[Fake]],
    make_pattern: MakePattern,
) -> None:
    spoils: list[Callable[[Tensor], object]] = [
        lambda y: y + 0.01, lambda y: y.flip(0), lambda y: y * torch.nan, lambda y: y.double(), lambda y: y[:-1],
    ]  # fmt: skip
    fakes = [Fake(f"wrong {number}", spoiled=product, spoil=spoil) for number, spoil in enumerate(spoils)]
    only(Fake("right", delay=0.05), *fakes)
    with using("auto"):
        multiply(make_pattern(*size), wanted=wanted)
        assert [choice["chosen"] for choice in choices()] == ["right"]


def test_auto_lets_only_a_symmetric_product_mirror_its_gradients(
    only: Callable[..., list[Fake]], make_pattern: MakePattern
) -> None:
    only(Fake("right", delay=0.05), Mirroring("mirroring"))
    linked = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) < 0.2
    pattern, _ = Pattern.from_entries(*(linked | linked.t()).nonzero(as_tuple=True), (12, 12))
    with using("auto"):
        multiply(make_pattern(12, 12, pattern.nnz))
        multiply(pattern, symmetric=True)
    assert [choice["chosen"] for choice in choices()] == ["right", "mirroring"]


def test_auto_chooses_once_for_every_kind_of_product(
    only: Callable[..., list[Fake]], make_pattern: MakePattern
) -> None:
    (one,) = only(Fake("one"))
    with using("auto"):
        multiply(make_pattern(20, 20, 100))
        assert (len(choices()), one.calls) == (1, 3 * (1 + timing.REPEATS) + 3)
        for same in [(20, 20, 100), (20, 20, 127), (17, 31, 64)]:
            calls = one.calls
            multiply(make_pattern(*same))
            assert (len(choices()), one.calls) == (1, calls + 3)
        for number, other in enumerate([(20, 20, 128), (40, 20, 100), (20, 40, 100)]):
            multiply(make_pattern(*other))
            assert len(choices()) == 2 + number
        multiply(make_pattern(20, 20, 100), width=5)
        multiply(make_pattern(20, 20, 100), heads=2)
        for wanted in WANTED:
            multiply(make_pattern(20, 20, 100), wanted=wanted)
        assert len(choices()) == 4 + 2 + 3
    assert {choice["gradients"] for choice in choices()} == {"none", "values", "x", "values and x"}
    assert "width 4 x 2 heads" in str(list(room._choices.values())[5])


def test_auto_with_nothing_to_choose_from_says_why(only: Callable[..., list[Fake]], make_pattern: MakePattern) -> None:
    only(Fake("broken", spoiled="spmm", spoil=lambda _: torch.ones(2, 3) @ torch.ones(2, 3)))
    pattern = make_pattern(5, 4, 9)
    with using("auto"):
        with pytest.raises(
            BackendError, match=r"sparse product \(got torch.float64 on cpu\), expected what some backend"
        ):
            spmm(pattern, torch.ones(9).double(), torch.ones(4, 2).double())
        with pytest.raises(BackendError, match=r"some backend takes; broken failed with RuntimeError: mat1 and mat2"):
            multiply(pattern)
    assert choices() == []


@pytest.mark.parametrize("heads", [0, 2])
@pytest.mark.parametrize("wanted", WANTED)
def test_auto_drops_none_of_our_backends_and_gives_right_numbers(
    wanted: tuple[bool, bool], heads: int, make_pattern: MakePattern
) -> None:
    linked = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)) < 0.2
    symmetric, _ = Pattern.from_entries(*(linked | linked.t()).nonzero(as_tuple=True), (30, 30))
    here = {
        name for name, backend in BACKENDS.items()
        if name not in ORACLES and not backend.missing() and backend.supports(torch.device("cpu"), torch.float32)
    }  # fmt: skip
    for pattern in (make_pattern(40, 25, 300), make_pattern(30, 30, 400), symmetric):
        with using("dense"):
            expected = multiply(pattern, 5, heads, wanted)
        with using("auto"):
            torch.testing.assert_close(multiply(pattern, 5, heads, wanted), expected)
    with using("auto"):
        multiply(symmetric, 6, heads, wanted, symmetric=True)
        sddmm(symmetric, torch.ones(30, 7), torch.ones(30, 7))
    for choice in choices():
        assert choice["dropped"] == {}
        assert choice["seconds"].keys() == here  # type: ignore[attr-defined]
    assert len(choices()) >= 4


def test_triton_is_not_for_gpus_that_it_does_not_compile_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebt.sparse.backends.triton.find_spec", lambda _: object())
    with pretend_cuda():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
        reason = "the device has compute capability 7.5, and Triton compiles for 8.0 and newer"
        assert BACKENDS["triton"].missing() == reason
