"""Training on whole graphs: the loss of all training graphs, and nothing of those held out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gebt.graph import Edges, Graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.models.graph_classifier import GraphClassifier
from gebt.train import graphs as graphs_module
from gebt.train.graphs import GraphsTask
from gebt.train.loop import NodeTask, SoftLabels, TrainingSettings, adam, fit
from gebt.train.tasks import task_for


def model(seed: int = 0) -> GraphClassifier:
    return GraphClassifier(3, 4, 2, depth=3, dropout=0.0, seed=seed)


def trained(fold: GraphClassificationFold, epochs: int = 4) -> tuple[GraphClassifier, list[float]]:
    own = model()
    history = fit(own, GraphsTask(fold), [adam(own, TrainingSettings(epochs))], epochs, evaluate=False)
    return own, history.losses


def test_a_fold_of_graphs_poses_the_task_of_graphs(fold: GraphClassificationFold, toy: Graph) -> None:
    assert type(task_for(fold)) is GraphsTask
    assert type(task_for(toy)) is NodeTask


def test_training_sees_the_training_graphs_and_evaluation_all(fold: GraphClassificationFold) -> None:
    task, own = GraphsTask(fold), model()
    seen = fold.part(fold.train_mask)
    edges = Edges.from_pairs(seen.pairs, seen.num_nodes)
    expected = own(seen.features, edges, graph_of=seen.graph_of, num_graphs=seen.num_graphs)
    torch.testing.assert_close(task.logits(own), expected)
    torch.testing.assert_close(task.loss(expected), F.cross_entropy(expected, fold.labels[fold.train_mask]))
    own.eval()
    logits = task.logits(own)
    assert logits.shape == (fold.num_graphs, 2)
    val, test = fold.val_mask, fold.test_mask
    right = [(logits[mask].argmax(1) == fold.labels[mask]).float().mean() for mask in (val, test)]
    expected_measures = torch.stack((right[0], F.cross_entropy(logits[val], fold.labels[val]), right[1]))
    torch.testing.assert_close(task.measures(own), expected_measures)


def test_soft_labels_count_for_training_graphs_alone(fold: GraphClassificationFold) -> None:
    said = torch.rand(fold.num_graphs, 2, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    own, plain = model(), GraphsTask(fold)
    logits = plain.logits(own)
    taught = GraphsTask(fold, soft=SoftLabels(said, 2.0)).loss(logits)
    own_said = said[fold.train_mask]
    divergence = (own_said.exp() * (own_said - logits.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(taught, plain.loss(logits) + 2 * divergence)


def test_batches_are_all_training_graphs_once(fold: GraphClassificationFold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "BATCH", 5)
    task = GraphsTask(fold, soft=SoftLabels(torch.arange(60.0).view(30, 2), 1.0))
    steps = task.steps()
    count = int(fold.train_mask.sum())
    assert len(steps) == -(-count // 5)
    assert all(step.graph.train_mask.all() for step in steps)
    said = torch.cat([step.soft.log_probabilities for step in steps])
    assert sorted(said[:, 0].tolist()) == (2.0 * fold.train_mask.nonzero().flatten()).tolist()


def test_a_tickets_edges_are_those_of_every_part(fold: GraphClassificationFold) -> None:
    kept = torch.arange(fold.num_pairs) % 3 > 0
    values = torch.rand(int(kept.sum()), generator=torch.Generator().manual_seed(0))
    edges, own = Edges.from_pairs(fold.pairs[:, kept], fold.num_nodes, values), model().eval()
    task = GraphsTask(fold, edges)
    with torch.no_grad():
        whole = task.logits(own)
        part = task.held_out
        held = own(part.graph.features, part.edges, graph_of=part.graph.graph_of, num_graphs=part.graph.num_graphs)
    torch.testing.assert_close(held, whole[fold.val_mask | fold.test_mask])


def test_nothing_of_held_out_graphs_enters_training(fold: GraphClassificationFold) -> None:
    weights, losses = trained(fold)
    held = ~fold.train_mask[fold.graph_of]
    other = replace(
        fold,
        features=torch.where(held[:, None], 9.0, fold.features),
        pairs=fold.pairs[:, ~held[fold.pairs[0]] | (torch.arange(fold.num_pairs) % 2 == 0)],
        labels=torch.where(fold.train_mask, fold.labels, 1 - fold.labels),
    )
    same, same_losses = trained(other)
    assert losses == same_losses
    assert losses[-1] < losses[0]
    assert all(torch.equal(a, b) for a, b in zip(weights.parameters(), same.parameters(), strict=True))
