"""Networks trained together: each as it would be by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import optim

from gebt.graph import Edges, Graph
from gebt.models import GCN
from gebt.prune import Mask, enforce_mask, prunable_weights
from gebt.train import History, NodeTask, TrainingSettings, fit
from gebt.train.loop import adam
from gebt.train.stacked import Member, StackedSettings, each, fit_stacked, worth_stacking

SEEDS = (0, 3, 7)
SETTINGS = TrainingSettings(epochs=12, learning_rate=0.05)


def alone(member: Member, settings: StackedSettings, stop: int | None = None) -> History:
    """The history of the same network by `fit`; with gates it is not evaluated."""
    model, gates = member.model, member.gates
    optimizers: list[optim.Optimizer] = [adam(model, settings.training)]
    if member.mask is not None:
        enforce_mask(model, member.mask, optimizers[0])
    if gates is not None:
        optimizers.append(optim.Adam([gates], lr=settings.gate_learning_rate, fused=True))
    pairs = member.graph.pairs if member.pairs is None else member.pairs
    task = NodeTask(member.graph, Edges.from_pairs(pairs, member.graph.num_nodes))
    return fit(
        model,
        task,
        optimizers,
        settings.training.epochs,
        seed=member.seed,
        gates=gates,
        penalty=None if gates is None else lambda: settings.gate_l1 * gates.abs().sum(),
        evaluate=gates is None,
        on_epoch=lambda epoch, _: epoch == stop,
    )


def same(together: Member, single: Member, history: History, expected: History, within: float) -> None:
    close: dict[str, Any] = {"rtol": 0, "atol": within}
    torch.testing.assert_close(torch.tensor(history.losses), torch.tensor(expected.losses), **close)
    assert history.val_accuracy == expected.val_accuracy
    assert history.test_accuracy == expected.test_accuracy
    assert history.best_epoch == expected.best_epoch
    for name, tensor in single.model.state_dict().items():
        torch.testing.assert_close(together.model.state_dict()[name], tensor, **close)
        assert together.model.state_dict()[name].is_contiguous()
    if single.gates is not None:
        torch.testing.assert_close(together.gates, single.gates, **close)


def compare(
    make: Callable[[int], Member], settings: StackedSettings, within: float, stops: dict[int, int] | None
) -> None:
    stops = stops or {}
    together, single = [make(seed) for seed in SEEDS], [make(seed) for seed in SEEDS]
    histories = fit_stacked(
        together,
        settings,
        evaluate=single[0].gates is None,
        on_epoch=lambda number, epoch, _: epoch == stops.get(number),
    )
    for number, (ours, theirs) in enumerate(zip(together, single, strict=True)):
        expected = alone(theirs, settings, stops.get(number))
        assert len(histories[number].losses) == stops.get(number, settings.training.epochs)
        same(ours, theirs, histories[number], expected, within)


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"depth": 1},
        {"depth": 3, "residual": True},
        {"depth": 3, "dropout": 0.0, "input_dropout": 0.4},
        {"input_dropout": 0.0, "hidden_channels": 2},
    ],
)
def test_networks_together_are_those_alone(sparse64: Graph, kind: dict[str, Any]) -> None:
    def make(seed: int) -> Member:
        sizes = {"in_channels": sparse64.num_features, "hidden_channels": 8, "out_channels": sparse64.num_classes}
        return Member(GCN(**sizes | kind, seed=seed), sparse64, seed)

    compare(make, StackedSettings(SETTINGS), 1e-9, None)


def test_in_single_precision_they_differ_by_rounding_alone(sparse: Graph) -> None:
    settings = StackedSettings(replace(SETTINGS, epochs=6))
    compare(lambda seed: Member(GCN(sparse.num_features, 8, 3, seed=seed), sparse, seed), settings, 1e-5, None)


def test_each_has_its_own_pairs_mask_and_split(sparse64: Graph) -> None:
    def make(seed: int) -> Member:
        generator = torch.Generator().manual_seed(seed)
        model = GCN(sparse64.num_features, 8, 3, seed=seed)
        mask = {name: torch.rand(w.shape, generator=generator) < 0.3 for name, w in prunable_weights(model).items()}
        part = torch.randperm(sparse64.num_nodes, generator=generator) % 3
        split = {"train_mask": part == 0, "val_mask": part == 1, "test_mask": part == 2}
        pairs = sparse64.pairs[:, torch.rand(sparse64.num_pairs, generator=generator) < 0.7]
        # One mask lacks a tensor, one network has none: what is not named is kept.
        kept = [Mask(mask), Mask({"convs.1.lin.weight": mask["convs.1.lin.weight"]}), None][SEEDS.index(seed)]
        return Member(model, replace(sparse64, **split), seed, pairs, kept)

    compare(make, StackedSettings(SETTINGS), 1e-9, None)


def test_networks_of_different_kinds_are_trained_kind_by_kind(sparse64: Graph) -> None:
    def make(seed: int) -> Member:
        return Member(GCN(sparse64.num_features, {0: 8, 3: 5, 7: 8}[seed], 3, seed=seed), sparse64, seed)

    compare(make, StackedSettings(SETTINGS), 1e-9, {1: 3, 2: 5})
    assert fit_stacked([], StackedSettings(SETTINGS)) == []


def gated(graph: Graph, seed: int) -> Member:
    gates = torch.ones(graph.num_pairs, requires_grad=True)
    return Member(GCN(graph.num_features, 8, 3, seed=seed), graph, seed, gates=gates)


@pytest.mark.parametrize("stops", [{}, {1: 4}, {0: 3, 2: 5}, {0: 2, 1: 4, 2: 6}])
def test_each_ends_when_it_is_told_and_the_others_go_on(sparse64: Graph, stops: dict[int, int]) -> None:
    settings = StackedSettings(SETTINGS, gate_learning_rate=0.02, gate_l1=0.01)
    compare(lambda seed: gated(sparse64, seed), settings, 1e-9, stops)
    settings = StackedSettings(SETTINGS)
    compare(lambda seed: Member(GCN(sparse64.num_features, 8, 3, seed=seed), sparse64, seed), settings, 1e-9, stops)


def test_the_global_random_state_is_neither_read_nor_moved(sparse: Graph) -> None:
    losses = []
    with torch.random.fork_rng():
        for noise in (1, 2):
            torch.manual_seed(noise)
            before = torch.random.get_rng_state()
            members = [Member(GCN(sparse.num_features, 8, 3), sparse, seed) for seed in SEEDS]
            losses.append([h.losses for h in fit_stacked(members, StackedSettings(replace(SETTINGS, epochs=2)))])
            assert torch.equal(torch.random.get_rng_state(), before)
    assert losses[0] == losses[1]
    assert len({tuple(own) for own in losses[0]}) == len(SEEDS)


def test_a_loss_that_is_not_finite_is_refused_by_its_seed(sparse: Graph) -> None:
    members = [Member(GCN(sparse.num_features, 8, 3, seed=seed), sparse, seed) for seed in SEEDS]
    with torch.no_grad():
        members[1].model.layers[1].bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"training loss \(got nan; first in weights 'convs.*; seed 3\), expected fin"):
        fit_stacked(members, StackedSettings(SETTINGS))


def test_a_network_that_has_ended_may_diverge_unseen(sparse: Graph) -> None:
    members = [Member(GCN(sparse.num_features, 8, 3, seed=seed), sparse, seed) for seed in SEEDS]

    def spoil(number: int, epoch: int, history: History) -> bool:
        if number == 1:
            with torch.no_grad():
                members[1].model.layers[1].bias[0] = float("nan")
        return number == 1

    histories = fit_stacked(members, StackedSettings(SETTINGS), evaluate=False, on_epoch=spoil)
    assert [len(history.losses) for history in histories] == [12, 1, 12]


def narrow(graph: Graph) -> Graph:
    mask = graph.train_mask.clone()
    mask[mask.nonzero()[0]] = False
    return replace(graph, train_mask=mask)


def test_what_cannot_be_trained_together_is_refused(sparse: Graph, digits: Graph) -> None:
    def gcn(**options: Any) -> GCN:
        return GCN(sparse.num_features, 8, 3, **options)

    def refused(*members: Member) -> pytest.ExceptionInfo[ValueError]:
        with pytest.raises(ValueError, match="together") as found:
            fit_stacked(members, StackedSettings(SETTINGS))
        return found

    twice = gcn()
    assert "one of them twice" in str(refused(Member(twice, sparse), Member(twice, sparse)).value)
    assert "norm='batch'" in str(refused(Member(gcn(norm="batch"), sparse)).value)
    assert "dense ones" in str(refused(Member(GCN(64, 8, 10), digits)).value)
    assert "train_mask" in str(refused(Member(gcn(), sparse), Member(gcn(), narrow(sparse))).value)


def test_graphs_of_different_sizes_are_refused(sparse: Graph, make_graph: Callable[..., Graph]) -> None:
    other = make_graph(nodes=30, features=40, share=0.1)
    models = [GCN(40, 8, 3) for _ in "ab"]
    with pytest.raises(ValueError, match=r"graphs together \(got \[60, 30\] nodes\), expected equal numbers"):
        fit_stacked([Member(models[0], sparse), Member(models[1], other)], StackedSettings(SETTINGS))


def test_small_networks_on_sparse_features_pay_from_two_on(sparse: Graph, digits: Graph) -> None:
    model = GCN(sparse.num_features, 8, 3)
    assert worth_stacking(sparse, model, 2)
    assert not worth_stacking(sparse, model, 1)
    assert not worth_stacking(digits, GCN(64, 8, 10), 2)
    assert not worth_stacking(sparse, GCN(sparse.num_features, 8, 3, norm="batch"), 2)
    assert not worth_stacking(sparse, torch.nn.Linear(2, 2), 2)


def test_the_bound_is_on_the_multiply_adds_of_a_forward_pass(sparse: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GCN(sparse.num_features, 8, 3)
    work = sparse.features.values.numel() * 8 + (2 * sparse.num_pairs + 60) * (8 + 3)
    monkeypatch.setattr("gebt.train.stacked.MOST_WORK", work)
    assert worth_stacking(sparse, model, 2)
    monkeypatch.setattr("gebt.train.stacked.MOST_WORK", work - 1)
    assert not worth_stacking(sparse, model, 2)


def test_one_for_all_or_one_for_each() -> None:
    assert each("ratios", 0.5, 3) == [0.5] * 3
    assert each("ratios", [0.5, 0.1], 2) == [0.5, 0.1]
    with pytest.raises(ValueError, match=r"ratios \(got 2\), expected one, or 3: one a network"):
        each("ratios", [0.5, 0.1], 3)
