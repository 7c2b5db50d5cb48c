"""Tickets drawn on validation whose searched network teaches them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, groups
from gebt.graph import Edges, Graph, Similarity
from gebt.graph.edges import EDGES
from gebt.graph.label_propagation import propagate_labels
from gebt.models import GCN
from gebt.models.registry import build
from gebt.prune import make_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.recipes import baselines, retrain, search
from gebt.recipes.retrain import RetrainSettings
from gebt.recipes.search import SearchSettings
from gebt.ticket import Ticket, TicketError
from gebt.train import NodeTask, TrainingSettings
from gebt.train.loop import History, SoftLabels, adam, fit

RATIOS = {"edge_ratio": 0.4, "weight_ratio": 0.5}
TAUGHT = SearchSettings(max_epochs=12, edge_score="similarity", draw_at="validation", soft_labels=True)


def model_of(graph: Graph, seed: int = 1) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes, seed=seed)


def found(graph: Graph, **changes: Any) -> tuple[Ticket, GCN]:
    model = model_of(graph)
    settings = dataclasses.replace(TAUGHT, **changes)
    return search.joint(model, graph, **RATIOS, settings=settings, seed=5), model


def logits_of(model: GCN, graph: Graph) -> torch.Tensor:
    with torch.no_grad():
        return NodeTask(graph).logits(model.eval())


def test_the_ticket_is_drawn_from_the_network_of_the_best_validation_epoch(sparse: Graph) -> None:
    ticket, model = found(sparse)
    twin = model_of(sparse)
    history = fit(twin, NodeTask(sparse), [adam(twin, TAUGHT.training())], TAUGHT.max_epochs, seed=5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert (ticket.epoch_drawn, ticket.provenance["epochs"], ticket.fired) == (history.best_epoch, 12, False)
    order = TieBreaker.from_generator(torch.Generator().manual_seed(5))
    scores = Similarity(sparse.pairs, sparse.num_nodes, order)(logits_of(twin, sparse).softmax(1))
    assert ticket.edge_mask == make_mask({EDGES: scores}, ratio=0.4, tie_break=order)
    assert ticket.soft_labels is not None
    expected = logits_of(twin, sparse).log_softmax(1)
    torch.testing.assert_close(ticket.soft_labels.float(), expected, atol=1e-3, rtol=1e-3)


def test_trained_edge_values_are_those_of_the_drawn_epoch(sparse: Graph) -> None:
    drawn = []
    settings = dataclasses.replace(TAUGHT, edge_score="magnitude", edge_learning_rate=0.05)
    ticket = search.joint(
        model_of(sparse), sparse, **RATIOS, settings=settings, seed=5, on_draw=lambda *draw: drawn.append(draw)
    )
    assert [epoch for epoch, *_ in drawn] == [ticket.epoch_drawn]
    until_then = dataclasses.replace(settings, max_epochs=ticket.epoch_drawn)
    again = search.joint(model_of(sparse), sparse, **RATIOS, settings=until_then, seed=5)
    assert (again.edge_mask, again.weight_mask) == (ticket.edge_mask, ticket.weight_mask)


def test_the_detector_can_watch_agreement_too(sparse: Graph) -> None:
    ticket, _ = found(sparse, draw_at="detector", threshold=1.9)
    assert ticket.fired
    assert ticket.epoch_drawn < TAUGHT.max_epochs
    assert ticket.edge_mask.kept == sparse.num_pairs - int(0.4 * sparse.num_pairs)


def test_the_loss_is_cross_entropy_and_the_mean_divergence_from_the_soft_labels(sparse: Graph) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, said = (torch.randn(sparse.num_nodes, sparse.num_classes, generator=generator) for _ in "ab")
    q, p = said.softmax(1), logits.softmax(1)
    divergence = (q * (q.log() - p.log())).sum(1).mean()
    task = NodeTask(sparse, soft=SoftLabels(said.log_softmax(1), 3.0))
    torch.testing.assert_close(task.loss(logits), NodeTask(sparse).loss(logits) + 3 * divergence)
    agreed = NodeTask(sparse, soft=SoftLabels(logits.log_softmax(1), 3.0))
    torch.testing.assert_close(agreed.loss(logits), NodeTask(sparse).loss(logits))


@pytest.mark.parametrize("compaction", [True, False])
def test_a_taught_ticket_comes_to_say_what_its_teacher_says(sparse: Graph, compaction: bool) -> None:
    ticket, teacher = found(sparse)
    apart = {}
    for distill in (0.0, 30.0):
        model = model_of(sparse)
        training = TrainingSettings(epochs=40, learning_rate=0.05)
        settings = RetrainSettings(training, compaction=compaction, distill=distill)
        edges = retrain.run(ticket, model, sparse, settings, seed=5).edges
        with torch.no_grad():
            said = NodeTask(sparse, edges).logits(model.eval()).log_softmax(1)
        reference = logits_of(teacher, sparse).log_softmax(1)
        apart[distill] = float(F.kl_div(said, reference, log_target=True, reduction="batchmean"))
    assert apart[30.0] < 0.7 * apart[0.0]


def test_soft_labels_are_written_and_read(sparse: Graph, tmp_path: Path) -> None:
    ticket, model = found(sparse)
    read = Ticket.load(ticket.save(tmp_path / "t.safetensors"))
    assert read.soft_labels is not None
    assert torch.equal(read.soft_labels, ticket.soft_labels)
    read.check(model, sparse)
    control = baselines.random_edges(read, sparse, seed=1)
    assert control.soft_labels is read.soft_labels
    without = dataclasses.replace(ticket, soft_labels=None)
    assert Ticket.load(without.save(tmp_path / "u.safetensors")).soft_labels is None


def test_soft_labels_of_another_size_are_refused(sparse: Graph, tmp_path: Path) -> None:
    ticket, model = found(sparse)
    assert ticket.soft_labels is not None
    cut = dataclasses.replace(ticket, soft_labels=ticket.soft_labels[1:])
    with pytest.raises(TicketError, match=r"soft labels of the ticket \(got shape \(59, 3\)\), expected \(60, 3\)"):
        cut.check(model, sparse)
    broken = dataclasses.replace(ticket, soft_labels=torch.full((60, 3), torch.nan))
    with pytest.raises(TicketError, match="soft labels"):
        Ticket.load(broken.save(tmp_path / "t.safetensors"))


def test_what_cannot_be_taught_is_refused(sparse: Graph) -> None:
    ticket, _ = found(sparse)
    with pytest.raises(ValueError, match=r"distill \(got -1\), expected at least 0"):
        RetrainSettings(distill=-1)
    with pytest.raises(ValueError, match=r"distill \(got 2.0\), expected 0 to train together"):
        retrain.run_stacked([ticket], [model_of(sparse)], sparse, RetrainSettings(distill=2.0), seeds=[0])
    with pytest.raises(ValueError, match=r"draw at \(got 'luck'\), expected one of \('detector', 'validation'\)"):
        SearchSettings(draw_at="luck")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"edge score \(got 'similarity'\), expected one that trains edge values"):
        search.graph_only(model_of(sparse), sparse, edge_ratio=0.2, settings=TAUGHT)


@pytest.mark.parametrize("preset", ["fast", "best"])
def test_presets_teach(sparse: Graph, preset: Any) -> None:
    options = RunOptions(preset=preset, seeds=3).resolved()
    assert (options.edge_score, options.draw_at, options.soft_labels) == ("reliance", "validation", True)
    assert options.retraining().distill == options.distill > 0
    assert groups(options) == [[0], [1], [2]]
    quick = dataclasses.replace(options, max_epochs=4, hidden=8)
    assert find_ticket(quick, sparse, model_of(sparse), 0).soft_labels is not None


def test_soft_labels_are_spread_only_where_that_serves_the_validation_nodes(sparse: Graph) -> None:
    work = search._Search(
        model_of(sparse), sparse, (0.4, 0.5, None), dataclasses.replace(TAUGHT, label_propagation=0.8), 5
    )
    own = logits_of(work.model, sparse).softmax(1)
    spread_out = propagate_labels(own, work.task.edges, 0.8)
    said = {accuracy: iter((accuracy, 0.5)) for accuracy in (0.4, 0.5)}
    for accuracy, expected in ((0.4, own), (0.5, spread_out)):
        work.task.val_accuracy = lambda probabilities, told=said[accuracy]: torch.tensor(next(told))  # type: ignore[method-assign]
        torch.testing.assert_close(work.probabilities(), expected)
    nodes = sparse.val_mask.nonzero().squeeze(1)
    hits = (own[nodes].argmax(1) == sparse.labels[nodes]).float().mean()
    assert NodeTask(sparse).val_accuracy(own) == float(hits)
    with pytest.raises(ValueError, match=r"label_propagation \(got 1\), expected 0 <= label_propagation < 1"):
        SearchSettings(label_propagation=1)


def test_kept_edges_count_what_the_ticket_says(sparse: Graph, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"edge_score": "reliance+magnitude", "edge_weights": "trained"}
    ticket, model = found(sparse, **settings)
    kept = ticket.edge_mask[EDGES]
    assert ticket.edge_weights is not None
    assert ticket.edge_weights.shape == (ticket.edge_mask.kept,)
    assert not torch.equal(ticket.edge_weights, torch.ones_like(ticket.edge_weights))
    edges = ticket.edges(sparse)
    gates = torch.zeros(sparse.num_pairs)
    gates[kept] = ticket.edge_weights
    # On the kept edges alone, or as soft values of the whole graph: the same network.
    torch.testing.assert_close(NodeTask(sparse, edges).logits(model), NodeTask(sparse).logits(model, gates))
    loaded = Ticket.load(ticket.save(tmp_path / "ticket.safetensors"))
    assert torch.equal(loaded.edge_weights, ticket.edge_weights)
    few = RetrainSettings(TrainingSettings(epochs=3))
    trained = retrain.run(loaded, model_of(sparse), sparse, few)
    assert trained.edges.fixed is not None
    assert baselines.random_edges(ticket, sparse).edge_weights is None
    degree, _ = found(sparse, edge_weights="degree_corrected")
    assert degree.edge_weights is not None
    assert float(degree.edge_weights.min()) >= 1
    with pytest.raises(ValueError, match="edge weights of a ticket"):
        retrain.run_stacked([degree], [model_of(sparse)], sparse, RetrainSettings(distill=0), seeds=[0])
    broken = dataclasses.replace(ticket, edge_weights=torch.ones(3))
    with pytest.raises(TicketError, match=r"edge weights \(got shape \(3,\)"):
        Ticket.load(broken.save(tmp_path / "broken.safetensors"))


@pytest.mark.parametrize("name", ["gat", "gin", "sage", "resgcn7"])
def test_fixed_edge_values_are_those_that_gates_would_be_in_every_network(name: Any, sparse: Graph) -> None:
    model = build(
        name, sparse.num_features, 8, sparse.num_classes, 7 if name == "resgcn7" else 2, 0.0, 0, heads=2
    ).eval()
    values = torch.rand(sparse.num_pairs) + 0.5
    fixed = Edges.from_pairs(sparse.pairs, sparse.num_nodes, values)
    torch.testing.assert_close(NodeTask(sparse, fixed).logits(model), NodeTask(sparse).logits(model, values))


def test_opinions_are_smoothed_over_the_epochs_up_to_the_best(sparse: Graph) -> None:
    settings = dataclasses.replace(TAUGHT, prediction_ema=0.5)
    ticket, _ = found(sparse, prediction_ema=0.5)
    assert ticket.soft_labels is not None
    twin, said = model_of(sparse), []

    def note(epoch: int, history: History) -> bool:
        said.append(logits_of(twin, sparse).softmax(1))
        return False

    history = fit(twin, NodeTask(sparse), [adam(twin, settings.training())], 12, seed=5, on_epoch=note)
    mean = said[0]
    for own in said[1 : history.best_epoch]:
        mean = 0.5 * own + 0.5 * mean
    torch.testing.assert_close(ticket.soft_labels.float().exp(), mean, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prediction_ema": 0.5}, r"prediction_ema \(got 0.5\), expected 0 unless draw_at is 'validation'"),
        (
            {"prediction_ema": 1.0, "draw_at": "validation"},
            r"prediction_ema \(got 1.0\), expected 0 <= prediction_ema < 1",
        ),
        ({"edge_score": "similarity", "edge_weights": "trained"}, r"edge weights \(got 'trained', but edge score"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSettings(**wrong)
