"""UGS: densities by the integer recursion, rewound weights, masks that stay pruned, the L1 of both."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from gebt.graph import Graph
from gebt.graph.edges import EDGES
from gebt.models import GCN
from gebt.recipes import ugs
from gebt.recipes.ugs import WD_GLT, UgsSettings, _Masked, _Work
from gebt.train import NodeTask, TrainingSettings
from gebt.train.loop import copy_state
from gebt.train.result import MethodResult, Phase

FEW = TrainingSettings(epochs=5, learning_rate=0.02)
SETTINGS = UgsSettings(masked=FEW, fixed=FEW)


def model_of(graph: Graph) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes, seed=1)


@pytest.fixture(scope="module")
def rounds(sparse: Graph) -> tuple[list[MethodResult], GCN]:
    model = model_of(sparse)
    return ugs.run(model, sparse, rounds=4, settings=SETTINGS, seed=3), model


def test_counts_follow_the_recursion_and_masks_are_nested(
    rounds: tuple[list[MethodResult], GCN], sparse: Graph
) -> None:
    found, model = rounds
    pairs, weights = sparse.num_pairs, sum(conv.lin.weight.numel() for conv in model.layers)
    before = None
    for number, own in enumerate(found, 1):
        pairs, weights = pairs - int(0.05 * pairs), weights - int(0.2 * weights)
        assert own.ticket.provenance["round"] == number
        assert (own.ticket.edge_mask.kept, own.ticket.weight_mask.kept) == (pairs, weights)
        assert len(own.phases) == 2 * number
        assert own.phases[-1] == Phase(FEW.epochs, pairs, weights)
        assert own.edges.num_pairs == pairs
        if before is not None:
            for older, newer in (
                (before.edge_mask, own.ticket.edge_mask),
                (before.weight_mask, own.ticket.weight_mask),
            ):
                assert not bool((newer.flat() & ~older.flat()).any())
        before = own.ticket


def test_the_ticket_is_what_was_trained_from_the_rewound_weights(
    rounds: tuple[list[MethodResult], GCN], sparse: Graph
) -> None:
    found, model = rounds
    last = found[-1]
    assert last.test_accuracy == NodeTask(sparse, last.edges).evaluate(model)[2]
    fresh, twin = copy_state(model_of(sparse)), model_of(sparse)
    last.ticket.start(twin, "rewind")
    for name, tensor in twin.state_dict().items():
        kept = last.ticket.weight_mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor, fresh[name] * kept)


def test_the_lowest_of_what_is_left_go(sparse: Graph) -> None:
    work = _Work(model_of(sparse), sparse, SETTINGS, 0, None)
    values = torch.tensor([5.0, 1.0, 0.0, 3.0, 2.0, 4.0])
    left = torch.tensor([True, True, False, True, True, True])
    assert work._pruned(values, left, 0.4).tolist() == [True, False, False, True, False, True]
    assert work._pruned(values, left, 0.1) is left


def test_masks_of_one_are_no_masks_and_those_of_zero_remove(sparse: Graph) -> None:
    model, task = model_of(sparse).eval(), NodeTask(sparse)
    names = ("convs.0.lin.weight", "convs.1.lin.weight")
    ones = {name: torch.ones_like(dict(model.named_parameters())[name]) for name in names}
    torch.testing.assert_close(task.logits(_Masked(model, ones)), task.logits(model))
    half = {name: (torch.rand(mask.shape) < 0.5).float() for name, mask in ones.items()}
    soft = task.logits(_Masked(model, half))
    for name, mask in half.items():
        dict(model.named_parameters())[name].data.mul_(mask)
    torch.testing.assert_close(soft, task.logits(model))


def test_l1_pulls_masks_towards_zero_by_its_sign(sparse: Graph) -> None:
    """With L1 far above the loss's gradient Adam moves every mask down by its learning rate a step."""
    one = TrainingSettings(epochs=1, learning_rate=0.01, weight_decay=0.0)
    settings = UgsSettings(edge_l1=1e3, weight_l1=1e3, noise=0.0, masked=one, fixed=one)
    pairs, weights = _Work(model_of(sparse), sparse, settings, 0, None)._trained_masks()
    for values in (pairs, weights):
        torch.testing.assert_close(values, torch.full_like(values, 0.99), atol=1e-5, rtol=0)


def test_a_round_can_end_the_search(sparse: Graph) -> None:
    found = ugs.run(
        model_of(sparse), sparse, rounds=9, settings=SETTINGS, on_round=lambda own: own.ticket.weight_sparsity > 0.3
    )
    assert len(found) == 2
    assert found[0].ticket.edge_mask[EDGES].sum() > found[1].ticket.edge_mask[EDGES].sum()


def test_wrong_settings_are_refused(sparse: Graph) -> None:
    with pytest.raises(ValueError, match=r"rounds \(got 0\), expected at least 1"):
        ugs.run(model_of(sparse), sparse, rounds=0)
    with pytest.raises(ValueError, match=r"prune ratio \(got 1\)"):
        UgsSettings(edge_rate=1)
    with pytest.raises(ValueError, match=r"edge L1, weight L1, noise, separation \(got \(-1"):
        UgsSettings(edge_l1=-1)


def test_masks_of_pairs_stay_at_least_zero_however_strong_the_l1(sparse: Graph) -> None:
    long = TrainingSettings(epochs=60, learning_rate=0.05)
    settings = UgsSettings(edge_l1=10.0, masked=long, fixed=FEW)
    pairs, _ = _Work(model_of(sparse), sparse, settings, 0, None)._trained_masks()
    assert pairs.isfinite().all()
    assert float(pairs.min()) >= 0


def test_wd_glt_keeps_masks_between_zero_and_one_and_its_term_moves_them(sparse: Graph) -> None:
    long = TrainingSettings(epochs=20, learning_rate=0.05)
    pulled = dataclasses.replace(WD_GLT, edge_l1=0.0, weight_l1=0.0, masked=long, fixed=FEW)
    plain = dataclasses.replace(pulled, separation=0.0)
    found = [_Work(model_of(sparse), sparse, settings, 0, None)._trained_masks() for settings in (pulled, plain)]
    for values in found[0]:
        assert 0 <= float(values.min()) <= float(values.max()) <= 1
    assert not torch.equal(found[0][0], found[1][0])
    assert ugs.run(model_of(sparse), sparse, rounds=1, settings=pulled)[0].ticket.provenance["method"] == "wd-glt"


def test_directed_masks_prune_directions_one_by_one(sparse: Graph) -> None:
    settings = dataclasses.replace(SETTINGS, directed=True, edge_rate=0.3)
    found = ugs.run(model_of(sparse), sparse, rounds=2, settings=settings, seed=3)[-1]
    directions = 2 * sparse.num_pairs
    for _ in range(2):
        directions -= int(0.3 * directions)
    assert found.edges.num_pairs == directions
    assert found.ticket.provenance["directed_sparsity"] == pytest.approx(1 - directions / (2 * sparse.num_pairs))
    ends = found.edges.ends
    seen = {tuple(pair) for pair in torch.stack((ends.amin(0), ends.amax(0))).t().tolist()}
    kept = sparse.pairs[:, found.ticket.edge_mask[EDGES]]
    assert {tuple(pair) for pair in kept.t().tolist()} == seen
    assert len(seen) > directions / 2  # some pairs are one-way by now
