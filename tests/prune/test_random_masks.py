"""Random masks: exact counts in every distribution, ERK by its formula, shuffles that keep what they say."""

from __future__ import annotations

import pytest
import torch

from gebt.prune.mask import Mask
from gebt.prune.random_masks import kept_counts, random_mask, shuffled

SHAPES = {"conv": (8, 3, 3, 3), "wide": (40, 90), "head": (10, 40)}
TENSORS = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
TOTAL = sum(tensor.numel() for tensor in TENSORS.values())


def drawn(seed: int = 0, ratio: float = 0.87, **more: str) -> Mask:
    return random_mask(TENSORS, ratio=ratio, generator=torch.Generator().manual_seed(seed), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.87, 0.999])
def test_counts_are_exact_and_draws_follow_the_generator(distribution: str, ratio: float) -> None:
    mask = drawn(ratio=ratio, distribution=distribution)
    assert mask.kept == TOTAL - int(ratio * TOTAL)
    assert mask == drawn(ratio=ratio, distribution=distribution)
    if 0 < ratio < 0.99:
        assert mask != drawn(1, ratio=ratio, distribution=distribution)


def test_uniform_densities_are_equal() -> None:
    mask = drawn(distribution="uniform")
    for kept in mask.values():
        assert int(kept.sum()) == pytest.approx(0.13 * kept.numel(), abs=1)


def test_erk_densities_follow_the_sizes_and_are_at_most_one() -> None:
    shapes = {name: torch.Size(shape) for name, shape in SHAPES.items()}
    counts = kept_counts(shapes, 0.9, "erk")
    eps = counts["wide"] / sum(SHAPES["wide"])
    for name, shape in SHAPES.items():
        assert counts[name] == pytest.approx(eps * sum(shape), abs=1 + eps)
    dense = kept_counts(shapes, 0.5, "erk")
    assert dense["head"] == shapes["head"].numel()  # it would be more than all of it
    assert sum(dense.values()) == TOTAL - int(0.5 * TOTAL)
    density = {name: dense[name] / shapes[name].numel() for name in dense}
    assert density["wide"] < density["conv"] < density["head"] == 1


def test_shuffles_keep_counts_by_tensor_or_in_all() -> None:
    mask, generator = drawn(distribution="erk"), torch.Generator().manual_seed(1)
    by_layer = shuffled(mask, generator=generator)
    assert {name: int(kept.sum()) for name, kept in by_layer.items()} == {n: int(k.sum()) for n, k in mask.items()}
    assert by_layer != mask
    everywhere = shuffled(mask, generator=generator, within="all")
    assert everywhere.kept == mask.kept
    assert int(everywhere["wide"].sum()) != int(mask["wide"].sum())


def test_another_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distribution \(got 'fair'\), expected 'global', 'uniform' or 'erk'"):
        drawn(distribution="fair")
