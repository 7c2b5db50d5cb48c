from __future__ import annotations

import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gebt.prune import select
from gebt.prune.selection import pruned_count
from gebt.prune.ties import TieOrder

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
        select({"w": torch.rand(4)}, ratio=ratio)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("levels", [1, 2, 5, 10**6])
@pytest.mark.parametrize("shape", [(1,), (7,), (40, 25), (3, 5, 7)])
def test_the_count_is_exact_with_and_without_ties(shape: tuple[int, ...], levels: int, ratio: float) -> None:
    score = scores_with_ties(math.prod(shape), levels, seed=len(shape)).view(shape)
    mask = select({"w": score}, ratio=ratio)
    assert mask["w"].shape == shape
    assert mask.kept == mask.size - pruned_count(mask.size, ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_zero_scores_in_plenty_do_not_change_the_count(ratio: float) -> None:
    score = torch.rand(1000, generator=seeded()) * (torch.rand(1000, generator=seeded(1)) < 0.1)
    mask = select({"w": score}, ratio=ratio)
    assert mask.kept == 1000 - pruned_count(1000, ratio)


@pytest.mark.parametrize("ratio", RATIOS)
def test_scope_tensor_floors_in_each_tensor_and_scope_global_in_all(ratio: float) -> None:
    scores = {"a": torch.rand(37), "b": torch.ones(5, 5), "c": torch.zeros(3)}
    each = select(scores, ratio=ratio, scope="tensor")
    assert {n: int(k.sum()) for n, k in each.items()} == {
        n: s.numel() - pruned_count(s.numel(), ratio) for n, s in scores.items()
    }
    assert select(scores, ratio=ratio, allow_empty=True).kept == 65 - pruned_count(65, ratio)


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
    together = select(scores, ratio=ratio, order=order, allow_empty=True)
    assert together.flat().tolist() == kept_by_stable_sort(score, order, pruned_count(total, ratio))
    each = select(scores, ratio=ratio, scope="tensor", order=order)
    for kept, part, ranks in zip(each.values(), score.split(sizes), order.split(sizes), strict=True):
        assert kept.tolist() == kept_by_stable_sort(part, ranks, pruned_count(part.numel(), ratio))


def test_everything_pruned_lies_at_or_under_everything_kept() -> None:
    score = scores_with_ties(500, 40, seed=3)
    kept = select({"w": score}, ratio=0.37)["w"]
    assert float(score[~kept].max()) <= float(score[kept].min())


@given(levels=st.integers(1, 4), ratio=st.sampled_from(RATIOS), seed=st.integers(0, 50))
def test_relabelling_the_entries_with_their_order_relabels_the_mask(levels: int, ratio: float, seed: int) -> None:
    score, order = scores_with_ties(30, levels, seed), torch.randperm(30, generator=seeded(seed))
    places = torch.randperm(30, generator=seeded(seed + 100))
    kept = select({"w": score}, ratio=ratio, order=order)["w"]
    moved = select({"w": score[places]}, ratio=ratio, order=order[places])["w"]
    assert torch.equal(moved, kept[places])


@pytest.mark.parametrize("ratio", [0.25, 0.8])
def test_equal_scores_favour_no_position(ratio: float) -> None:
    draws = 2000
    kept = torch.stack([select({"w": torch.ones(20)}, ratio=ratio, generator=seeded(s))["w"] for s in range(draws)])
    spread = math.sqrt(ratio * (1 - ratio) / draws)
    assert float((kept.float().mean(0) - (1 - ratio)).abs().max()) < 4.5 * spread


def test_ties_at_the_threshold_alone_are_settled_at_random() -> None:
    score = torch.tensor([0.0, 1, 1, 1, 1, 2])
    masks = {tuple(select({"w": score}, ratio=0.5, generator=seeded(s))["w"].tolist()) for s in range(100)}
    assert len(masks) == 6  # two of the four tied entries stay: every choice occurs
    assert all(not mask[0] and mask[5] for mask in masks)


def test_ties_are_seeded_and_the_default_is_the_order_of_seed_zero() -> None:
    def draw(seed: int) -> Tensor:
        return select({"w": torch.ones(50)}, ratio=0.5, generator=seeded(seed))["w"]

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert select({"w": torch.ones(50)}, ratio=0.5) == select({"w": torch.ones(50)}, ratio=0.5, order=TieOrder(0))


def test_a_tied_entry_of_larger_order_stays() -> None:
    kept = select({"w": torch.ones(4)}, ratio=0.5, order=torch.tensor([2, 0, 3, 1]))["w"]
    assert kept.tolist() == [True, False, True, False]


def test_an_order_that_is_computed_settles_ties_as_its_ranks_do() -> None:
    scores, order = {"a": torch.ones(20), "b": torch.ones(5, 4)}, TieOrder(4)
    for scope in ("global", "tensor"):
        computed = select(scores, ratio=0.5, scope=scope, order=order)  # type: ignore[arg-type]
        assert computed == select(scores, ratio=0.5, scope=scope, order=order.of(torch.arange(40)))  # type: ignore[arg-type]


def test_selection_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    select({"w": torch.ones(10)}, ratio=0.5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_layer_that_global_selection_would_empty_is_named() -> None:
    scores = {"large": torch.ones(6), "small": torch.full((2,), 0.1)}
    with pytest.raises(ValueError, match=r"prune ratio \(got 0.5\) would remove all 2 entries of 'small'"):
        select(scores, ratio=0.5)
    allowed = select(scores, ratio=0.5, allow_empty=True)
    assert not allowed["small"].any()
    assert select(scores, ratio=0.5, scope="tensor")["small"].sum() == 1


def test_infinite_scores_rank_as_numbers() -> None:
    score = torch.tensor([float("inf"), 1.0, float("-inf"), 2.0])
    assert select({"w": score}, ratio=0.5)["w"].tolist() == [True, False, False, True]


def test_a_nan_score_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"scores of 'b' \(got NaN\), expected numbers"):
        select({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])}, ratio=0.5)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scope \(got 'layer'\), expected 'global' or 'tensor'"):
        select({"w": torch.ones(2)}, ratio=0.5, scope="layer")  # type: ignore[arg-type]


def test_an_order_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tie order \(got shape \(3,\)\), expected \(4,\)"):
        select({"w": torch.ones(4)}, ratio=0.5, order=torch.arange(3))


def test_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="got no tensor"):
        select({}, ratio=0.5)


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
    assert torch.equal(select({"s": score}, ratio=ratio, order=order)["s"], expected)
