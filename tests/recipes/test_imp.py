"""Lottery tickets: exact counts at every level, nested masks, rewinding bit for bit, one shot as one level."""

from __future__ import annotations

import itertools

import pytest
import torch

from gebt.graph import Graph
from gebt.models import GCN
from gebt.recipes import imp
from gebt.recipes.imp import LotterySettings
from gebt.train import NodeTask, TrainingSettings, fit
from gebt.train.loop import adam, copy_state
from gebt.train.result import MethodResult, Phase

FEW = TrainingSettings(epochs=6, learning_rate=0.02)
RATIOS = {"edge_ratio": 0.4, "weight_ratio": 0.75}


def model_of(graph: Graph) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes, seed=1)


@pytest.fixture(scope="module")
def levels(sparse: Graph) -> tuple[list[MethodResult], GCN]:
    model = model_of(sparse)
    return imp.run(model, sparse, **RATIOS, settings=LotterySettings(levels=2, training=FEW), seed=3), model


def test_counts_are_geometric_and_exact_and_masks_are_nested(
    levels: tuple[list[MethodResult], GCN], sparse: Graph
) -> None:
    found, model = levels
    pairs, weights = sparse.num_pairs, sum(conv.lin.weight.numel() for conv in model.layers)
    shares = [(0.0, 0.0), (1 - 0.6**0.5, 0.5), (0.4, 0.75)]
    for level, (edge_share, weight_share) in zip(found, shares, strict=True):
        assert level.ticket.edge_mask.kept == level.edges.num_pairs == pairs - int(edge_share * pairs)
        assert level.ticket.weight_mask.kept == weights - int(weight_share * weights)
    for before, after in itertools.pairwise(found):
        for mask in ("edge_mask", "weight_mask"):
            assert not bool((getattr(after.ticket, mask).flat() & ~getattr(before.ticket, mask).flat()).any())
    assert found[-1].phases[-1] == Phase(6, found[-1].edges.num_pairs, found[-1].ticket.weight_mask.kept)
    assert found[-1].test_accuracy == NodeTask(sparse, found[-1].edges).evaluate(model)[2]


def test_level_zero_is_the_dense_network(levels: tuple[list[MethodResult], GCN], sparse: Graph) -> None:
    """Its edge values train too, so that it is dense training up to what they move; without edges it is the same."""
    alone = imp.run(
        model_of(sparse), sparse, edge_ratio=0, weight_ratio=0.5, settings=LotterySettings(1, training=FEW), seed=3
    )
    twin = model_of(sparse)
    history = fit(twin, NodeTask(sparse), [adam(twin, FEW)], FEW.epochs, seed=3)
    assert alone[0].history.losses == history.losses
    assert alone[1].ticket.edge_sparsity == 0


@pytest.mark.parametrize("rewind", [0, 2])
def test_weights_rewind_to_those_of_the_rewind_epoch(sparse: Graph, rewind: int) -> None:
    model = model_of(sparse)
    settings = LotterySettings(levels=1, rewind_epoch=rewind, training=FEW)
    found = imp.run(model, sparse, **RATIOS, settings=settings, seed=3)[-1]
    expected = model_of(sparse)
    if rewind:
        fit(expected, NodeTask(sparse), [adam(expected, FEW)], rewind, seed=3, evaluate=False)
    begun, twin = copy_state(expected), model_of(sparse)
    found.ticket.start(twin, "rewind")
    for name, tensor in twin.state_dict().items():
        kept = found.ticket.weight_mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor, begun[name] * kept)
    assert [phase.epochs for phase in found.phases] == ([2, 4, 4] if rewind else [6, 6])


def test_pruned_weights_never_come_back_however_large(sparse: Graph) -> None:
    work = imp._Levels(model_of(sparse), sparse, (0.0, 0.9), LotterySettings(levels=3, training=FEW), 0, None)
    work._prune(1, None)
    first = work.kept
    for name, weight in work.model.named_parameters():
        if name in first:
            weight.data[~first[name]] = 1e6
    work._prune(2, None)
    assert not bool((work.kept.flat() & ~first.flat()).any())


def test_edges_of_the_smallest_values_go(sparse: Graph) -> None:
    work = imp._Levels(model_of(sparse), sparse, (0.3, 0.0), LotterySettings(levels=1, training=FEW), 0, None)
    values = torch.rand(sparse.num_pairs, generator=torch.Generator().manual_seed(5)) - 0.5
    work._prune(1, values)
    assert float(values.abs()[work.pairs].min()) > float(values.abs()[~work.pairs].max())


def test_wrong_settings_are_refused(sparse: Graph) -> None:
    with pytest.raises(ValueError, match=r"levels \(got 0\), expected at least 1"):
        LotterySettings(levels=0)
    with pytest.raises(ValueError, match=r"rewind epoch \(got 200\), expected 0 to 199, before the training's last"):
        LotterySettings(rewind_epoch=200)
    with pytest.raises(ValueError, match=r"prune ratio \(got 1\)"):
        imp.run(model_of(sparse), sparse, edge_ratio=0.1, weight_ratio=1)
