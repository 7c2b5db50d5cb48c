from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gebt.prune import magnitude, make_mask, prunable_weights
from gebt.prune.selection import pruned_count
from gebt.prune.slim.slim import masked_channels, slim
from gebt.prune.tie_breaking import TieBreaker

RATIOS = [0.0, 0.1, 0.29, 0.5, 0.75, 0.999]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores_with_ties(size: int, levels: int, seed: int) -> Tensor:
    return torch.randint(levels, (size,), generator=seeded(seed)).float()


def kept_by_stable_sort(score: Tensor, order: Tensor, prune: int) -> list[bool]:
    ranked = sorted(range(len(score)), key=lambda i: (float(score[i]), int(order[i])))
    dropped = set(ranked[:prune])
    return [i not in dropped for i in range(len(score))]


@pytest.mark.parametrize(
    ("size", "ratio", "count"),
    [(100, 0.29, 29), (100, 0.57, 57), (10, 0.0, 0), (1000, 0.999, 999), (7, 0.5, 3), (1, 0.99, 0), (0, 0.5, 0)],
)
def test_the_count_is_the_floor_of_the_decimal_product(size: int, ratio: float, count: int) -> None:
    assert pruned_count(size, ratio) == count


@given(size=st.integers(0, 50_000), thousandths=st.integers(0, 999))
def test_the_count_is_exact_for_every_ratio_of_three_digits(size: int, thousandths: int) -> None:
    assert pruned_count(size, thousandths / 1000) == thousandths * size // 1000


@pytest.mark.parametrize(("size", "ratio"), [(10**9, 0.0), (114_615_899, 0.1), (1, 0.9999999999)])
def test_the_count_is_exact_at_any_size(size: int, ratio: float) -> None:
    assert pruned_count(size, ratio) == math.floor(Decimal(str(ratio)) * size)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_ratio_outside_zero_to_one_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"prune ratio \(got {ratio}\), expected 0 <= ratio < 1"):
        make_mask({"w": torch.rand(4)}, ratio=ratio)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
@pytest.mark.parametrize("shape", [(1,), (7,), (40, 25), (3, 5, 7)])
def test_the_count_is_exact_with_and_without_ties(shape: tuple[int, ...], levels: int, ratio: float) -> None:
    score = scores_with_ties(math.prod(shape), levels, seed=len(shape)).view(shape)
    mask = make_mask({"w": score}, ratio=ratio)
    assert mask["w"].shape == shape
    assert mask.kept == mask.size - pruned_count(mask.size, ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_zero_scores_in_plenty_do_not_change_the_count(ratio: float) -> None:
    score = torch.rand(1000, generator=seeded()) * (torch.rand(1000, generator=seeded(1)) < 0.1)
    mask = make_mask({"w": score}, ratio=ratio)
    assert mask.kept == 1000 - pruned_count(1000, ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_scope_tensor_floors_in_each_tensor_and_scope_global_in_all(ratio: float) -> None:
    scores = {"a": torch.rand(37), "b": torch.ones(5, 5), "c": torch.zeros(3)}
    each = make_mask(scores, ratio=ratio, scope="layer")
    assert {n: int(k.sum()) for n, k in each.items()} == {
        n: s.numel() - pruned_count(s.numel(), ratio) for n, s in scores.items()
    }
    assert make_mask(scores, ratio=ratio, allow_empty=True).kept == 65 - pruned_count(65, ratio)


@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    levels=st.integers(1, 6),
    ratio=st.sampled_from(RATIOS),
    seed=st.integers(0, 50),
)
def test_the_kept_set_is_that_of_a_stable_sort(sizes: list[int], levels: int, ratio: float, seed: int) -> None:
    total = sum(sizes)
    score, order = scores_with_ties(total, levels, seed), torch.randperm(total, generator=seeded(seed + 1))
    scores = {str(i): part for i, part in enumerate(score.split(sizes))}
    together = make_mask(scores, ratio=ratio, tie_break=order, allow_empty=True)
    assert together.flat().tolist() == kept_by_stable_sort(score, order, pruned_count(total, ratio))
    each = make_mask(scores, ratio=ratio, scope="layer", tie_break=order)
    for kept, part, ranks in zip(each.values(), score.split(sizes), order.split(sizes), strict=True):
        assert kept.tolist() == kept_by_stable_sort(part, ranks, pruned_count(part.numel(), ratio))


def test_everything_pruned_lies_at_or_under_everything_kept() -> None:
    score = scores_with_ties(500, 40, seed=3)
    kept = make_mask({"w": score}, ratio=0.37)["w"]
    assert float(score[~kept].max()) <= float(score[kept].min())


@given(levels=st.integers(1, 4), ratio=st.sampled_from(RATIOS), seed=st.integers(0, 50))
def test_relabeling_the_entries_with_their_order_relabels_the_mask(levels: int, ratio: float, seed: int) -> None:
    score, order = scores_with_ties(30, levels, seed), torch.randperm(30, generator=seeded(seed))
    places = torch.randperm(30, generator=seeded(seed + 100))
    kept = make_mask({"w": score}, ratio=ratio, tie_break=order)["w"]
    moved = make_mask({"w": score[places]}, ratio=ratio, tie_break=order[places])["w"]
    assert torch.equal(moved, kept[places])


@pytest.mark.parametrize("ratio", [0.25, 0.8])
def test_equal_scores_favor_no_position(ratio: float) -> None:
    draws = 2000
    kept = torch.stack([make_mask({"w": torch.ones(20)}, ratio=ratio, generator=seeded(s))["w"] for s in range(draws)])
    spread = math.sqrt(ratio * (1 - ratio) / draws)
    assert float((kept.float().mean(0) - (1 - ratio)).abs().max()) < 4.5 * spread


def test_ties_at_the_threshold_alone_are_settled_at_random() -> None:
    score = torch.tensor([0.0, 1, 1, 1, 1, 2])
    masks = {tuple(make_mask({"w": score}, ratio=0.5, generator=seeded(s))["w"].tolist()) for s in range(100)}
    assert len(masks) == 6  # two of the four tied entries stay: every choice occurs
    assert all(not mask[0] and mask[5] for mask in masks)


def test_ties_are_seeded_and_the_default_is_the_order_of_seed_zero() -> None:
    def draw(seed: int) -> Tensor:
        return make_mask({"w": torch.ones(50)}, ratio=0.5, generator=seeded(seed))["w"]

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert make_mask({"w": torch.ones(50)}, ratio=0.5) == make_mask(
        {"w": torch.ones(50)}, ratio=0.5, tie_break=TieBreaker(0)
    )


def test_a_tied_entry_of_larger_order_stays() -> None:
    kept = make_mask({"w": torch.ones(4)}, ratio=0.5, tie_break=torch.tensor([2, 0, 3, 1]))["w"]
    assert kept.tolist() == [True, False, True, False]


def test_an_order_that_is_computed_settles_ties_as_its_ranks_do() -> None:
    scores, order = {"a": torch.ones(20), "b": torch.ones(5, 4)}, TieBreaker(4)
    for scope in ("global", "layer"):
        computed = make_mask(scores, ratio=0.5, scope=scope, tie_break=order)  # type: ignore[arg-type]
        assert computed == make_mask(scores, ratio=0.5, scope=scope, tie_break=order.of(torch.arange(40)))  # type: ignore[arg-type]


def test_selection_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    make_mask({"w": torch.ones(10)}, ratio=0.5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_layer_that_global_selection_would_empty_is_named() -> None:
    scores = {"large": torch.ones(6), "small": torch.full((2,), 0.1)}
    with pytest.raises(ValueError, match=r"prune ratio \(got 0.5\) would remove all 2 entries of 'small'"):
        make_mask(scores, ratio=0.5)
    allowed = make_mask(scores, ratio=0.5, allow_empty=True)
    assert not allowed["small"].any()
    assert make_mask(scores, ratio=0.5, scope="layer")["small"].sum() == 1


def test_infinite_scores_rank_as_numbers() -> None:
    score = torch.tensor([float("inf"), 1.0, float("-inf"), 2.0])
    assert make_mask({"w": score}, ratio=0.5)["w"].tolist() == [True, False, False, True]


def test_a_nan_score_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"scores of 'b' \(got NaN\), expected numbers"):
        make_mask({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, ratio=0.5)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scope \(got 'row'\), expected 'global', 'layer' or 'channel'"):
        make_mask({"w": torch.ones(2)}, ratio=0.5, scope="row")  # type: ignore[arg-type]


def test_an_order_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tie break \(got shape \(3,\)\), expected \(4,\)"):
        make_mask({"w": torch.ones(4)}, ratio=0.5, tie_break=torch.arange(3))


def test_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="got no tensor"):
        make_mask({}, ratio=0.5)


def channels_kept(kept: Tensor) -> list[bool]:
    """Which channels are kept; fails when one is kept in part."""
    rows = kept.reshape(kept.shape[0], -1)
    assert torch.equal(rows.all(1), rows.any(1))
    return rows.all(1).tolist()


def test_scope_channel_ranks_the_means_of_channels_of_all_tensors_together() -> None:
    scores = {
        "wide": torch.tensor([[3.0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1], [9, 9, 9, 9, 9, 9]]),  # means 2/3, 1, 9
        "narrow": torch.tensor([[[0.9, 0.9]], [[0.5, 0.1]]]),  # means 0.9, 0.3; sums are under those of "wide"
        "scale": torch.tensor([0.8, 0.2]),
    }
    expected = {
        0.0: ([True, True, True], [True, True], [True, True]),
        0.3: ([True, True, True], [True, False], [True, False]),
        0.5: ([False, True, True], [True, False], [True, False]),
        0.6: ([False, True, True], [True, False], [False, False]),
        0.8: ([False, True, True], [False, False], [False, False]),
    }
    for ratio, kept in expected.items():
        mask = make_mask(scores, ratio=ratio, scope="channel", allow_empty=True)
        assert mask.shapes == {name: score.shape for name, score in scores.items()}
        assert tuple(channels_kept(tensor) for tensor in mask.values()) == kept


@given(
    shapes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=3),
    levels=st.integers(1, 4),
    ratio=st.sampled_from(RATIOS),
    seed=st.integers(0, 50),
)
def test_scope_channel_keeps_what_a_stable_sort_of_the_means_keeps(
    shapes: list[list[int]], levels: int, ratio: float, seed: int
) -> None:
    scores = {str(i): scores_with_ties(math.prod(s), levels, seed + i).view(s) for i, s in enumerate(shapes)}
    means = torch.cat([score.reshape(score.shape[0], -1).mean(1) for score in scores.values()])
    order = torch.randperm(len(means), generator=seeded(seed))
    mask = make_mask(scores, ratio=ratio, scope="channel", tie_break=order, allow_empty=True)
    kept = [flag for tensor in mask.values() for flag in channels_kept(tensor)]
    assert kept == kept_by_stable_sort(means, order, pruned_count(len(means), ratio))


def test_equal_channels_favor_no_position() -> None:
    draws, score = 500, torch.ones(20, 3)
    drawn = [make_mask({"w": score}, ratio=0.25, scope="channel", generator=seeded(s))["w"][:, 0] for s in range(draws)]
    assert float((torch.stack(drawn).float().mean(0) - 0.75).abs().max()) < 4.5 * math.sqrt(0.25 * 0.75 / draws)


def test_channels_of_half_precision_and_of_numbers_without_fraction_are_ranked_exactly() -> None:
    score = torch.ones(2, 256)
    score[0, 0] = 1.0078125  # means 1 + 2^-15 and 1: one and the same bfloat16
    for kind, factor in ((torch.bfloat16, 1), (torch.float16, 1), (torch.float64, 1), (torch.int64, 128)):
        for rows in (score, score.flip(0)):
            kept = make_mask({"w": (rows * factor).to(kind)}, ratio=0.5, scope="channel")["w"]
            assert channels_kept(kept) == (rows.sum(1) > 256).tolist()


def test_scope_channel_takes_numbers_and_tensors_without_entries() -> None:
    scores = {"number": torch.tensor(5.0), "none": torch.ones(3, 0), "w": torch.tensor([[1.0, 1.0], [9.0, 9.0]])}
    mask = make_mask(scores, ratio=0.4, scope="channel")
    assert mask.shapes == {name: score.shape for name, score in scores.items()}
    assert bool(mask["number"])
    assert channels_kept(mask["w"]) == [False, True]


def test_scope_channel_refuses_an_empty_layer_and_nan_by_name() -> None:
    scores = {"large": torch.ones(6, 2), "small": torch.full((2, 2), 0.1)}
    with pytest.raises(ValueError, match=r"would remove all 4 entries of 'small'.*; use a lower ratio, or allow_empty"):
        make_mask(scores, ratio=0.5, scope="channel")
    assert not make_mask(scores, ratio=0.5, scope="channel", allow_empty=True)["small"].any()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"scores of 'b' \(got NaN\), expected numbers"):
            make_mask({"b": torch.tensor([[bad, -bad], [1.0, 1.0]])}, ratio=0.5, scope="channel")


def test_a_mask_of_channels_is_what_slim_takes_out() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 3)
    network = nn.Sequential(*layers)
    scores = magnitude(prunable_weights(network))
    del scores["5.weight"]
    mask = make_mask(scores, ratio=0.3, scope="channel")
    x = torch.randn(2, 3, 8, 8, generator=seeded())
    small = slim(network, mask, example=x)
    convolutions = [layer for layer in small.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [sum(channels_kept(tensor)) for tensor in mask.values()]
    assert convolutions[0].out_channels + convolutions[1].out_channels == 24 - 7
    torch.testing.assert_close(small(x), masked_channels(network, mask)(x))


@pytest.mark.parametrize(
    "score",
    [
        torch.rand(20_000, generator=torch.Generator().manual_seed(0)),
        torch.randn(20_000, generator=torch.Generator().manual_seed(1)),
        torch.zeros(20_000),
        -torch.zeros(20_000),
        torch.rand(20_000, generator=torch.Generator().manual_seed(2)).mul(5).floor(),
        torch.rand(20_000, generator=torch.Generator().manual_seed(3)).pow(40),
        torch.rand(20_000, generator=torch.Generator().manual_seed(4)).double(),
        torch.cat((torch.full((9_999,), float("inf")), torch.rand(10_001, generator=torch.Generator().manual_seed(5)))),
    ],
    ids=["uniform", "signed", "equal", "minus zero", "ties", "tiny", "double", "infinite"],
)
@pytest.mark.parametrize("ratio", [0.0001, 0.2, 0.5, 0.9, 0.9999])
def test_large_selections_equal_a_sort(score, ratio):
    order = torch.randperm(score.numel(), generator=torch.Generator().manual_seed(6))
    ranked = sorted(range(score.numel()), key=lambda i: (float(score[i]), int(order[i])))
    expected = torch.ones(score.numel(), dtype=torch.bool)
    expected[ranked[: int(ratio * score.numel())]] = False
    assert torch.equal(make_mask({"s": score}, ratio=ratio, tie_break=order)["s"], expected)


@pytest.mark.parametrize("scope", ["global", "channel"])
def test_a_share_of_every_tensor_stays_where_that_is_asked(scope: Any) -> None:
    scores = {"low": torch.arange(10.0), "high": 100 + torch.arange(30.0)}
    assert int(make_mask(scores, ratio=0.25, scope=scope, allow_empty=True)["low"].sum()) == 0
    mask = make_mask(scores, ratio=0.25, scope=scope, min_keep=0.25)
    assert mask.kept == 30
    assert mask["low"].nonzero().squeeze(1).tolist() == [7, 8, 9]  # ceil(2.5), its highest
    assert mask["high"].nonzero().squeeze(1).tolist() == list(range(3, 30))


def test_a_share_that_stays_is_settled_by_the_same_order() -> None:
    scores = {"a": torch.zeros(12), "b": torch.ones(12)}
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    kept = make_mask(scores, ratio=0.5, min_keep=0.5, tie_break=order)["a"]
    assert torch.equal(kept, order[:12] >= order[:12].sort().values[6])


@pytest.mark.parametrize(
    ("min_keep", "message"),
    [
        (1.5, r"min_keep \(got 1\.5\), expected 0 <= min_keep <= 1"),
        (0.8, r"\(got 0\.5, 0\.8\), expected at most 4 of 20"),
    ],
)
def test_shares_that_leave_too_few_to_prune_are_refused(min_keep: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_mask({"a": torch.rand(10), "b": torch.rand(10)}, ratio=0.5, min_keep=min_keep)
