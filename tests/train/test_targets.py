"""Labels that are tasks or numbers: losses and metrics by hand, and the recipes that take them or refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import f1_score, mean_absolute_error, r2_score
from torch.nn import functional as F

from gebt.graph import Graph, GraphError, canonical_graph
from gebt.graph.metrics import METRICS, Target, label_loss, measure
from gebt.models import GCN
from gebt.recipes import baselines, retrain, search, teddy, ugs
from gebt.sparse import SparseMatrix
from gebt.train import NodeTask, TrainingSettings
from gebt.train.loop import SoftLabels, copy_state
from gebt.train.search_settings import SearchSettings
from gebt.train.stacked import Member, StackedSettings, fit_stacked, worth_stacking

NODES = 60


def ring(target: Target) -> Graph:
    """A ring with chords whose labels follow from the features of a node and its neighbors."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(NODES, 6, generator=generator)
    here = torch.arange(NODES)
    edges = torch.cat((torch.stack((here, (here + 1) % NODES)), torch.stack((here, (here + 7) % NODES))), 1)
    around = features + features.roll(-1, 0) + features.roll(1, 0) + features.roll(-7, 0) + features.roll(7, 0)
    numbers = around[:, 0] - 2 * around[:, 1]
    tasks = (around[:, :3] > 0).long()
    tasks[::4, 1] = -1
    labels = {"class": around[:, :3].argmax(1), "multilabel": tasks, "regression": numbers}[target]
    masks = tuple(here % 3 == part for part in range(3))
    return canonical_graph("ring", edges, features, labels, masks, to_undirected=True, target=target)  # type: ignore[arg-type]


def model_of(graph: Graph, seed: int = 0) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes, seed=seed)


@pytest.mark.parametrize(("target", "outputs"), [("class", 3), ("multilabel", 3), ("regression", 1)])
def test_the_outputs_the_metric_and_the_kind_come_with_the_labels(target: Target, outputs: int) -> None:
    graph = ring(target)
    assert (graph.num_nodes, graph.num_classes, graph.target) == (NODES, outputs, target)
    assert graph.metric == METRICS[target][0]
    assert graph.labels.dtype == (torch.float32 if target == "regression" else torch.int64)
    assert graph.to("cpu").fingerprint == graph.fingerprint


def test_fingerprints_tell_labels_apart() -> None:
    graph = ring("multilabel")
    other = graph.labels.clone()
    other[0, 0] = -1
    prints = {graph.fingerprint, replace(graph, labels=other).fingerprint, ring("regression").fingerprint}
    assert len({*prints, ring("class").fingerprint}) == 4


def test_the_loss_of_tasks_counts_known_entries_alone() -> None:
    logits = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    labels = torch.tensor([[1, -1], [0, 1]])
    by_hand = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(2.0)) + math.log(1 + math.exp(-3.0))) / 3
    assert float(label_loss("multilabel", logits, labels)) == pytest.approx(by_hand)
    logits.requires_grad_()
    label_loss("multilabel", logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0


def test_the_losses_of_numbers_and_classes() -> None:
    logits = torch.tensor([[1.0], [3.0]])
    assert float(label_loss("regression", logits, torch.tensor([2.0, 1.0]))) == pytest.approx((1 + 4) / 2)
    two = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert label_loss("class", two, torch.tensor([0, 1])) == F.cross_entropy(two, torch.tensor([0, 1]))


def test_metrics_are_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, wanted = torch.randn(50, 1, generator=generator), torch.randn(50, generator=generator)
    assert float(measure("r2", logits, wanted)) == pytest.approx(r2_score(wanted, logits), abs=1e-6)
    assert float(measure("r2", logits[:1], wanted[:1])) == 0
    assert float(measure("r2", torch.ones(3, 1), torch.ones(3))) == 1
    error = mean_absolute_error(wanted, logits)
    assert float(measure("negative_mean_absolute_error", logits, wanted)) == pytest.approx(-error, abs=1e-6)
    tasks, labels = torch.randn(40, 3, generator=generator), torch.randint(2, (40, 3), generator=generator)
    expected = f1_score(labels, tasks > 0, average="micro")
    assert float(measure("micro_f1", tasks, labels)) == pytest.approx(expected)
    # An entry that is unknown counts neither as found nor as missed, whatever the network says of it.
    more = torch.cat((labels, torch.full((5, 3), -1)))
    assert float(measure("micro_f1", torch.cat((tasks, torch.ones(5, 3))), more)) == pytest.approx(expected)
    assert 0 <= float(measure("mean_roc_auc", tasks, labels)) <= 1


@pytest.mark.parametrize("target", ["class", "multilabel", "regression"])
def test_search_retraining_and_dense_training_take_every_kind(target: Target) -> None:
    graph, model = ring(target), model_of(ring(target))
    chosen = replace(SearchSettings(), max_epochs=6)
    ticket = search.joint(model, graph, edge_ratio=0.2, weight_ratio=0.3, settings=chosen)
    assert ticket.edge_mask.kept == graph.num_pairs - graph.num_pairs // 5
    training = TrainingSettings(epochs=60, learning_rate=0.03)
    trained = retrain.run(ticket, model, graph, retrain.RetrainSettings(training))
    assert trained.history.losses[-1] < trained.history.losses[0]
    dense = baselines.dense(model_of(graph, 1), graph, training)
    assert dense.losses[-1] < 0.7 * dense.losses[0]
    assert dense.val_accuracy[dense.best_epoch - 1] == max(dense.val_accuracy)
    assert dense.test_accuracy[dense.best_epoch - 1] > {"class": 0.4, "multilabel": 0.6, "regression": 0.3}[target]


@pytest.mark.parametrize("metric", ["mean_roc_auc", "negative_mean_absolute_error"])
def test_the_other_metrics_choose_the_epoch(metric: str) -> None:
    graph = replace(ring("multilabel" if metric == "mean_roc_auc" else "regression"), metric=metric)  # type: ignore[arg-type]
    model = model_of(graph)
    history = baselines.dense(model, graph, TrainingSettings(epochs=20))
    task = NodeTask(graph)
    val, loss, test = task.evaluate(model)
    assert val == max(history.val_accuracy)
    assert test == history.accuracy
    assert val == pytest.approx(task.val_accuracy(task.logits(model.eval()).detach()))
    # Errors lie below -1, where no accuracy does.
    assert (val < 0) == (metric == "negative_mean_absolute_error")
    assert loss > 0


@pytest.mark.parametrize("target", ["multilabel", "regression"])
def test_what_needs_classes_refuses_before_any_training(target: Target) -> None:
    graph, model = ring(target), model_of(ring(target))
    before = copy_state(model)
    message = (
        rf"\(got graph 'ring' with labels of the kind '{target}'\), expected one class a node; the preset 'early-bird"
    )
    for preset in ("best", "fast"):
        with pytest.raises(GraphError, match=f"edge score 'reliance', soft labels True {message}"):
            search.joint(model, graph, edge_ratio=0.2, weight_ratio=0.3, settings=preset)
    chosen = SearchSettings(edge_score="similarity")
    with pytest.raises(GraphError, match=f"edge score 'similarity', soft labels False {message}"):
        search.joint(model, graph, edge_ratio=0.2, weight_ratio=0.3, settings=chosen)
    with pytest.raises(GraphError, match=f"TEDDY's distillation {message}"):
        teddy.run(model, graph, edge_ratio=0.2, weight_ratio=0.3)
    with pytest.raises(GraphError, match=f"separation 0.1 {message}"):
        ugs.run(model, graph, settings=ugs.UgsSettings(separation=0.1))
    with pytest.raises(GraphError, match=f"soft labels {message}"):
        NodeTask(graph, soft=SoftLabels(torch.zeros(NODES, graph.num_classes), 1.0))
    sparse = replace(graph, features=SparseMatrix.from_dense(torch.eye(NODES)))
    assert not worth_stacking(sparse, model, 3)
    with pytest.raises(GraphError, match=f"networks trained together {message}"):
        fit_stacked([Member(GCN(NODES, 8, 3), sparse, seed) for seed in range(2)], StackedSettings(TrainingSettings()))
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


@pytest.mark.parametrize(
    ("target", "labels", "message"),
    [
        (
            "multilabel",
            torch.zeros(NODES, dtype=torch.long),
            r"\(got \(60,\) torch.int64\), expected integers \(N",
        ),
        ("multilabel", torch.zeros(NODES, 2), r"\(got \(60, 2\) torch.float32\), expected integers"),
        ("multilabel", torch.full((NODES, 2), 2), r"\(got 2\), expected 0 or 1 in each task, -1"),
        ("multilabel", torch.full((NODES, 2), -2), r"\(got -2\), expected 0 or 1"),
        ("multilabel", torch.zeros(NODES, 0, dtype=torch.long), r"\(got 0 tasks\), expected at least 1"),
        ("multilabel", torch.full((NODES, 2), -1), r"train labels of 'g' \(got unknown ones only\)"),
        ("regression", torch.zeros(NODES, dtype=torch.long), r"\(got \(60,\) torch.int64\), expected one float a node"),
        ("regression", torch.full((NODES,), math.nan), r"\(got 60 NaN or infinite values\)"),
        ("regression", torch.full((NODES,), 1e300, dtype=torch.float64), r"\(got 60 NaN or infinite values\)"),
    ],
)
def test_labels_of_another_kind_are_refused(target: Target, labels: torch.Tensor, message: str) -> None:
    masks = tuple(torch.arange(NODES) % 3 == part for part in range(3))
    with pytest.raises(GraphError, match=message):
        canonical_graph("g", torch.empty(2, 0, dtype=torch.long), torch.ones(NODES, 1), labels, masks, target=target)  # type: ignore[arg-type]
