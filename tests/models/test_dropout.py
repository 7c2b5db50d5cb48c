from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gebt import _numba
from gebt.models.dropout import STEPS, dropout

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
ALL = (1 << 64) - 1
# One entry, blocks of 32 that are short by one, full and over by one, several, and nothing at all.
SHAPES = [
    (1,), (31,), (32,), (33,), (64,), (100,), (0,), (3, 0), (0, 3), (5, 1), (1, 5), (7, 9), (4, 8), (32, 3), (2, 3, 5),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=["compiled", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to drop on the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(_numba, "available", lambda: False)
    elif not _numba.available():
        pytest.skip(f"no compiled kernels: {_numba.missing()}")
    return request.param


def lots_by_hand(seed: int, entries: int) -> list[int]:
    """The rule of the docstring, one entry after the other, in Python's own integers."""
    lots = []
    for i in range(entries):
        word, lane = 8 * (i // 32) + i % 8, i % 32 // 8
        z = (seed + (word + 1) * GOLDEN) & ALL
        z = (z ^ (z >> 30)) * FIRST & ALL
        z = (z ^ (z >> 27)) * SECOND & ALL
        z ^= z >> 31
        lots.append(z >> 16 * lane & 0xFFFF)
    return lots


def kept_by_hand(seed: int, entries: int, rate: float) -> Tensor:
    return torch.tensor([lot >= round(rate * STEPS) for lot in lots_by_hand(seed, entries)], dtype=torch.bool)


def numbers(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Of both signs, with zeros among them."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    drawn.view(-1)[::7] = 0.0
    return drawn.to(dtype)


def seeds_of(streams: int) -> Tensor:
    return torch.tensor([-(2**63), 2**63 - 1, 0, -1, 77][:streams])


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_an_entrys_fate_is_16_bits_of_the_sequence(
    path: str, shape: tuple[int, ...], dtype: torch.dtype, relu: bool
) -> None:
    x, rate = numbers(shape, dtype), 0.3
    scale = torch.tensor(STEPS / (STEPS - round(rate * STEPS)), dtype=dtype)
    for seed in (-(2**63), 12345678901234567):
        out = dropout(x, rate, True, relu=relu, seeds=torch.tensor([seed]))
        kept = kept_by_hand(seed, x.numel(), rate).view(shape)
        assert (out.dtype, out.shape) == (dtype, shape)
        assert torch.equal(out, torch.where(kept, x.relu() if relu else x, 0) * scale)


@pytest.mark.parametrize("entry", [0, 17, 35])
def test_an_entry_whose_bits_are_the_rate_is_kept(path: str, entry: int) -> None:
    """The 36 entries are a block of the kernel and the rest after it."""
    lot = lots_by_hand(4, 36)[entry]
    for rate, kept in ((lot / STEPS, True), ((lot + 1) / STEPS, False)):
        assert bool(dropout(torch.ones(36), rate, True, seeds=torch.tensor([4]))[entry]) == kept


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "shape", [(5, 3), (33, 2), (9, 5, 7), (1, 4, 64), (1, 3, 70), (32, 2, 1), (3, 2, 4, 5), (0, 3, 4), (4, 3, 0)]
)
def test_streams_are_dropped_as_each_would_be_alone(
    path: str, shape: tuple[int, ...], dtype: torch.dtype, relu: bool
) -> None:
    x, seeds = numbers(shape, dtype).requires_grad_(), seeds_of(shape[1])
    upstream = numbers(shape, dtype).flip(0)
    together = dropout(x, 0.4, True, relu=relu, seeds=seeds)
    (grad,) = torch.autograd.grad(together, x, upstream)
    for stream in range(shape[1]):
        part = x.detach()[:, stream].clone().requires_grad_()
        alone = dropout(part, 0.4, True, relu=relu, seeds=seeds[stream : stream + 1])
        assert torch.equal(together[:, stream], alone)
        assert torch.equal(grad[:, stream], torch.autograd.grad(alone, part, upstream[:, stream])[0])


@pytest.mark.skipif(not _numba.available(), reason="no compiled kernels here")
@pytest.mark.parametrize("relu", [False, True])
def test_compiled_and_plain_dropout_are_equal_bit_for_bit(monkeypatch: pytest.MonkeyPatch, relu: bool) -> None:
    def results() -> list[Tensor]:
        torch.manual_seed(3)
        found = []
        for size in (*range(1, 70), 1000):
            x = numbers((size, 3)).requires_grad_()
            out = dropout(x, 0.6, True, relu=relu)
            found += [out, *torch.autograd.grad(out, x, numbers((size, 3)).flip(0))]
        return found

    fast = results()
    monkeypatch.setattr(_numba, "available", lambda: False)
    assert all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(fast, results(), strict=True))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_the_layout_in_memory_does_not_matter(path: str, layout: str, relu: bool) -> None:
    x = {
        "transposed": numbers((9, 40)).t(),
        "strided": numbers((40, 18))[:, ::2],
        "expanded": numbers((40, 1)).expand(40, 9),
    }[layout]
    seeds = seeds_of(1)
    assert torch.equal(
        dropout(x, 0.5, True, relu=relu, seeds=seeds), dropout(x.contiguous(), 0.5, True, relu=relu, seeds=seeds)
    )


def test_types_that_no_kernel_is_compiled_for_share_the_fates() -> None:
    x = numbers((50, 3)).bfloat16()
    out = dropout(x, 0.5, True, seeds=seeds_of(1))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.float(), dropout(x.float(), 0.5, True, seeds=seeds_of(1)))


@pytest.mark.parametrize("relu", [False, True])
def test_threads_do_not_change_the_result(path: str, relu: bool) -> None:
    x, threads, found = numbers((1003, 5)), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            found.append([dropout(x.view(shape), 0.5, True, relu=relu, seeds=seeds_of(s)) for shape, s in (
                ((1003, 5), 1), ((1003, 5), 5), ((59, 5, 17), 5),
            )])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("relu", [False, True])
def test_one_number_of_torchs_generator_starts_it_all(path: str, relu: bool) -> None:
    x = numbers((40, 3))
    torch.manual_seed(9)
    (seed,) = torch.empty(1, dtype=torch.int64).random_(-(2**63), None).tolist()
    after = torch.random.get_rng_state()
    torch.manual_seed(9)
    out = dropout(x, 0.5, True, relu=relu)
    assert torch.equal(torch.random.get_rng_state(), after)
    assert torch.equal(out, dropout(x, 0.5, True, relu=relu, seeds=torch.tensor([seed])))
    assert torch.equal(torch.random.get_rng_state(), after)
    assert not torch.equal(out, dropout(x, 0.5, True, relu=relu))


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.95])
def test_every_position_of_a_block_is_dropped_at_the_rate(rate: float) -> None:
    """Chi-square over the 32 positions: 32 on average, 8 standard deviation."""
    blocks = 20_000
    dropped = (dropout(torch.ones(blocks, 32), rate, True) == 0).sum(0)
    exact = round(rate * STEPS) / STEPS
    chi_square = float(((dropped - blocks * exact) ** 2 / (blocks * exact * (1 - exact))).sum())
    assert 5 < chi_square < 75


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_fates_of_entries_a_lag_apart_are_independent(rate: float) -> None:
    count = 100_000
    dropped = (dropout(torch.ones(count), rate, True) == 0).float()
    centred = (dropped - dropped.mean()) / dropped.std()
    # The fates of the next draw, which another number of the generator starts, are lag 0.
    again = (dropout(torch.ones(count), rate, True) == 0).float()
    lags = [
        float((centred[:-lag] * centred[lag:]).mean()) for lag in (*range(1, 9), 16, 31, 32, 33, 64, 128, 256, 1024)
    ]
    lags.append(float((centred * (again - again.mean()) / again.std()).mean()))
    assert max(map(abs, lags)) < 4.5 / math.sqrt(count)


def test_seeds_that_follow_one_another_drop_independently() -> None:
    """Where streams start does not show: neighboring seeds, and seeds a step of the sequence apart."""
    count = 50_000
    step = GOLDEN - (1 << 64)
    seeds = torch.tensor([0, 1, 2, step, 5 * GOLDEN % (1 << 63)])
    dropped = (dropout(torch.ones(count, 5), 0.5, True, seeds=seeds) == 0).float() - 0.5
    apart = dropped.t() @ dropped / count * 4 - torch.eye(5)
    assert float(apart.abs().max()) < 5 / math.sqrt(count)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("shape", "streams"), [((6, 5), 1), ((40,), 1), ((4, 3, 5), 3), ((11, 2), 2)])
def test_the_gradient_is_that_of_finite_differences(
    path: str, shape: tuple[int, ...], streams: int, relu: bool
) -> None:
    # Away from zero, where relu has no derivative.
    x = numbers(shape, torch.float64)
    x = torch.where(x.abs() < 0.1, x + 0.2, x).requires_grad_()
    seeds = seeds_of(streams)
    assert torch.autograd.gradcheck(lambda x: dropout(x, 0.4, True, relu=relu, seeds=seeds), (x,))


@pytest.mark.parametrize("relu", [False, True])
def test_at_zero_the_gradient_is_that_of_what_stays_and_with_relu_none(path: str, relu: bool) -> None:
    x = torch.zeros(70, requires_grad=True)
    out = dropout(x, 0.25, True, relu=relu, seeds=seeds_of(1))
    assert not out.any()
    (grad,) = torch.autograd.grad(out, x, torch.ones(70))
    kept = kept_by_hand(int(seeds_of(1)), 70, 0.25)
    assert torch.equal(grad, torch.zeros(70) if relu else kept / 0.75)


def test_second_gradients_are_refused_not_wrong() -> None:
    x = numbers((8, 4)).requires_grad_()
    (grad,) = torch.autograd.grad(dropout(x, 0.5, True).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_share_dropped_is_the_rate_in_every_position_of_a_number(rate: float) -> None:
    x = torch.ones(40_000)
    dropped = (dropout(x, rate, True) == 0).float()
    spread = math.sqrt(rate * (1 - rate) / 10_000)
    assert all(abs(float(dropped[place::4].mean()) - rate) < 4.5 * spread for place in range(4))
    neighbors = float((dropped[:-1] * dropped[1:]).mean())
    assert abs(neighbors - rate**2) < 4.5 * math.sqrt(rate**2 / 40_000)


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
    assert torch.equal(dropout(x - 0.5, rate, training, relu=True), torch.relu(x - 0.5))
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
