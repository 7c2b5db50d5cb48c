from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gebt import _numba
from gebt.prune import Mask, drawing, make_mask, passes
from gebt.prune.drawing import Bracket, Drawing
from gebt.prune.mask import pack_bits
from gebt.prune.selection import pruned_count
from gebt.prune.tie_breaking import TieBreaker

ORDER = TieBreaker(7)
RATIOS = [0.0, 0.01, 0.2, 0.5, 0.9, 0.999]
FLOATS = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-45, -1e-39, 1.2e-38, 3.4e38, math.inf, -math.inf]
) | st.floats(width=32, allow_nan=False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_sorting(score: Tensor, ratio: float) -> Tensor:
    """The oracle: a stable sort by score and rank."""
    ranked = np.lexsort((ORDER.of(torch.arange(score.numel())).numpy(), score.double().numpy()))
    kept = torch.ones(score.numel(), dtype=torch.bool)
    kept[torch.from_numpy(ranked[: pruned_count(score.numel(), ratio)])] = False
    return kept


def assert_exact(draw: Drawing, values: Tensor, ratio: float, weight: Tensor | None = None) -> None:
    mask, score = draw.draw({"w": values}), values.abs() if weight is None else values.abs() * weight
    expected = by_sorting(score, ratio)
    assert torch.equal(mask["w"], expected)
    assert mask.kept == int(expected.sum())
    if mask.words is not None:
        bits = mask.words.view(torch.uint8)
        assert torch.equal(bits[: (values.numel() + 7) // 8], pack_bits(expected))
        assert not bits[(values.numel() + 7) // 8 :].any()


@given(
    sequence=st.integers(1, 130).flatmap(
        lambda n: st.lists(st.lists(FLOATS, min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    ratio=st.sampled_from(RATIOS),
    seed=st.none() | st.integers(0, 9),
)
@pytest.mark.usefixtures("engine")
def test_masks_of_any_values_are_those_of_a_sort(sequence: list[list[float]], ratio: float, seed: int | None) -> None:
    size = len(sequence[0])
    weight = None if seed is None else torch.rand(size, generator=seeded(seed)) + 0.1
    draw = Drawing({"w": torch.empty(size)}, ratio=ratio, tie_break=ORDER, weight=weight)
    for values in sequence:
        assert_exact(draw, torch.tensor(values), ratio, weight)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 1000])
def test_every_count_is_drawn_exactly_with_and_without_ties(size: int) -> None:
    for prune in {0, min(1, size - 1), size // 3, size - 1}:
        ratio = (prune + 0.5) / size if prune else 0.0
        for values in (torch.ones(size), torch.randn(size, generator=seeded()).round(), torch.randn(size)):
            assert pruned_count(size, ratio) == prune
            draw = Drawing({"w": values}, ratio=ratio, tie_break=ORDER)
            for _ in range(3):
                assert_exact(draw, values, ratio)


def moves(kind: str) -> Callable[[Tensor, int], Tensor]:
    """How values go from one draw to the next."""

    def slowly(values: Tensor, step: int) -> Tensor:
        return values + 1e-3 * torch.randn(values.numel(), generator=seeded(step))

    def together(values: Tensor, step: int) -> Tensor:
        return values * 1.01

    def violently(values: Tensor, step: int) -> Tensor:
        values = torch.randn(values.numel(), generator=seeded(step)) * 10.0 ** ((-1) ** step * step)
        return values.round() if step % 3 == 2 else values

    def by_few(values: Tensor, step: int) -> Tensor:
        values[torch.randperm(values.numel(), generator=seeded(step))[: values.numel() // 100]] *= 1.5
        return values.clone()

    return {"slowly": slowly, "together": together, "violently": violently, "by few": by_few}[kind]


@pytest.mark.parametrize("kind", ["slowly", "together", "violently", "by few"])
@pytest.mark.parametrize("ratio", [0.2, 0.9])
@pytest.mark.usefixtures("engine")
def test_a_sequence_of_draws_is_exact_however_the_values_move(kind: str, ratio: float) -> None:
    values = torch.ones(5000) if kind == "by few" else 1 + 0.1 * torch.randn(5000, generator=seeded())
    weight = 1 / torch.randint(1, 20, (5000,), generator=seeded(1)).float()
    draw = Drawing({"w": values}, ratio=ratio, tie_break=ORDER, weight=weight)
    for step in range(12):
        assert_exact(draw, values, ratio, weight)
        values = moves(kind)(values, step)


@pytest.mark.parametrize("kind", ["slowly", "together"])
def test_slow_values_are_drawn_in_one_pass(engine: pytest.MonkeyPatch, kind: str) -> None:
    whole: list[str] = []
    bins, keep = passes.Passes.bin_of, drawing.keep_highest

    def keep_noted(score: Tensor, *rest: object) -> object:
        whole.extend(["kth"] if score.numel() == 50_000 else [])
        return keep(score, *rest)  # type: ignore[arg-type]

    engine.setattr(passes.Passes, "bin_of", lambda *a: whole.append("histogram") or bins(*a))  # type: ignore[func-returns-value]
    engine.setattr(drawing, "keep_highest", keep_noted)
    values = 1 + 0.1 * torch.randn(50_000, generator=seeded())
    draw = Drawing({"w": values}, ratio=0.2)
    for step in range(20):
        draw.draw({"w": values})
        values = moves(kind)(values, step)
        if step == 3:
            whole.clear()  # by then it knows how they move
    assert len(whole) <= 1


@pytest.mark.skipif(not _numba.available(), reason="needs numba")
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_more_ties_than_there_is_room_for_are_settled_in_linear_passes(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(passes, "ROOM_FROM", 1)
    monkeypatch.setattr(passes, "PARALLEL_FROM", math.inf)  # a thread's room would be too small here
    monkeypatch.setattr(drawing, "make_mask", None)  # the last resort, which sorts out all ties at once
    values = torch.full((1 << 18,), 1.1)
    values[int(share * values.numel()) :] = 1.9
    draw = Drawing({"w": values}, ratio=0.2, tie_break=ORDER)
    for _ in range(2):
        assert_exact(draw, values, 0.2)


@pytest.mark.skipif(not _numba.available(), reason="needs numba")
def test_without_any_room_the_mask_is_exact_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "ROOM_FROM", 1)
    for values in (torch.ones(3000), torch.randn(3000, generator=seeded())):
        draw = Drawing({"w": values}, ratio=0.4, tie_break=ORDER)
        for _ in range(2):
            assert_exact(draw, values, 0.4)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_several_tensors_of_any_kind_are_drawn_as_select_does(scope: str, dtype: torch.dtype) -> None:
    tensors = {"a": torch.randn(30, 7, generator=seeded(), dtype=dtype), "b": torch.randn(5, 4, 3).to(dtype).round()}
    tensors["c"] = torch.randn(11, 6, generator=seeded(1), dtype=dtype).t()[::2]
    options = {"ratio": 0.6, "scope": scope, "tie_break": ORDER}
    draw = Drawing(tensors, **options)  # type: ignore[arg-type]
    for _ in range(3):
        expected = make_mask({n: t.abs() for n, t in tensors.items()}, **options, allow_empty=True)  # type: ignore[arg-type]
        assert draw.draw(tensors) == expected
        tensors = {name: 1.01 * tensor for name, tensor in tensors.items()}


@pytest.mark.usefixtures("engine")
def test_a_strided_tensor_and_a_parameter_are_read_in_their_order() -> None:
    values = torch.randn(400, generator=seeded())
    assert_exact(Drawing({"w": values[::2]}, ratio=0.3, tie_break=ORDER), values[::2], 0.3)
    draw = Drawing({"w": values}, ratio=0.3, tie_break=ORDER)
    assert torch.equal(draw.draw({"w": values.clone().requires_grad_()})["w"], by_sorting(values.abs(), 0.3))


@pytest.mark.usefixtures("engine")
def test_a_mask_does_not_change_with_the_next_draw() -> None:
    values = torch.randn(300, generator=seeded())
    draw = Drawing({"w": values}, ratio=0.5, tie_break=ORDER)
    first = draw.draw({"w": values})
    draw.draw({"w": values.flip(0)})
    assert torch.equal(first["w"], by_sorting(values.abs(), 0.5))


@pytest.mark.usefixtures("engine")
def test_ties_are_settled_by_the_order_and_by_default_as_select_does() -> None:
    values = torch.ones(100)
    drawn = [Drawing({"w": values}, ratio=0.5, tie_break=order).draw({"w": values}) for order in (None, ORDER)]
    assert drawn[0] == make_mask({"w": values}, ratio=0.5)
    assert drawn[0] != drawn[1]


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("ratio", [0.0, 0.5])
@pytest.mark.parametrize("place", [0, 69])
def test_a_nan_is_refused_by_name_at_the_first_draw_and_later(ratio: float, place: int) -> None:
    good = {"a": torch.rand(70), "b": torch.rand(70)}
    bad = {"a": good["a"], "b": good["b"].index_fill(0, torch.tensor([place]), float("nan"))}
    fresh, used = Drawing(good, ratio=ratio), Drawing(good, ratio=ratio)
    used.draw(good)
    for draw in (fresh, used):
        with pytest.raises(ValueError, match=r"scores of 'b' \(got NaN\), expected numbers"):
            draw.draw(bad)
    assert used.draw(good).kept == good["a"].numel() * 2 - pruned_count(140, ratio)


@pytest.mark.usefixtures("engine")
def test_infinity_times_a_weight_of_zero_is_refused_too() -> None:
    draw = Drawing({"w": torch.ones(3)}, ratio=0.5, weight=torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match=r"scores of 'w' \(got NaN\)"):
        draw.draw({"w": torch.tensor([1.0, math.inf, 1.0])})


@pytest.mark.skipif(not _numba.available(), reason="needs numba")
def test_compiled_ranks_are_those_of_the_order() -> None:
    from gebt.prune import kernels

    entries = [0, 1, 63, 10**6, 2**40]
    assert [int(kernels.rank(i, np.uint64(ORDER.start))) - 2**63 for i in entries] == ORDER.of(
        torch.tensor(entries)
    ).tolist()


def test_all_engines_draw_the_same_words() -> None:
    if not _numba.available():
        pytest.skip("needs numba")
    threads = torch.get_num_threads()
    values = torch.randn(20_000, generator=seeded()).round(decimals=2)
    masks: list[Mask] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "PARALLEL_FROM", 0)
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            masks.append(Drawing({"w": values}, ratio=0.3).draw({"w": values}))
    torch.set_num_threads(threads)
    assert masks[0] == masks[1] == masks[2]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2), r"weight \(got shape \(2,\)\), expected \(3,\)"),
        (torch.tensor([1.0, -1.0, 1.0]), r"weight \(got a negative number, infinity or NaN\), expected finite"),
        (torch.tensor([1.0, float("nan"), 1.0]), r"weight \(got a negative number, infinity or NaN\)"),
        (torch.tensor([1.0, math.inf, 1.0]), r"weight \(got a negative number, infinity or NaN\)"),
    ],
)
def test_weights_that_make_no_sense_are_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Drawing({"w": torch.ones(3)}, ratio=0.5, weight=weight)


def test_a_bad_ratio_and_other_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prune ratio \(got 1.0\)"):
        Drawing({"w": torch.ones(3)}, ratio=1.0)
    with pytest.raises(ValueError, match=r"tensors \(got 4 entries\), expected 3 as the drawing was made for"):
        Drawing({"w": torch.ones(3)}, ratio=0.5).draw({"w": torch.ones(4)})
    with pytest.raises(ValueError, match=r"tensors \(got \['v'\]\), expected \['w'\]"):
        Drawing({"w": torch.ones(3)}, ratio=0.5).draw({"v": torch.ones(3)})


def test_a_bracket_follows_a_steady_drift_and_narrows_around_it() -> None:
    bracket = Bracket(1 << 20)
    for step in range(40):
        if step > 2:
            low, high = bracket.guess()
            assert low <= 10**9 + 5000 * step <= high
        bracket.learn(10**9 + 5000 * step, None if step < 2 else 10_000)
    low, high = bracket.guess()
    assert high - low < 100
