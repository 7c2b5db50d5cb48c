from __future__ import annotations

import io
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gebt.prune import EarlyBird, Mask, mask_distance
from gebt.prune.detector import Criterion, Normalization, pairwise_distances
from gebt.prune.drawing import Drawing

NORMALISATIONS = get_args(Normalization)


def mask_of(*kept: int, name: str = "w") -> Mask:
    return Mask({name: torch.tensor(kept, dtype=torch.bool)})


def random_mask(kept: int, size: int, seed: int) -> Mask:
    places = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:kept]
    return Mask({"w": torch.zeros(size, dtype=torch.bool).index_fill_(0, places, True)})


def moved(kept: int, size: int, exchanged: int) -> Mask:
    """The first `kept` of `size` entries, the first `exchanged` of them given up for the next ones."""
    bits = torch.zeros(size, dtype=torch.bool)
    bits[exchanged : kept + exchanged] = True
    return Mask({"w": bits})


@given(size=st.integers(1, 20), seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)), data=st.data())
def test_distance_is_a_normalized_metric(size: int, seeds: tuple[int, int], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, size))
    a, b = random_mask(kept, size, seeds[0]), random_mask(kept, size, seeds[1])
    for per in NORMALISATIONS:
        assert mask_distance(a, a, per) == 0
        assert mask_distance(a, b, per) == mask_distance(b, a, per)
        assert 0 <= mask_distance(a, b, per) <= 1
        assert (mask_distance(a, b, per) == 0) == (a == b)
    complement = Mask({"w": ~a["w"]})
    assert mask_distance(a, complement) == 1
    assert mask_distance(a, b) <= 2 * min(kept, size - kept) / size


@pytest.mark.parametrize(("kept", "size", "reach"), [(3, 20, 3), (10, 20, 10), (17, 20, 3)])
def test_swap_spans_zero_to_one_at_every_ratio(kept: int, size: int, reach: int) -> None:
    start = moved(kept, size, 0)
    for exchanged in range(reach + 1):
        assert mask_distance(start, moved(kept, size, exchanged), "exchanged") == exchanged / reach
        assert mask_distance(start, moved(kept, size, exchanged), "hamming") == 2 * exchanged / size


@pytest.mark.parametrize("kept", [0, 4])
def test_swap_of_masks_that_prune_nothing_or_everything_is_zero(kept: int) -> None:
    assert mask_distance(moved(kept, 4, 0), moved(kept, 4, 0), "exchanged") == 0


def test_swap_from_an_empty_mask_to_another_counts_as_all_moved() -> None:
    assert mask_distance(moved(0, 4, 0), moved(1, 4, 0), "exchanged") == 1


def test_distance_counts_over_all_tensors_together() -> None:
    a = Mask({"x": torch.tensor([True, False]), "y": torch.ones(2, 4, dtype=torch.bool)})
    b = Mask({"x": torch.tensor([False, True]), "y": torch.ones(2, 4, dtype=torch.bool)})
    assert mask_distance(a, b) == 0.2


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("per", NORMALISATIONS)
@pytest.mark.parametrize("size", [1, 64, 1000, 1 << 18])
def test_distance_is_the_same_whether_masks_are_booleans_or_bits(per: Normalization, size: int) -> None:
    def drawn(seed: int) -> Mask:
        values = torch.rand(size, generator=torch.Generator().manual_seed(seed))
        return Drawing({"w": values}, ratio=0.3).draw({"w": values})

    a, b = drawn(0), drawn(1)
    plain_a, plain_b = Mask({"w": a["w"]}), Mask({"w": b["w"]})
    expected = mask_distance(plain_a, plain_b, per)
    assert mask_distance(a, b, per) == mask_distance(a, plain_b, per) == mask_distance(plain_a, b, per) == expected
    assert mask_distance(a, a, per) == 0


@pytest.mark.usefixtures("engine")
def test_bits_laid_out_in_another_order_of_the_names_are_compared_by_name() -> None:
    tensors = {"x": torch.tensor([1.0, 4.0]), "y": torch.tensor([2.0, 3.0, 5.0])}
    turned = dict(reversed(tensors.items()))
    a, b = (Drawing(t, ratio=0.6).draw(t) for t in (tensors, turned))
    assert mask_distance(a, b) == 0


@pytest.mark.usefixtures("engine")
def test_the_state_of_a_detector_is_the_same_whether_masks_are_booleans_or_bits() -> None:
    tensors = {"x": torch.arange(1.0, 8.0), "y": torch.arange(12.0).view(3, 4)}
    drawn = Drawing(tensors, ratio=0.4).draw(tensors)
    birds = EarlyBird(), EarlyBird()
    for bird, mask in zip(birds, (drawn, Mask(dict(drawn))), strict=True):
        bird.update(mask)
        bird.update(mask)
    file, other = io.BytesIO(), io.BytesIO()
    torch.save(birds[0].state_dict(), file)
    torch.save(birds[1].state_dict(), other)
    assert file.getvalue() == other.getvalue()
    resumed = EarlyBird()
    resumed.load_state_dict(birds[0].state_dict())
    assert [resumed.update(drawn), resumed.update(drawn)] == [birds[1].update(drawn), birds[1].update(drawn)]


def test_masks_of_other_names_or_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"masks of different tensors \(got \['v'\] and \['w'\]\)"):
        mask_distance(mask_of(1, name="v"), mask_of(1))
    with pytest.raises(ValueError, match=r"mask 'w' \(got \(1,\) and \(2,\)\), expected one shape"):
        mask_distance(mask_of(1), mask_of(1, 0))


@given(draws=st.integers(1, 5), size=st.integers(0, 7), seed=st.integers(0, 99))
def test_pairwise_distances_are_those_of_the_double_loop(draws: int, size: int, seed: int) -> None:
    masks = torch.rand(draws, size, generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = [[mask_distance(Mask({"w": a}), Mask({"w": b})) for b in masks] for a in masks]
    torch.testing.assert_close(pairwise_distances(masks), torch.tensor(expected))


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("normalization", NORMALISATIONS)
def test_constant_masks_fire_exactly_when_the_queue_is_full(
    window: int, warmup: int, normalization: Normalization
) -> None:
    bird = EarlyBird(window=window, warmup=warmup, normalization=normalization)
    first = warmup + window + 1
    assert [bird.update(mask_of(1, 0)) for _ in range(first + 2)] == [False] * (first - 1) + [True] * 3


def test_one_large_distance_blocks_the_detector_for_a_window() -> None:
    still, other = moved(5, 10, 0), moved(5, 10, 1)
    bird = EarlyBird(threshold=0.1, window=2)
    assert [bird.update(m) for m in (still, other, other, other)] == [False, False, False, True]


def test_distances_in_warmup_are_recorded_but_do_not_count() -> None:
    bird = EarlyBird(threshold=0.1, window=2, warmup=1)
    fired = [bird.update(m) for m in (moved(5, 10, 0), moved(5, 10, 1), moved(5, 10, 1), moved(5, 10, 1))]
    assert fired == [False, False, False, True]
    assert [row["criterion"] for row in bird.trajectory] == [0.2, 0.0, 0.0]


def test_the_threshold_itself_does_not_fire() -> None:
    bird = EarlyBird(threshold=0.2, window=1)
    assert not any(bird.update(m) for m in (moved(5, 10, 0), moved(5, 10, 1), moved(5, 10, 0)))


def test_a_detector_that_fired_stays_fired() -> None:
    bird = EarlyBird(window=1)
    for mask in (moved(5, 10, 0), moved(5, 10, 0), moved(5, 10, 5)):
        bird.update(mask)
    assert bird.fired


@pytest.mark.parametrize(("criterion", "fires"), [("sum", False), ("weights", True), ("edges", False)])
def test_the_criterion_says_which_distance_must_be_small(criterion: Criterion, fires: bool) -> None:
    bird = EarlyBird(threshold=0.1, window=2, criterion=criterion)
    for step in range(4):  # d_w = 0.06, d_g = 0.12: under the sum rule 0.18
        bird.update(moved(50, 100, 3 * (step % 2)), moved(50, 100, 6 * (step % 2)))
    assert bird.fired == fires
    watched = {"sum": 0.18, "weights": 0.06, "edges": 0.12}[criterion]
    assert bird.trajectory[-1] == {"weights": 0.06, "edges": 0.12, "criterion": pytest.approx(watched)}


def test_the_sum_adds_and_does_not_average() -> None:
    fired = {}
    for threshold in (0.17, 0.19):
        bird = EarlyBird(threshold=threshold, window=1)
        for step in range(2):
            fired[threshold] = bird.update(moved(50, 100, 3 * step), moved(50, 100, 6 * step))
    assert fired == {0.17: False, 0.19: True}


def test_first_divides_each_kind_by_its_first_distance_that_is_not_zero() -> None:
    bird = EarlyBird(normalization="relative_to_first", window=1)
    weights = [moved(5, 10, x) for x in (0, 0, 2, 3)]  # distances 0, 0.4, 0.2
    edges = [moved(5, 10, x) for x in (0, 4, 4, 2)]  # distances 0.8, 0, 0.4
    for pair in zip(weights, edges, strict=True):
        bird.update(*pair)
    assert [row["weights"] for row in bird.trajectory] == [0, 1, 0.5]
    assert [row["edges"] for row in bird.trajectory] == [1, 0, 0.5]


@pytest.mark.parametrize("normalization", NORMALISATIONS)
@pytest.mark.parametrize("cut", [0, 1, 2, 5, 6, 7, 8])
def test_a_resumed_detector_goes_on_as_if_it_had_never_stopped(normalization: Normalization, cut: int) -> None:
    # They move for four draws and stand still: the queue that fires at the eighth is filled on both sides of it.
    draws = [(moved(4, 10, min(s, 4)), moved(6, 13, min(s, 2))) for s in range(10)]

    def bird() -> EarlyBird:
        return EarlyBird(0.05, 3, normalization, warmup=1)

    straight, before, after = bird(), bird(), bird()
    expected = [straight.update(*masks) for masks in draws]
    assert expected == [False] * 7 + [True] * 3
    got = [before.update(*masks) for masks in draws[:cut]]
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after.load_state_dict(torch.load(file, weights_only=True))
    got += [after.update(*masks) for masks in draws[cut:]]
    assert got == expected
    assert after.trajectory == straight.trajectory
    assert (after.draws, after.fired) == (straight.draws, straight.fired)


def test_a_state_is_a_copy() -> None:
    bird = EarlyBird(window=1)
    bird.update(moved(2, 4, 0))
    state = bird.state_dict()
    bird.update(moved(2, 4, 1))
    assert state["trajectory"] == []
    assert state["draws"] == 1


def test_masks_of_other_kinds_or_tensors_than_before_are_refused() -> None:
    bird = EarlyBird()
    bird.update(mask_of(1, 0), mask_of(1))
    with pytest.raises(ValueError, match=r"masks drawn \(got \['weights'\]\), expected \['edges', 'weights'\]"):
        bird.update(mask_of(1, 0))
    with pytest.raises(ValueError, match="expected the same names"):
        bird.update(mask_of(1, 0, name="v"), mask_of(1))


def test_the_edge_criterion_without_edge_masks_is_refused() -> None:
    bird = EarlyBird(criterion="edges")
    bird.update(mask_of(1))
    with pytest.raises(ValueError, match=r"criterion \(got 'edges'\), expected masks of that kind in update"):
        bird.update(mask_of(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, r"threshold \(got 0.0\), expected a positive number"),
        ({"threshold": float("nan")}, r"threshold \(got nan\), expected a positive number"),
        ({"window": 0}, r"window, warmup \(got 0, 0\), expected window >= 1"),
        ({"warmup": -1}, r"window, warmup \(got 3, -1\)"),
        ({"normalization": "kept"}, r"normalization \(got 'kept'\), expected one of"),
        ({"criterion": "mean"}, r"criterion \(got 'mean'\), expected one of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EarlyBird(**settings)  # type: ignore[arg-type]


def drawn(*bits: int) -> Mask:
    return Mask({"w": torch.tensor(bits, dtype=torch.bool)})


def drifting(steps: int) -> list[Mask]:
    """One entry of ten changes at every draw: a tenth from one to the next, ever more from the newest to older ones."""
    return [drawn(*(int(place >= step) for place in range(10))) for step in range(steps)]


def test_the_newest_draw_is_compared_with_all_of_the_window() -> None:
    bird = EarlyBird(threshold=0.15, window=3, compare="window")
    assert [bird.update(mask) for mask in drifting(8)] == [False] * 8
    assert [row["criterion"] for row in bird.trajectory] == pytest.approx([0.1, 0.2, *[0.3] * 5])
    assert EarlyBird(threshold=0.15, window=3).update(drifting(1)[0]) is False
    slow = EarlyBird(threshold=0.15, window=3)
    assert [slow.update(mask) for mask in drifting(5)] == [False, False, False, True, True]


def test_the_newest_rule_fires_at_the_draw_after_its_window_and_resumes() -> None:
    bird = EarlyBird(threshold=0.1, window=4, compare="window")
    masks = [drawn(0, 0, 0), *[drawn(1, 1, 0)] * 6]
    fired = []
    for number, mask in enumerate(masks):
        if number == 3:
            state, bird = bird.state_dict(), EarlyBird(threshold=0.1, window=4, compare="window")
            bird.load_state_dict(state)
        fired.append(bird.update(mask))
    # The first mask is in the window up to the fifth draw.
    assert fired == [False] * 5 + [True] * 2
    warm = EarlyBird(threshold=0.1, window=2, warmup=3, compare="window")
    assert [warm.update(masks[1]) for _ in range(7)] == [False] * 5 + [True] * 2
    with pytest.raises(ValueError, match=r"compare \(got 'all'\), expected one of \('previous', 'window'\)"):
        EarlyBird(compare="all")  # type: ignore[arg-type]
