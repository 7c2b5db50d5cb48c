"""Block floating point: the grid, the mean, and training that stays on it."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from gebt.train.low_precision import LowPrecision, block_floating_point


def units(x: torch.Tensor, bits: int) -> torch.Tensor:
    """2^(floor(log2 max |x[i]|) - bits + 2), by the definition."""
    rows = x.reshape(x.shape[0] if x.dim() > 1 else 1, -1).double()
    return 2.0 ** (rows.abs().amax(1).log2().floor() - bits + 2)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 2, 2), (9,)])
def test_values_are_whole_numbers_of_the_slice_s_unit(bits: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    found = block_floating_point(x, bits, generator)
    counts = found.double().reshape(x.shape[0] if x.dim() > 1 else 1, -1) / units(x, bits)[:, None]
    assert torch.equal(counts, counts.round())
    assert counts.min() >= -(2 ** (bits - 1))
    assert counts.max() <= 2 ** (bits - 1) - 1
    assert found.shape == x.shape


def test_rounding_is_right_on_average_and_never_further_than_one_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.tensor([[1.0, 0.3, -0.71, 0.013]])  # unit 1/64 for 8 bits
    drawn = torch.cat([block_floating_point(x, 8, generator) for _ in range(4000)])
    assert (drawn - x).abs().max() < 1 / 64
    assert torch.allclose(drawn.mean(0), x[0], atol=4 * (1 / 128) / 4000**0.5)


def test_powers_of_two_and_zeros_stay() -> None:
    x = torch.tensor([[0.0, 0.0], [0.25, -0.125], [3.0, 1.0]])
    assert torch.equal(block_floating_point(x, 8), x)
    assert block_floating_point(torch.empty(0, 3), 8).shape == (0, 3)


def test_training_stays_on_the_grid_until_it_is_let_go() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    names = list(model.state_dict())
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: list[torch.Tensor] = []
    low = LowPrecision(model, optimizer, bits=4, seed=0)
    model[1].register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].detach()))
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]
    for tensor in [*model.parameters(), *momenta, *seen]:
        rows = tensor.detach().reshape(tensor.shape[0] if tensor.dim() > 1 else 1, -1).double()
        # Rounding may carry the largest to the next power of two: half units are on the grid then, too.
        counts = rows / (units(tensor.detach(), 4)[:, None] / 2)
        assert torch.equal(counts, counts.round())
    assert list(model.state_dict()) == names
    low.remove()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    model(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    assert any(
        not torch.equal(block_floating_point(p.detach(), 4), p.detach())
        for p, old in zip(model.parameters(), before, strict=True)
        if not torch.equal(p, old)
    )


def test_the_errors_that_come_back_are_rounded_too() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    model = nn.Sequential(first, last)
    LowPrecision(model, optim.SGD(model.parameters(), lr=0.1), bits=3, seed=0)
    x, outer = torch.eye(4), torch.randn(4, 4)
    (model(x) * outer).sum().backward()
    # With the identity as input the gradient of the first weight is its error, transposed.
    assert first.weight.grad is not None
    error = first.weight.grad.t()
    counts = error.double() / (units(outer @ last.weight.detach(), 3)[:, None] / 2)
    assert torch.equal(counts, counts.round())
    assert not torch.equal(error, outer @ last.weight.detach())


def test_too_few_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bits \(got 1\), expected at least 2"):
        block_floating_point(torch.ones(2), 1)
