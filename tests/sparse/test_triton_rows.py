"""Normalization and reductions of rows by Triton, under its interpreter, against torch's own ops.

`test_triton.py` runs these tests in a process of their own.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from gebt.graph.edges import Edges
from gebt.sparse import Pattern, normalization
from gebt.sparse.backends.triton_plan import runs_of
from gebt.sparse.reduction import row_reduce

INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter, in a process of its own")


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for ours, right in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=0.0, atol=tolerance * float(right.abs().max()))


def starry(nodes: int = 60, seed: int = 0) -> Edges:
    """A node that all others are neighbors of, some other pairs in no order, and nodes of its star alone."""
    generator = torch.Generator().manual_seed(seed)
    linked = (torch.rand(nodes, nodes, generator=generator) < 0.05).triu(1)
    linked[0, 1:] = True
    linked[:, nodes // 2 :] &= linked[:1, nodes // 2 :] & (torch.arange(nodes) == 0)[:, None]
    pairs = linked.nonzero().t()
    return Edges.from_pairs(pairs[:, torch.randperm(pairs.shape[1], generator=generator)], nodes)


def normalized(edges: Edges, values: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    values = values.detach().requires_grad_()
    weights = edges.normalized(values)
    return weights.detach(), *torch.autograd.grad(weights, values, grad)


@interpreted
@pytest.mark.usefixtures("short_runs", "new_memory_is_nan")
class TestNormalization:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize("limit", [2**31 - 1, -1], ids=["int32", "int64"])
    def test_is_that_of_torch(self, dtype: torch.dtype, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gebt.sparse.pattern.INT32_LIMIT", limit)
        edges = starry()
        assert runs_of(edges.pattern.crow).parts > 1
        grad = drawn(edges.pattern.nnz, dtype=dtype)
        values = drawn(edges.num_pairs, dtype=dtype).abs()
        got, again = (normalized(edges, values, grad) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
        first, second = edges.places[: 2 * edges.num_pairs].long().view(-1, 2).t()
        assert torch.equal(got[0][first], got[0][second]), "the adjacency must be symmetric to the bit"
        monkeypatch.setattr(normalization, "_by_triton", lambda values: False)
        exact = normalized(edges, values.double(), grad.double())
        assert all(tensor.dtype == dtype for tensor in got)
        close(got, exact, 1e-6 if dtype == torch.float32 else 1e-14)

    def test_passes_gradcheck(self) -> None:
        edges = starry(24)
        values = drawn(edges.num_pairs, dtype=torch.float64).abs().requires_grad_()
        assert gradcheck(edges.normalized, (values,), fast_mode=True)

    @pytest.mark.parametrize(
        ("pairs", "nodes"), [([], 0), ([], 3), ([[0, 1]], 2)], ids=["nothing", "nodes", "one pair"]
    )
    def test_of_the_smallest_graphs(self, pairs: list[list[int]], nodes: int) -> None:
        edges = Edges.from_pairs(torch.tensor(pairs, dtype=torch.long).view(-1, 2).t(), nodes)
        weights, dvalues = normalized(edges, torch.ones(edges.num_pairs), torch.ones(edges.pattern.nnz))
        assert torch.allclose(weights, torch.full_like(weights, 0.5 if pairs else 1.0))
        # w_uv = a / (1 + a) twice and w_uu = 1 / (1 + a) twice: their sum does not change with a.
        assert torch.allclose(dvalues, torch.zeros_like(dvalues), atol=1e-6)


def test_only_sums_and_maxima_are_taken() -> None:
    pattern, _ = Pattern.from_entries(torch.tensor([0]), torch.tensor([0]), (1, 1))
    with pytest.raises(ValueError, match=r"reduce \(got 'mean'\), expected 'sum' or 'max'"):
        row_reduce(pattern, torch.ones(1, 1), "mean")


@pytest.mark.parametrize("reduce", ["sum", "max"])
def test_the_op_keeps_the_rules_of_torch(reduce: str) -> None:
    crow = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    torch.library.opcheck(torch.ops.gebt.row_reduce.default, (crow, drawn(3, 2), reduce))


@interpreted
@pytest.mark.usefixtures("short_runs", "new_memory_is_nan")
class TestReduction:
    @pytest.mark.parametrize("heads", [1, 3, 8, 300])
    @pytest.mark.parametrize("reduce", ["sum", "max"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
    def test_is_that_of_torch(self, heads: int, reduce: str, dtype: torch.dtype) -> None:
        lengths = torch.tensor([0, 16, 17, 3, 100, 0, 1, 0])
        row = torch.repeat_interleave(lengths)
        col = torch.cat([torch.arange(int(length)) for length in lengths])
        pattern, _ = Pattern.from_entries(row, col, (8, 100))
        assert runs_of(pattern.crow).parts == 9
        # All below zero: no zero of a masked place may be the highest.
        entries = drawn(pattern.nnz, heads, dtype=dtype).abs().neg()
        got, again = (row_reduce(pattern, entries, reduce) for _ in range(2))
        expected = torch.segment_reduce(entries.double(), reduce, offsets=pattern.crow.long(), axis=0, unsafe=True)
        assert torch.equal(got, again)
        assert got.dtype == dtype
        close((got.nan_to_num(neginf=9.0),), (expected.nan_to_num(neginf=9.0),), 8e-3 if dtype.itemsize == 2 else 1e-6)

    @pytest.mark.parametrize(("reduce", "expected"), [("sum", 0.0), ("max", -torch.inf)])
    def test_of_no_entries(self, reduce: str, expected: float) -> None:
        nothing = torch.zeros(0, dtype=torch.long)
        pattern, _ = Pattern.from_entries(nothing, nothing, (2, 3))
        assert row_reduce(pattern, torch.ones(0, 2), reduce).tolist() == [[expected] * 2] * 2
