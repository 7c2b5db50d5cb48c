from __future__ import annotations

import pytest
import torch
from torch import nn

import gebt
from gebt.models import GCN
from gebt.prune import magnitude, prunable_weights
from gebt.prune.scores import bn_scale, random


def test_magnitude_is_the_absolute_value_without_a_graph() -> None:
    scores = magnitude({"w": nn.Parameter(torch.tensor([[-2.0, 0.0], [0.5, -0.25]]))})
    assert scores["w"].tolist() == [[2.0, 0.0], [0.5, 0.25]]
    assert not scores["w"].requires_grad


def test_random_scores_depend_on_the_generator_only() -> None:
    def draw(fill: float) -> torch.Tensor:
        return random({"w": torch.full((3, 4), fill)}, torch.Generator().manual_seed(5))["w"]

    before = torch.random.get_rng_state()
    torch.manual_seed(1)
    first = draw(0.0)
    torch.manual_seed(2)
    assert torch.equal(first, draw(9.0))
    assert 0 <= float(first.min()) <= float(first.max()) < 1
    torch.random.set_rng_state(before)
    draw(0.0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_two_tensors_get_different_random_scores() -> None:
    scores = random({"a": torch.empty(9), "b": torch.empty(9)}, torch.Generator().manual_seed(0))
    assert not torch.equal(scores["a"], scores["b"])


def test_prunable_weights_are_the_trainable_matrices() -> None:
    assert list(prunable_weights(GCN(4, 3, 2))) == ["convs.0.lin.weight", "convs.1.lin.weight"]
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[3].weight.requires_grad_(False)
    weights = prunable_weights(model)
    assert list(weights) == ["0.weight", "2.weight"]
    assert weights["0.weight"] is model[0].weight


def test_a_model_without_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model BatchNorm1d \(got no trainable matrix\), expected at least one"):
        prunable_weights(nn.BatchNorm1d(3))


def test_embeddings_are_pruned_only_when_asked_and_tied_weights_count_once() -> None:
    model = nn.Module()
    model.table, model.head, model.bag = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.EmbeddingBag(4, 3)
    assert list(prunable_weights(model)) == ["head.weight"]
    assert list(prunable_weights(model, embeddings=True)) == ["table.weight", "head.weight", "bag.weight"]
    model.head.weight = model.table.weight
    model.last = nn.Linear(3, 2)
    assert list(prunable_weights(model)) == ["last.weight"]
    assert list(prunable_weights(model, embeddings=True)) == ["table.weight", "bag.weight", "last.weight"]


def test_what_torch_has_pruned_already_is_refused_by_layer() -> None:
    from torch.nn.utils import prune

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    with pytest.raises(ValueError, match=r"layer '1' \(got 'weight_orig': already pruned by torch.nn.utils.prune\)"):
        prunable_weights(model)
    prune.remove(model[1], "weight")
    assert list(prunable_weights(model)) == ["0.weight", "1.weight"]


def test_scales_of_batch_norms_are_scores_of_channels() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.LayerNorm(3))
    model[1].weight.data.copy_(torch.tensor([0.5, -2.0, 0.0]))
    assert {name: score.tolist() for name, score in bn_scale(model).items()} == {"1.weight": [0.5, 2.0, 0.0]}
    assert list(bn_scale(nn.BatchNorm1d(2))) == ["weight"]
    with pytest.raises(ValueError, match=r"model LayerNorm \(got no batch normalization with scales\)"):
        bn_scale(nn.LayerNorm(3))


def test_all_scores_stand_under_one_name() -> None:
    for name in ("magnitude", "random", "bn_scale", "snip", "grasp", "synflow", "taylor"):
        assert callable(getattr(gebt.scores, name))
