"""Sparse products with rows of very different lengths, and addresses beyond 32 bits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gebt.models.attention import row_softmax
from gebt.sparse import Pattern, spmm
from gebt.sparse.backends import BACKENDS, Csr, current, using
from tests.gpu.conftest import NO_DEVICE

ON_CPU = ["torch-csr-cpu"]
ON_CUDA = [pytest.param(f"{name}-cuda", marks=[pytest.mark.gpu, NO_DEVICE]) for name in ("torch-csr", "triton")]


@pytest.fixture(params=[*ON_CPU, *ON_CUDA])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device, and the engine in use."""
    name, _, device = request.param.rpartition("-")
    if (why := BACKENDS[name].missing()) is not None:
        pytest.skip(why)
    with using(name):
        yield device


def hub(device: str) -> Pattern:
    """One row of 20,000 entries and 100,000 of five; fewer on the CPU."""
    rows, longest = (100_001, 20_000) if device == "cuda" else (401, 300)
    generator = torch.Generator().manual_seed(0)
    col = torch.randint(rows, (rows, 5), generator=generator)
    col = (torch.arange(rows)[:, None] + col[:, :1] + torch.arange(5) * 7) % rows
    col = torch.cat((torch.randperm(rows, generator=generator)[:longest], col[1:].flatten()))
    row = torch.cat((torch.zeros(longest, dtype=torch.long), torch.arange(1, rows).repeat_interleave(5)))
    return Pattern.from_entries(row, col, (rows, rows))[0].to(device)


def gradients(pattern: Pattern, values: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    values, x = (tensor.clone().requires_grad_() for tensor in (values, x))
    y = spmm(pattern, values, x)
    return (y.detach(), *torch.autograd.grad(y, (values, x), grad))


def right_gradients(pattern: Pattern, values: Tensor, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """By gathering and adding up, in double precision."""
    values, x, grad = values.double(), x.double(), grad.double()
    row, col = pattern.row.long(), pattern.col.long()
    y = torch.zeros_like(grad).index_add_(0, row, values[:, None] * x[col])
    dx = torch.zeros_like(x).index_add_(0, col, values[:, None] * grad[row])
    return y, (grad[row] * x[col]).sum(1), dx


@pytest.mark.parametrize("width", [1, 7, 40, 64, 128, 256])
def test_a_hub_is_summed_as_in_double_precision_and_the_same_again(width: int, device: str) -> None:
    pattern = hub(device)
    values, x, grad = (
        torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(seed))
        for seed, shape in enumerate(((pattern.nnz,), (pattern.shape[1], width), (pattern.shape[0], width)))
    )
    found = gradients(pattern, values, x, grad)
    for part, right in zip(found, right_gradients(pattern, values, x, grad), strict=True):
        assert float((part.double() - right).abs().max()) <= 1e-5 * float(right.abs().max())
    again = gradients(pattern, values, x, grad)
    same = all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    if device == "cuda" and current() == "torch-csr" and not same:
        pytest.xfail("cuSPARSE's sums do not repeat bit for bit")
    assert same


def test_addresses_beyond_32_bits(gpu: str) -> None:
    rows, width = 17_000_000, 128
    x = torch.empty(rows, width, device=gpu, dtype=torch.bfloat16).normal_()
    chosen = torch.tensor([rows - 1, 3, rows - 2, 0], device=gpu)
    a = Csr(torch.tensor([0, 2, 4], device=gpu, dtype=torch.int32), chosen.int())
    values = torch.tensor([1.0, 2.0, -1.0, 0.5], device=gpu, dtype=torch.bfloat16)
    right = (values.double()[:, None] * x[chosen].double()).view(2, 2, width).sum(1)
    for name in ("torch-csr", "triton"):
        if BACKENDS[name].missing() is None:
            found = BACKENDS[name].spmm(a, values, x).double()
            assert float((found - right).abs().max()) <= 1e-2 * float(right.abs().max()), name


@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_DEVICE])])
def test_the_softmax_of_a_hub(place: str) -> None:
    pattern = hub(place)
    generator = torch.Generator().manual_seed(1)
    to, of = (torch.randn(pattern.shape[0], 2, generator=generator).to(place).requires_grad_() for _ in "ab")
    alpha = row_softmax(pattern, to, of, 0.2)
    row, col = pattern.row.long(), pattern.col.long()
    score = torch.nn.functional.leaky_relu(to.double()[row] + of.double()[col], 0.2).exp()
    total = torch.zeros_like(to, dtype=torch.double).index_add(0, row, score)
    right = score / total[row]
    torch.testing.assert_close(alpha.double(), right, rtol=1e-4, atol=1e-7)
    direction = torch.randn(alpha.shape, generator=generator).to(place)
    ours = torch.autograd.grad(alpha, (to, of), direction)
    theirs = torch.autograd.grad(right, (to, of), direction.double())
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * max(float(other.abs().max()), 1e-3)
