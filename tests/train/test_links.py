"""The link task: its loss against a dense oracle, targets, what a pruned edge may do, and where nodes are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gebt.graph import Edges, Graph, LinkGraph, hold_out_links
from gebt.graph.metrics import link_measure
from gebt.models import GCN, LinkPredictor
from gebt.train import LinkTask, NodeTask
from gebt.train import links as links_module
from gebt.train.loop import SoftLabels, seeded
from gebt.train.tasks import task_for

SHARES = (0.6, 0.2, 0.2)


@pytest.fixture(scope="module")
def held(sparse: Graph) -> LinkGraph:
    return hold_out_links(sparse, SHARES)


def predictor(graph: Graph, seed: int = 0) -> LinkPredictor:
    return LinkPredictor(GCN(graph.num_features, 8, 6, dropout=0.0, seed=seed), 8, seed=seed)


def dense_scores(model: LinkPredictor, graph: Graph, pairs: Tensor) -> Tensor:
    """All of it with dense matrices."""
    adjacency = torch.eye(graph.num_nodes)
    adjacency[graph.pairs[0], graph.pairs[1]] = adjacency[graph.pairs[1], graph.pairs[0]] = 1.0
    scale = adjacency.sum(1).rsqrt()
    adjacency = scale[:, None] * adjacency * scale
    first, second = model.encoder.convs
    h = torch.relu(adjacency @ graph.features.to_dense() @ first.lin.weight.T + first.bias)
    h = adjacency @ h @ second.lin.weight.T + second.bias
    x = torch.relu((h[pairs[0]] * h[pairs[1]]) @ model.lins[0].weight.T + model.lins[0].bias)
    return (x @ model.lins[1].weight.T + model.lins[1].bias)[:, 0]


def test_the_loss_is_the_binary_cross_entropy_of_the_targets(held: LinkGraph) -> None:
    task, model = task_for(held), predictor(held).train()
    assert isinstance(task, LinkTask)
    with seeded(3):
        targets = task.targets()
    with seeded(3):
        loss = task.loss(task.logits(model))
    assert torch.equal(targets[:, : held.num_pairs], held.pairs)
    real = (torch.arange(targets.shape[1]) < held.num_pairs).float()
    expected = F.binary_cross_entropy_with_logits(dense_scores(model, held, targets), real)
    torch.testing.assert_close(loss, expected)


def test_measures_are_those_of_the_pairs_held_out(held: LinkGraph) -> None:
    task, model = task_for(replace(held, metric="hits@10")), predictor(held).eval()
    with torch.no_grad():
        val, val_others, test, test_others = (
            dense_scores(model, held, part)
            for part in (held.val_edges, held.val_negatives, held.test_edges, held.test_negatives)
        )
    found = task.measures(model)
    loss = (F.softplus(-val).mean() + F.softplus(val_others).mean()) / 2
    expected = [link_measure("hits@10", val, val_others), loss, link_measure("hits@10", test, test_others)]
    torch.testing.assert_close(found, torch.stack(expected))
    auc = task.metrics(model, "roc_auc")[2]
    torch.testing.assert_close(auc, link_measure("roc_auc", test, test_others))


def test_drawn_pairs_are_two_nodes_new_each_step_and_the_seeds(held: LinkGraph) -> None:
    task, nodes = LinkTask(held), held.num_nodes
    with seeded(0):
        first, second = (task.targets()[:, held.num_pairs :] for _ in range(2))
    with seeded(0):
        again = task.targets()[:, held.num_pairs :]
    assert first.shape == held.pairs.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert bool((first[0] != first[1]).all())
    assert 0 <= int(first.min()) <= int(first.max()) < nodes
    assert torch.unique(first).numel() > nodes // 2


def test_a_large_graph_draws_its_real_targets_too(held: LinkGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "MOST_TARGETS", 10)
    targets = LinkTask(held).targets()
    assert targets.shape == (2, 20)
    known = set(map(tuple, held.pairs.t().tolist()))
    assert set(map(tuple, targets[:, :10].t().tolist())) <= known


def test_held_out_and_pruned_edges_carry_no_message_and_pruned_ones_stay_targets(held: LinkGraph) -> None:
    task, kept = task_for(held), torch.arange(held.num_pairs) % 2 == 0
    assert torch.equal(task.edges.pairs, held.pairs)
    pruned = task_for(held, Edges.from_pairs(held.pairs[:, kept], held.num_nodes))
    assert torch.equal(pruned.targets()[:, : held.num_pairs], held.pairs)
    model = predictor(held).eval()
    with torch.no_grad():
        # The embeddings are those of a graph that never had the others.
        alone = replace(held, pairs=held.pairs[:, kept])
        torch.testing.assert_close(pruned.predict_proba(model), task_for(alone).predict_proba(model))
        moved = replace(held, val_edges=held.val_edges.flip(1)[:, :3])
        torch.testing.assert_close(task_for(moved).predict_proba(model), task.predict_proba(model), rtol=0, atol=0)


def test_other_numbers_for_the_nodes_change_no_measure(held: LinkGraph) -> None:
    order = torch.randperm(held.num_nodes, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    ends = place[held.pairs].sort(0).values
    pairs = ends[:, (ends[0] * held.num_nodes + ends[1]).argsort()]
    parts = {name: place[getattr(held, name)] for name in links_module.HELD}
    dense = replace(held, features=held.features.to_dense())
    renamed = replace(dense, pairs=pairs, features=dense.features[order], **parts)
    model = predictor(held)
    torch.testing.assert_close(task_for(renamed).measures(model), task_for(dense).measures(model))


@pytest.mark.parametrize("option", ["soft", "extra_loss"])
def test_losses_on_classes_are_refused(held: LinkGraph, option: str) -> None:
    given: dict[str, Any] = {"soft": SoftLabels(torch.zeros(1, 1), 1.0), "extra_loss": torch.sum}
    with pytest.raises(ValueError, match=rf"link prediction \(got '{option}'\), expected no loss on opinions"):
        task_for(held, **{option: given[option]})


def test_a_graph_of_nodes_poses_the_task_of_nodes(sparse: Graph) -> None:
    task = task_for(sparse)
    assert type(task) is NodeTask
    assert task.classifies
    model: Callable[..., Tensor] = GCN(sparse.num_features, 8, sparse.num_classes).eval()
    torch.testing.assert_close(task.predict_proba(model), model(sparse.features, task.edges).softmax(1))  # type: ignore[arg-type]
