"""Backends of the sparse products: one contract, several engines, and a choice by measurement.

`use("compiled")` sets the engine of the process; the default is "torch-csr". "auto" times every engine that can do a
product on the first such product it meets, keeps the fastest whose result agrees, and says so (`choices`, logger
"gebt.sparse"). A product is "such" by its device, types, width, heads, threads and wanted gradients, and by its rows,
columns and entries to within a factor of two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gebt.sparse.backends.base import Backend as Backend
from gebt.sparse.backends.base import BackendError as BackendError
from gebt.sparse.backends.base import Csr as Csr
from gebt.sparse.backends.compiled import Compiled
from gebt.sparse.backends.oracles import Dense, Scipy
from gebt.sparse.backends.timing import median_seconds
from gebt.sparse.backends.torch_csr import TorchCsr
from gebt.sparse.backends.torch_sparse import TorchSparse
from gebt.sparse.backends.triton import BACKEND as TRITON

DEFAULT, AUTO = "torch-csr", "auto"
ORACLES = ("dense", "scipy")
BACKENDS: dict[str, Backend] = {b.name: b for b in (TorchCsr(), Compiled(), TorchSparse(), TRITON, Dense(), Scipy())}
NAMES = (AUTO, *BACKENDS)

# Relative to the largest entry of the result; engines sum in different orders.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}

log = logging.getLogger("gebt.sparse")


class Product(NamedTuple):
    """A product y = A x that an engine is wanted for, with the gradients that will be asked of it.

    `transposed` and `permutation` as in `Backend.gradients`, read where `to_x`. Of `x` only shape, type and device
    count.
    """

    a: Csr
    transposed: Csr
    permutation: Tensor
    x: Tensor
    to_values: bool
    to_x: bool


@dataclass(frozen=True)
class Choice:
    """What "auto" found for one kind of product: median seconds of every engine that agreed, and the fastest.

    `dropped` says of every other engine that takes such tensors why it is out of question.
    """

    rows: int
    columns: int
    entries: int
    width: int
    heads: int
    gradients: str
    seconds: dict[str, float]
    dropped: dict[str, str]
    chosen: str

    def __str__(self) -> str:
        times = [f"{name} {1e3 * value:.3f} ms" for name, value in self.seconds.items()]
        found = ", ".join(times + [f"{name} dropped: {why}" for name, why in self.dropped.items()])
        width = f"width {self.width}" + (f" x {self.heads} heads" if self.heads > 1 else "")
        shape = f"{self.rows} x {self.columns}, {self.entries} entries, {width}"
        return f"sparse product {shape}, gradients {self.gradients}: {self.chosen} ({found})"


_current = DEFAULT
_choices: dict[tuple[object, ...], Choice] = {}


def find(name: str) -> Backend:
    """The backend of that name; raises `BackendError` for an unknown one, and how to get one that is not here."""
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
    global _current
    before = _current
    use(name)
    try:
        yield
    finally:
        _current = before


def current() -> str:
    """The name that `use` set."""
    return _current


def choices() -> list[dict[str, object]]:
    """What "auto" has chosen in this process so far, and by which times (for a record)."""
    return [asdict(choice) for choice in _choices.values()]


def engine(product: Product) -> Backend:
    """The engine of a product; raises `BackendError` when none, or not the one in use, takes its tensors.

    A function that `torch.compile` traces cannot stop and measure: there "auto" is the default engine.
    """
    if _current == AUTO and not torch.compiler.is_compiling():
        return BACKENDS[_chosen(product).chosen]
    name, x = DEFAULT if _current == AUTO else _current, product.x
    if not BACKENDS[name].supports(x.device, x.dtype):
        raise BackendError(
            f"backend {name!r} (got {x.dtype} on {x.device}), expected a type and device it multiplies; "
            "convert the tensors or use another backend"
        )
    return BACKENDS[name]


def _chosen(product: Product) -> Choice:
    a, x = product.a, product.x
    size = (a.rows.bit_length(), x.shape[0].bit_length(), a.col.numel().bit_length())
    wanted = (product.to_values, product.to_x, product.permutation.numel() > 0)
    key = (*size, x.device, x.dtype, a.col.dtype, *x.shape[1:], *wanted, torch.get_num_threads())
    if key not in _choices:
        _choices[key] = _measure(product)
        log.info("%s", _choices[key])
    return _choices[key]


def _measure(product: Product) -> Choice:
    a, x = product.a, product.x
    work = {
        backend.name: _work(backend, product)
        for backend in BACKENDS.values()
        if backend.name not in ORACLES and backend.missing() is None and backend.supports(x.device, x.dtype)
    }
    expected: tuple[Tensor, ...] | None = None
    seconds: dict[str, float] = {}
    dropped: dict[str, str] = {}
    for name, run in work.items():
        try:
            found = run()
        except Exception as error:
            # An engine that breaks here is one that is not chosen; the record and the log say so.
            dropped[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        expected = found if expected is None else expected
        if _agree(found, expected):
            seconds[name] = median_seconds(run, x.device)
        else:
            dropped[name] = "its result differs"
    if not seconds:
        why = "".join(f"; {name} failed with {error}" for name, error in dropped.items())
        raise BackendError(f"sparse product (got {x.dtype} on {x.device}), expected what some backend takes{why}")
    gradients = " and ".join(name for name, wish in (("values", product.to_values), ("x", product.to_x)) if wish)
    shape = (a.rows, x.shape[0], a.col.numel(), x.shape[-1], x.shape[1] if x.dim() == 3 else 1)
    return Choice(*shape, gradients or "none", seconds, dropped, min(seconds, key=lambda name: seconds[name]))


def _work(backend: Backend, product: Product) -> Callable[[], tuple[Tensor, ...]]:
    """The product with all its wanted gradients, on numbers of its own: those at hand may all be zero."""
    a, transposed, permutation, like, to_values, to_x = product
    generator = torch.Generator(like.device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)

    values, tvalues = (drawn(a.col.numel(), *like.shape[1:-1]) for _ in range(2))
    x = drawn(*like.shape)
    # Without a permutation A = A^T and an engine may mirror the gradient of the values. With grad = x none shows it.
    grad = x if to_x and not permutation.numel() else drawn(a.rows, *like.shape[1:])

    def run() -> tuple[Tensor, ...]:
        y = backend.spmm(a, values, x)
        if to_values and to_x:
            return (y, *backend.gradients(a, transposed, permutation, tvalues, x, grad))
        if to_values:
            return y, backend.sddmm(a, grad, x)
        return (y, backend.spmm(transposed, tvalues, grad)) if to_x else (y,)

    return run


def _agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    for ours, right in zip(found, expected, strict=True):
        scale = float(right.abs().max()) if right.numel() else 0.0
        same = ours.shape == right.shape and ours.dtype == right.dtype
        if not same or not torch.allclose(ours, right, rtol=0.0, atol=TOLERANCE[right.dtype] * max(scale, 1e-30)):
            return False
    return True
