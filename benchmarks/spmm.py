"""How fast is the sparse product with gradients to features and to edge values? Our engines beside torch-sparse, PyG
and native CSR, and how far from what memory allows.

python benchmarks/spmm.py [--floor] [--quick] [--json OUT]

"gebt" is the engine that "auto" chose by time. `--floor` runs the second half alone: forward, and both gradients in one
call, over the gather floor (16 random entries a row): (E (4 d + 8) + 2 N 4 d) bytes at the bandwidth of a copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from common import finish, in_turn, options
from torch import Tensor
from torch_geometric.nn import SimpleConv

from gebt.sparse import Pattern, backends, spmm
from gebt.sparse.backends import Csr

Product = Callable[[Pattern, Tensor, Tensor], Tensor]
Row = dict[str, Any]
PEERS = ("torch_sparse", "pyg_gather_scatter", "native_csr")
COLUMNS = ("half", "entries", "d", "backend", "engine", "forward_ms", "forward_backward_ms", "times_gebt",
           "gradients_ms", "forward_over_floor", "gradients_over_floor")  # fmt: skip


def skewed_pattern(nodes: int, entries: int, seed: int = 0) -> Pattern:
    """A random pattern whose degrees are skewed as those of real graphs (log-normal)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(nodes, generator=generator).exp()
    row, col = (torch.multinomial(weight, int(1.05 * entries), replacement=True, generator=generator) for _ in "ab")
    key = torch.unique(row * nodes + col)
    key = key[torch.randperm(key.numel(), generator=generator)[:entries]]
    return Pattern.from_entries(key // nodes, key % nodes, (nodes, nodes))[0]


def random_pattern(nodes: int, a_row: int, seed: int = 0) -> Pattern:
    """So many random entries in each row, sorted and different: sorted numbers moved apart by 0, 1, 2, ..."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(nodes - a_row + 1, (nodes, a_row), generator=generator).sort(1).values
    col = (drawn + torch.arange(a_row)).to(torch.int32).flatten()
    crow = torch.arange(0, nodes * a_row + 1, a_row, dtype=torch.int32)
    return Pattern(crow, col, (nodes, nodes))


def ours(name: str) -> Product:
    """The registered op with one engine: CSR product, stored transpose, sampled product for the values."""

    def product(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
        with backends.using(name):
            return spmm(pattern, values, x)

    return product


def torch_sparse(pattern: Pattern) -> Product:
    """torch-sparse's own matrix, all that it caches filled in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch_sparse import SparseTensor, matmul
    sizes = {"rowptr": pattern.crow.long(), "row": pattern.row.long(), "col": pattern.col.long()}
    matrix = SparseTensor(**sizes, sparse_sizes=pattern.shape, is_sorted=True).fill_cache_()
    return lambda pattern, values, x: matmul(matrix.set_value(values, layout="coo"), x)


def gather_scatter() -> Product:
    """PyG's message passing over an edge index with learnable edge weights."""
    conv = SimpleConv(aggr="sum")

    def product(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
        edge_index = torch.stack((pattern.col.long(), pattern.row.long()))
        return conv(x, edge_index, values)  # type: ignore[no-any-return]

    return product


def native_csr(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
    """torch's own autograd through a CSR tensor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = torch.sparse_csr_tensor(pattern.crow, pattern.col, values, pattern.shape)
    return matrix @ x


def main() -> None:
    """Prints one row a width and backend; outputs and gradients are compared before anything is timed."""
    parser = options(__doc__ or "")
    parser.add_argument("--floor", action="store_true", help="the comparison with the gather floor alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    summary: Row = {}
    if not arguments.floor:
        found = against_peers(arguments.quick)
        rows += found
        summary |= {
            f"{row['backend']}_over_gebt_d{row['d']}": row["times_gebt"] for row in found if row["backend"] in PEERS
        }
    found, bandwidth = against_floor(arguments.quick)
    rows += found
    best = next(row for row in found if row["backend"] == "gebt")
    summary |= {name: best[name] for name in ("forward_over_floor", "gradients_over_floor")}
    summary["copy_gb_a_second"] = bandwidth / 1e9
    full = [{column: row.get(column) for column in COLUMNS} for row in rows]
    finish("sparse product with gradients to both sides", full, summary, arguments.json)


def against_peers(quick: bool) -> list[Row]:
    """Forward, and forward with backward, on one skewed pattern."""
    nodes, entries, widths, repeats = (
        (500, 4000, (16, 64, 256), 2) if quick else (20_000, 400_000, (16, 64, 128, 256), 5)
    )
    pattern = skewed_pattern(nodes, entries)
    assert pattern.transposed is not None  # built once, as in training
    engines = [name for name in ("torch-csr", "compiled") if backends.BACKENDS[name].missing() is None]
    products = {"gebt": ours(backends.AUTO), **{f"gebt {name}": ours(name) for name in engines}}
    if find_spec("torch_sparse") is not None:
        products["torch_sparse"] = torch_sparse(pattern)
    products |= {"pyg_gather_scatter": gather_scatter(), "native_csr": native_csr}
    rows = []
    for width in widths:
        generator = torch.Generator().manual_seed(width)
        values = torch.rand(pattern.nnz, generator=generator).requires_grad_()
        x = torch.randn(nodes, width, generator=generator).requires_grad_()
        direction = torch.randn(nodes, width, generator=generator)
        check_equal(products, pattern, values, x, direction)
        engine = chosen(width, "values and x")
        with torch.no_grad():
            forward = in_turn({name: partial(f, pattern, values, x) for name, f in products.items()}, repeats)
        steps = {name: partial(gradients, f, pattern, values, x, direction) for name, f in products.items()}
        both = in_turn(steps, repeats)
        rows += [
            {
                "half": "peers",
                "entries": pattern.nnz,
                "d": width,
                "backend": name,
                "engine": engine if name == "gebt" else None,
                "forward_ms": 1e3 * forward[name],
                "forward_backward_ms": 1e3 * both[name],
                "times_gebt": both[name] / both["gebt"],
            }
            for name in products
        ]
    return rows


def against_floor(quick: bool) -> tuple[list[Row], float]:
    """Forward and fused gradients of every engine over the gather floor; and a copy's bandwidth, bytes a second."""
    nodes, a_row, width, repeats = (2000, 16, 64, 2) if quick else (1_000_000, 16, 64, 5)
    pattern = random_pattern(nodes, a_row)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(pattern.nnz, generator=generator)
    x, direction = (torch.randn(nodes, width, generator=generator) for _ in "ab")
    a, turned = Csr(pattern.crow, pattern.col), Csr(pattern.transposed.crow, pattern.transposed.col)
    permutation, tvalues, target = pattern.permutation, values[pattern.permutation.long()], torch.empty_like(x)
    ours(backends.AUTO)(pattern, values, x)
    gradients(ours(backends.AUTO), pattern, values.clone().requires_grad_(), x.clone().requires_grad_(), direction)
    # Every engine that "auto" may choose.
    engines = [
        name for name, engine in backends.BACKENDS.items()
        if name not in backends.ORACLES and engine.missing() is None and engine.supports(x.device, x.dtype)
    ]  # fmt: skip
    works: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(x)}
    for name in engines:
        engine = backends.BACKENDS[name]
        works[f"{name} forward"] = partial(engine.spmm, a, values, x)
        works[f"{name} gradients"] = partial(engine.gradients, a, turned, permutation, tvalues, x, direction)
    seconds = in_turn(works, repeats)
    bandwidth = 2 * 4 * x.numel() / seconds["copy"]
    floor = (pattern.nnz * (4 * width + 8) + 2 * 4 * x.numel()) / bandwidth
    taken = {"gebt": (chosen(width, "none"), chosen(width, "values and x"))}
    taken |= {f"gebt {name}": (name, name) for name in engines}
    rows = [
        {
            "half": "floor",
            "entries": pattern.nnz,
            "d": width,
            "backend": backend,
            "engine": ", ".join(dict.fromkeys((forward, back))) if backend == "gebt" else None,
            "forward_ms": 1e3 * seconds[f"{forward} forward"],
            "gradients_ms": 1e3 * seconds[f"{back} gradients"],
            "forward_over_floor": seconds[f"{forward} forward"] / floor,
            "gradients_over_floor": seconds[f"{back} gradients"] / floor,
        }
        for backend, (forward, back) in taken.items()
    ]
    return rows, bandwidth


def chosen(width: int, wanted: str) -> str:
    """The engine that "auto" took for the last product of that width and gradients."""
    return str([c for c in backends.choices() if (c["width"], c["gradients"]) == (width, wanted)][-1]["chosen"])


def gradients(product: Product, pattern: Pattern, values: Tensor, x: Tensor, direction: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward: gradients to the values and to x."""
    return torch.autograd.grad(product(pattern, values, x), (values, x), direction)


def check_equal(products: dict[str, Product], pattern: Pattern, values: Tensor, x: Tensor, direction: Tensor) -> None:
    """Stops the benchmark when a backend computes something else."""
    right_product = products["gebt torch-csr"]
    expected = gradients(right_product, pattern, values, x, direction)
    for name, product in products.items():
        torch.testing.assert_close(product(pattern, values, x), right_product(pattern, values, x), rtol=1e-3, atol=1e-3)
        for found, right in zip(gradients(product, pattern, values, x, direction), expected, strict=True):
            torch.testing.assert_close(found, right.to(found), rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


if __name__ == "__main__":
    main()
