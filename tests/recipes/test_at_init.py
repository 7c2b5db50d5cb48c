"""One call from any score to a mask on an untrained network."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from gebt.data.images import Images, load_images
from gebt.models.mlp import MLP
from gebt.prune.random_masks import kept_counts
from gebt.prune.scores import prunable_weights
from gebt.recipes.at_init import Score, few, mask_at_init
from gebt.train.images import ImageSettings

SETTINGS = ImageSettings(epochs=4, batch=64, crop=0, flip=False)


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images("digits").take(torch.arange(300))


@pytest.mark.parametrize("score", get_args(Score))
def test_counts_are_exact_and_follow_the_seed(score: Score, digits: Images) -> None:
    masks = [
        mask_at_init(MLP(64, 10, (20,), seed=0), digits, score=score, ratio=0.83, settings=SETTINGS, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert masks[0].kept == masks[0].size - int(0.83 * masks[0].size)
    assert masks[0] == masks[1]
    # Magnitude and SynFlow look at the network alone.
    assert (masks[0] == masks[2]) == (score in ("magnitude", "synflow"))


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_random_masks_have_the_asked_share_of_each_layer(distribution: str, digits: Images) -> None:
    model = MLP(64, 10, (20,), seed=0)
    mask = mask_at_init(model, digits, score=distribution, ratio=0.5)  # type: ignore[arg-type]
    shapes = {name: weight.shape for name, weight in prunable_weights(model).items()}
    assert {name: int(kept.sum()) for name, kept in mask.items()} == kept_counts(shapes, 0.5, distribution)  # type: ignore[arg-type]


def test_mining_tells_its_epochs_and_leaves_weights_of_one_size(digits: Images) -> None:
    model, told = MLP(64, 10, (20,), seed=0), list[int]()
    mask_at_init(
        model, digits, score="gem-miner", ratio=0.5, settings=SETTINGS, on_epoch=lambda epoch, loss: told.append(epoch)
    )
    assert told == [1, 2, 3, 4]
    assert model.layers[0].weight.abs().unique().numel() == 1  # type: ignore[union-attr, operator]


def test_few_takes_as_many_of_every_class(digits: Images) -> None:
    labels = few(digits, seed=0, per_class=3).labels
    assert torch.equal(labels.bincount(), torch.full((10,), 3))


def test_another_score_is_refused(digits: Images) -> None:
    with pytest.raises(ValueError, match=r"score \(got 'luck'\), expected one of \('synflow', "):
        mask_at_init(MLP(64, 10), digits, score="luck", ratio=0.5)  # type: ignore[arg-type]
