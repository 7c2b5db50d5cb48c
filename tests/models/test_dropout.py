from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from gebt.models.dropout import STEPS, dropout


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_share_dropped_is_the_rate_in_every_position_of_a_number(rate: float) -> None:
    x = torch.ones(40_000)
    dropped = (dropout(x, rate, True) == 0).float()
    spread = math.sqrt(rate * (1 - rate) / 10_000)
    assert all(abs(float(dropped[place::4].mean()) - rate) < 4.5 * spread for place in range(4))
    neighbours = float((dropped[:-1] * dropped[1:]).mean())
    assert abs(neighbours - rate**2) < 4.5 * math.sqrt(rate**2 / 40_000)


@pytest.mark.parametrize("rate", [0.5, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_stays_is_scaled_so_that_the_mean_stays(rate: float, dtype: torch.dtype) -> None:
    x = torch.arange(1, 102, dtype=dtype).view(1, 101)
    out = dropout(x, rate, True)
    stays = out != 0
    assert out.dtype == dtype
    torch.testing.assert_close(out[stays], x[stays] / (1 - round(rate * STEPS) / STEPS))


def test_the_gradient_goes_through_what_stays() -> None:
    x = torch.rand(5, 7).t().requires_grad_()
    out = dropout(x, 0.5, True)
    out.sum().backward()
    assert torch.equal(x.grad, 2.0 * (out != 0))


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_without_dropout_nothing_is_drawn_or_copied(rate: float, training: bool) -> None:
    x, before = torch.rand(9), torch.random.get_rng_state()
    assert dropout(x, rate, training) is x
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 0), (5, 1), (2, 3, 3)])
def test_any_shape_is_kept_and_draws_are_seeded(shape: tuple[int, ...]) -> None:
    torch.manual_seed(4)
    first = dropout(torch.ones(shape), 0.5, True)
    torch.manual_seed(4)
    assert first.shape == shape
    assert torch.equal(first, dropout(torch.ones(shape), 0.5, True))


def test_a_rate_next_to_one_drops_nearly_all() -> None:
    assert (dropout(torch.ones(100), 0.999999, True) != 0).sum() <= 1
