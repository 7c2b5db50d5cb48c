"""Section "products": every engine's sparse products beside the bytes that they must move."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_sections.setting import Setting, relative_error
from torch import Tensor
from torch.nn import functional as F

from gebt.graph import Edges
from gebt.sparse.backends import BACKENDS, Csr

# x of less than this may stay in the L2 cache from call to call: three are taken in turn.
CACHED_BYTES = 100 << 20
CHECKED = 1000
RIGHT = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ENGINES = ("torch-csr", "triton")


@dataclass(frozen=True)
class Matrix:
    """A sparse matrix and its transpose; an empty permutation says that it is its own (`Backend.gradients`)."""

    name: str
    a: Csr
    turned: Csr
    permutation: Tensor

    @property
    def entries(self) -> int:
        """E."""
        return self.a.col.numel()

    @property
    def symmetric(self) -> bool:
        """A = A^T."""
        return self.permutation.numel() == 0

    def row(self) -> Tensor:
        """Row of each entry, [E]."""
        counts = (self.a.crow[1:] - self.a.crow[:-1]).long()
        return torch.arange(self.a.rows, device="cuda").repeat_interleave(counts)


def uniform(rows: int, entries_a_row: int) -> Matrix:
    """Random columns, equally many in every row."""
    count = rows * entries_a_row
    crow = torch.arange(0, count + 1, entries_a_row, device="cuda", dtype=torch.int32)
    col = torch.randint(rows, (count,), device="cuda", dtype=torch.int32)
    order = col.sort(stable=True).indices
    tcrow = torch.zeros(rows + 1, device="cuda", dtype=torch.int32)
    tcrow[1:] = torch.bincount(col, minlength=rows).cumsum(0)
    turned = Csr(tcrow, (order // entries_a_row).int())
    return Matrix(f"uniform {rows} x {entries_a_row}", Csr(crow, col), turned, order.int())


def adjacency(name: str, edges: Edges) -> Matrix:
    """The adjacency of an undirected graph."""
    own = Csr(edges.pattern.crow, edges.pattern.col)
    return Matrix(name, own, own, own.col[:0])


def forward_bytes(matrix: Matrix, width: int, size: int) -> int:
    """Of y = A x when no row of x is still in a cache: an entry reads its row of x, its column and its value."""
    return matrix.entries * (size * width + 4 + size) + matrix.a.rows * (size * width + 4)


def gradient_bytes(matrix: Matrix, width: int, size: int) -> int:
    """Of both gradients in one pass: an entry's gradient is written too, a row reads x and writes dx."""
    entry = size * width + 4 + 2 * size + (0 if matrix.symmetric else 4)
    return matrix.entries * entry + matrix.a.rows * (2 * size * width + 4)


def products(setting: Setting) -> None:
    """A matrix of equal rows in two types, then the adjacency of ogbn-arxiv's surrogate with its longest rows."""
    sizes = setting.sizes
    matrix = uniform(sizes.rows, sizes.entries_a_row)
    for width, dtype in itertools.product(sizes.widths, (torch.float32, torch.bfloat16)):
        measure(setting, matrix, width, dtype)
        setting.forget()
    del matrix
    graph = setting.graph("ogbn-arxiv-surrogate")
    matrix = adjacency(graph.name, Edges.from_pairs(graph.pairs, graph.num_nodes))
    for width in (graph.num_classes, *sizes.widths[1:]):
        measure(setting, matrix, width, torch.float32, skewed=True)
        setting.forget()


def measure(setting: Setting, matrix: Matrix, width: int, dtype: torch.dtype, *, skewed: bool = False) -> None:
    """Both products of every engine, checked against double precision first; and what PyG and torch would do."""
    size = dtype.itemsize
    floors = [
        1e3 * count(matrix, width, size) / setting.bandwidth for count in (forward_bytes, gradient_bytes)
    ]  # of forward and gradients
    turns = 3 if matrix.a.rows * width * size < CACHED_BYTES else 1
    xs = [torch.randn(matrix.a.rows, width, device="cuda", dtype=dtype) for _ in range(turns)]
    grad, values = torch.randn_like(xs[0]), torch.randn(matrix.entries, device="cuda", dtype=dtype)
    tvalues = values if matrix.symmetric else values[matrix.permutation.long()]
    case = f"{matrix.name}, d = {width}, {str(dtype).removeprefix('torch.')}"
    found: dict[str, tuple[float, float]] = {}
    for name in ENGINES:
        why = BACKENDS[name].missing()
        if not BACKENDS[name].supports(torch.device(setting.home), dtype):
            why = f"no {dtype} on this device"
        if why is not None:
            setting.row(f"{case}: {name}", None, "ms", note=f"skipped: {why}")
            continue
        with setting.attempt(f"{case}: {name}"):
            error = _error(BACKENDS[name], matrix, setting.home, (values, tvalues, xs[0], grad))
            setting.row(f"{case}: {name}, error", error, "", most=RIGHT[dtype], exact=True)
            found[name] = _times(setting, BACKENDS[name], matrix, (values, tvalues, xs, grad))
    for name, times in found.items():
        lines = _lines(floors, found, skewed) if name == "triton" else (None, None)
        for what, ms, floor, most in zip(("forward", "gradients"), times, floors, lines, strict=True):
            setting.row(f"{case}: {name}, {what}", ms, "ms", floor=floor, most=most)
    _others(setting, matrix, case, (values, xs), floors[0])


def _lines(floors: list[float], found: dict[str, tuple[float, float]], skewed: bool) -> tuple[float, float]:
    """Pass lines of our kernels: close to the floor; both gradients in one pass well below cuSPARSE's two."""
    forward, gradients = 1.3 * floors[0], 1.5 * floors[1]
    if "torch-csr" not in found:
        return forward, gradients
    theirs, both = found["torch-csr"]
    return min(forward, theirs) if skewed else forward, min(gradients, 0.6 * both)


def _moved(matrix: Matrix, home: str) -> tuple[Csr, Csr, Tensor]:
    a, turned = (Csr(part.crow.to(home), part.col.to(home)) for part in (matrix.a, matrix.turned))
    return a, turned, matrix.permutation.to(home)


def _error(engine: Any, matrix: Matrix, home: str, tensors: tuple[Tensor, ...]) -> float:
    """The largest error in some rows of y and dx, the longest among them, and in some gradients of values."""
    values, tvalues, x, grad = (tensor.to(home) for tensor in tensors)
    a, turned, permutation = _moved(matrix, home)
    # Memory that a kernel forgets to write shall hold NaN.
    for like in (x, grad, values):
        torch.full_like(like, float("nan"))
    y = engine.spmm(a, values, x)
    dx, dvalues = engine.gradients(a, turned, permutation, tvalues, x, grad)
    errors = []
    for part, weights, dense, result in ((a, values, x, y), (turned, tvalues, grad, dx)):
        rows = _some_rows(part)
        right = torch.stack([_row_sum(part, weights, dense, row) for row in rows])
        errors.append(relative_error(result[torch.tensor(rows, device=home)], right))
    chosen = torch.randint(matrix.entries, (CHECKED,), device="cuda")
    r, c = (part[chosen].long().to(home) for part in (matrix.row(), matrix.a.col))
    direct, mirrored = ((grad[i].double() * x[j].double()).sum(1) for i, j in ((r, c), (c, r)))
    of_values = [relative_error(dvalues[chosen.to(home)], right) for right in (direct, mirrored)]
    errors.append(min(of_values) if matrix.symmetric else of_values[0])
    return max(errors) if all(error == error for error in errors) else float("nan")


def _some_rows(a: Csr) -> list[int]:
    lengths = a.crow[1:] - a.crow[:-1]
    return [int(lengths.argmax()), *torch.randint(a.rows, (20,)).tolist(), a.rows - 1]


def _row_sum(a: Csr, weights: Tensor, dense: Tensor, row: int) -> Tensor:
    begin, end = a.crow[row : row + 2].tolist()
    return weights[begin:end].double() @ dense[a.col[begin:end].long()].double()


def _times(
    setting: Setting, engine: Any, matrix: Matrix, tensors: tuple[Tensor, Tensor, list[Tensor], Tensor]
) -> tuple[float, float]:
    values, tvalues, xs, grad = tensors
    home = setting.home
    values, tvalues, grad = values.to(home), tvalues.to(home), grad.to(home)
    a, turned, permutation = _moved(matrix, home)
    x = itertools.cycle([one.to(home) for one in xs])
    return (
        setting.clock.ms(lambda: engine.spmm(a, values, next(x))),
        setting.clock.ms(lambda: engine.gradients(a, turned, permutation, tvalues, next(x), grad)),
    )


def _others(setting: Setting, matrix: Matrix, case: str, tensors: tuple[Tensor, list[Tensor]], floor: float) -> None:
    """The same product by torch's bags of embeddings, and as PyG does it with an edge index."""
    values, xs = tensors
    x, row, col, crow = itertools.cycle(xs), matrix.row(), matrix.a.col.long(), matrix.a.crow.long()[:-1]

    def by_messages() -> Tensor:
        messages = next(x).index_select(0, col).mul_(values.unsqueeze(1))
        return torch.zeros_like(xs[0]).index_add_(0, row, messages)

    works: dict[str, Callable[[], Tensor]] = {
        "embedding_bag": lambda: F.embedding_bag(col, next(x), crow, mode="sum", per_sample_weights=values),
        "gather and scatter": by_messages,
    }
    if matrix.entries * xs[0].shape[1] * xs[0].itemsize > 20e9:
        del works["gather and scatter"]
        setting.row(f"{case}: gather and scatter, forward", None, "ms", note="left out: its messages take over 20 GB")
    for name, work in works.items():
        with setting.attempt(f"{case}: {name}"):
            setting.row(f"{case}: {name}, forward", setting.clock.ms(work), "ms", floor=floor)
