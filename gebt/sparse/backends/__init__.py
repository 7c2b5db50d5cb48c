"""Backends of the sparse products: one contract, several engines, and a choice by measurement.

`use("compiled")` sets the engine of the process; the default is "torch-csr". "auto" times every engine that can do a
product on the first such product it meets, keeps the fastest whose result agrees, and says so (`choices`, logger
"gebt.sparse"). A product is "such" by its device, types, width, heads and wanted gradients, and by its rows
and entries to within a factor of two.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from gebt.sparse.backends.base import Backend as Backend
from gebt.sparse.backends.base import BackendError as BackendError
from gebt.sparse.backends.base import Csr as Csr
from gebt.sparse.backends.compiled import Compiled
from gebt.sparse.backends.oracles import Dense, Scipy
from gebt.sparse.backends.torch_csr import TorchCsr
from gebt.sparse.backends.torch_sparse import TorchSparse
from gebt.sparse.backends.triton import Triton

DEFAULT, AUTO = "torch-csr", "auto"
ORACLES = ("dense", "scipy")
BACKENDS: dict[str, Backend] = {b.name: b for b in (TorchCsr(), Compiled(), TorchSparse(), Triton(), Dense(), Scipy())}
NAMES = (AUTO, *BACKENDS)

# Relative to the largest entry of the result; engines sum in different orders.
AGREEMENT = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
REPEATS = 3

log = logging.getLogger("gebt.sparse")


@dataclass(frozen=True)
class Choice:
    """What "auto" found for one kind of product: seconds (medians) of every engine that agreed, and the fastest."""

    rows: int
    columns: int
    entries: int
    width: int
    heads: int
    gradients: str
    seconds: dict[str, float]
    chosen: str

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1e3 * value:.3f} ms" for name, value in self.seconds.items())
        shape = f"{self.rows} x {self.columns}, {self.entries} entries, width {self.width}"
        return f"sparse product {shape}, gradients {self.gradients}: {self.chosen} ({times})"


_current = DEFAULT
_choices: dict[tuple[object, ...], Choice] = {}


def find(name: str) -> Backend:
    """The backend of that name; raises `BackendError` for an unknown one, or one that is not here with how to get it."""
    if name not in BACKENDS:
        raise BackendError(f"backend (got {name!r}), expected one of {', '.join(NAMES)}")
    if (missing := BACKENDS[name].missing()) is not None:
        raise BackendError(f"backend {name!r} (got none here: {missing}), expected it to be usable; or choose 'auto'")
    return BACKENDS[name]


def use(name: str) -> None:
    """Makes `name` the engine of all products of this process; raises `BackendError` as `find`."""
    global _current
    if name != AUTO:
        find(name)
    _current = name


@contextmanager
def using(name: str) -> Iterator[None]:
    """`use(name)` inside the block, what was used before after it."""
    before = _current
    use(name)
    try:
        yield
    finally:
        use(before)


def current() -> str:
    """The name that `use` set."""
    return _current


def choices() -> list[dict[str, object]]:
    """What "auto" has chosen in this process so far, and by which times (for a record)."""
    return [asdict(choice) for choice in _choices.values()]


def engine(a: Csr, values: Tensor, x: Tensor, *, to_values: bool, to_x: bool) -> Backend:
    """The engine for y = A x with the wanted gradients; raises `BackendError` when it does not take these tensors."""
    if _current == AUTO:
        return BACKENDS[_chosen(a, values, x, to_values, to_x).chosen]
    backend = BACKENDS[_current]
    if not backend.supports(x.device, x.dtype):
        raise BackendError(f"backend {_current!r} (got {x.dtype} on {x.device}), expected another type or 'auto'")
    return backend


def _chosen(a: Csr, values: Tensor, x: Tensor, to_values: bool, to_x: bool) -> Choice:
    size = (a.rows.bit_length(), x.shape[0].bit_length(), a.col.numel().bit_length())
    key = (*size, x.device.type, x.dtype, a.col.dtype, *x.shape[1:], to_values, to_x, torch.get_num_threads())
    if key not in _choices:
        _choices[key] = _measure(a, values.detach(), x.detach(), to_values, to_x)
        log.info("%s", _choices[key])
    return _choices[key]


def _measure(a: Csr, values: Tensor, x: Tensor, to_values: bool, to_x: bool) -> Choice:
    usable = [
        b for b in BACKENDS.values()
        if b.name not in ORACLES and b.missing() is None and b.supports(x.device, x.dtype)
    ]  # fmt: skip
    if not usable:
        raise BackendError(f"no backend takes {x.dtype} on {x.device}, expected float32 or float64")
    work = {b.name: _work(b, a, values, x, to_values, to_x) for b in usable}
    expected = work[usable[0].name]()
    seconds = {name: _median(run) for name, run in work.items() if _agree(run(), expected)}
    wanted = " and ".join([name for name, wish in (("values", to_values), ("x", to_x)) if wish]) or "none"
    heads = x.shape[1] if x.dim() == 3 else 1
    shape = (a.rows, x.shape[0], a.col.numel(), x.shape[-1], heads)
    return Choice(*shape, wanted, seconds, min(seconds, key=lambda name: seconds[name]))


def _work(
    backend: Backend, a: Csr, values: Tensor, x: Tensor, to_values: bool, to_x: bool
) -> Callable[[], tuple[Tensor, ...]]:
    # The transpose is not at hand here and has the same entries, so A stands in for it: same work, same answer for all.
    grad = x.new_ones(a.rows, *x.shape[1:])
    side = x.new_ones(max(a.rows, x.shape[0]), *x.shape[1:])

    def run() -> tuple[Tensor, ...]:
        y = backend.spmm(a, values, x)
        if to_values and to_x and a.rows == x.shape[0]:
            return (y, *backend.gradients(a, a, a.col[:0], values, x, grad))
        results = [y]
        if to_values:
            results.append(backend.sddmm(a, grad, x))
        if to_x:
            results.append(backend.spmm(a, values, side[: x.shape[0]]))
        return tuple(results)

    return run


def _agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    for ours, right in zip(found, expected, strict=True):
        scale = float(right.abs().max()) if right.numel() else 0.0
        if not torch.allclose(ours, right, rtol=0.0, atol=AGREEMENT[right.dtype] * max(scale, 1e-30), equal_nan=True):
            return False
    return True


def _median(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[REPEATS // 2]
