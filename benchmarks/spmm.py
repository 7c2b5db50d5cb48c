"""How fast is the sparse product with gradients to features and to edge values? Ours beside PyG's ways and native CSR.

python benchmarks/spmm.py [--quick] [--json OUT]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from common import finish, in_turn, options
from torch import Tensor
from torch_geometric.nn import SimpleConv

from gebt.sparse import Pattern, spmm


def skewed_pattern(nodes: int, entries: int, seed: int = 0) -> Pattern:
    """A random pattern whose degrees are skewed as those of real graphs (log-normal)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(nodes, generator=generator).exp()
    row, col = (torch.multinomial(weight, int(1.05 * entries), replacement=True, generator=generator) for _ in "ab")
    key = torch.unique(row * nodes + col)
    key = key[torch.randperm(key.numel(), generator=generator)[:entries]]
    return Pattern.from_entries(key // nodes, key % nodes, (nodes, nodes))[0]


def ours(pattern: Pattern, values: Tensor, x: Tensor) -> Tensor:
    """The registered op: CSR product, stored transpose, sampled product for the values."""
    return spmm(pattern, values, x)


def gather_scatter() -> Callable[[Pattern, Tensor, Tensor], Tensor]:
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
    arguments = options(__doc__ or "").parse_args()
    torch.set_num_threads(arguments.threads)
    nodes, entries, widths, repeats = (
        (500, 4000, (16, 64), 2) if arguments.quick else (20_000, 400_000, (16, 64, 128, 256), 5)
    )
    pattern = skewed_pattern(nodes, entries)
    assert pattern.transposed is not None  # built once, as in training
    backends = {"gebt": ours, "pyg_gather_scatter": gather_scatter(), "native_csr": native_csr}
    rows = []
    for width in widths:
        generator = torch.Generator().manual_seed(width)
        values = torch.rand(pattern.nnz, generator=generator).requires_grad_()
        x = torch.randn(nodes, width, generator=generator).requires_grad_()
        direction = torch.randn(nodes, width, generator=generator)
        check_equal(backends, pattern, values, x, direction)
        with torch.no_grad():
            forward = in_turn({name: partial(f, pattern, values, x) for name, f in backends.items()}, repeats)
        steps = {name: partial(gradients, f, pattern, values, x, direction) for name, f in backends.items()}
        both = in_turn(steps, repeats)
        rows.extend(
            {
                "d": width,
                "backend": name,
                "forward_ms": 1e3 * forward[name],
                "forward_backward_ms": 1e3 * both[name],
                "times_gebt": both[name] / both["gebt"],
            }
            for name in backends
        )
    summary = {
        f"{peer}_over_gebt_d{row['d']}": row["times_gebt"]
        for peer in ("pyg_gather_scatter", "native_csr")
        for row in rows
        if row["backend"] == peer
    }
    finish(f"{nodes} nodes, {pattern.nnz} entries: product with gradients to both sides", rows, summary, arguments.json)


def gradients(
    product: Callable[[Pattern, Tensor, Tensor], Tensor], pattern: Pattern, values: Tensor, x: Tensor, direction: Tensor
) -> tuple[Tensor, ...]:
    """Forward and backward: gradients to the values and to x."""
    return torch.autograd.grad(product(pattern, values, x), (values, x), direction)


def check_equal(
    backends: dict[str, Callable[[Pattern, Tensor, Tensor], Tensor]],
    pattern: Pattern,
    values: Tensor,
    x: Tensor,
    direction: Tensor,
) -> None:
    """Stops the benchmark when a backend computes something else."""
    expected = gradients(ours, pattern, values, x, direction)
    for name, product in backends.items():
        torch.testing.assert_close(product(pattern, values, x), ours(pattern, values, x), rtol=1e-3, atol=1e-3)
        for found, right in zip(gradients(product, pattern, values, x, direction), expected, strict=True):
            torch.testing.assert_close(found, right.to(found), rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


if __name__ == "__main__":
    main()
