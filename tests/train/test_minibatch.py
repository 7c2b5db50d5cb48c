"""Training in batches: one batch of everything is full-batch training, and a resumed fit is the straight one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.graph import Edges, Graph
from gebt.graph.batch_schedule import BatchSchedule, BatchSettings
from gebt.graph.batches import Sampler
from gebt.models import GCN
from gebt.models.resgcn import ResGCN
from gebt.prune.mask import Mask
from gebt.recipes import minibatch as recipes
from gebt.recipes import search
from gebt.train.checkpoints import load_state, save_state
from gebt.train.edge_values import EdgeValueStore
from gebt.train.loop import NodeTask, TrainingSettings, adam, copy_state, fit, following
from gebt.train.minibatch import Batched, BatchedFit

SETTINGS = search.SearchSettings(max_epochs=8, threshold=1e-9)
WHOLE = BatchSettings("random", num_parts=1)


def batched_of(graph: Graph, settings: BatchSettings = WHOLE, *, in_memory: bool = True, seed: int = 0) -> Batched:
    edges = Edges.from_pairs(graph.pairs, graph.num_nodes)
    plan = BatchSchedule(Sampler(edges), graph.train_mask.nonzero().squeeze(1), settings, seed)
    return Batched(graph, plan, edges=edges if in_memory else None)


def model_of(graph: Graph, **options: Any) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes, **{"dropout": 0.0, **options})


def test_one_batch_of_everything_is_the_full_graph(sparse64: Graph) -> None:
    whole, own = model_of(sparse64), model_of(sparse64)
    settings = TrainingSettings(epochs=7)
    expected = fit(whole, NodeTask(sparse64), [adam(whole, settings)], 7)
    found = recipes.train(own, batched_of(sparse64), settings)
    assert found.losses == pytest.approx(expected.losses, rel=1e-12)
    assert found.val_accuracy == expected.val_accuracy
    assert found.test_accuracy == expected.test_accuracy
    assert found.best_epoch == expected.best_epoch
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], tensor, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("score", ["magnitude", "local_degree"])
def test_a_search_in_one_batch_finds_the_ticket_of_the_full_search(sparse64: Graph, score: Any) -> None:
    settings = replace(SETTINGS, edge_score=score, edge_l1=1e-3)
    ratios = {"edge_ratio": 0.4, "weight_ratio": 0.7}
    expected = search.joint(model_of(sparse64), sparse64, **ratios, settings=settings, seed=5)
    found = recipes.joint(model_of(sparse64), batched_of(sparse64), **ratios, settings=settings, seed=5)
    assert found.edge_mask == expected.edge_mask
    assert found.weight_mask == expected.weight_mask
    assert found.provenance["trajectory"] == expected.provenance["trajectory"]
    found.check(model_of(sparse64), sparse64)


def test_losses_and_gradients_of_batches_add_up_to_those_of_their_union(sparse64: Graph) -> None:
    """Four batches a step are the whole graph without the pairs between them."""
    batched = batched_of(sparse64, BatchSettings("cluster", num_parts=4, accumulate_batches=4))
    low, high = batched.schedule.clusters[sparse64.pairs]
    inside = low == high
    cut = replace(sparse64, pairs=sparse64.pairs[:, inside])
    whole, own = model_of(sparse64), model_of(sparse64)
    settings = TrainingSettings(epochs=3)
    values = EdgeValueStore(sparse64.num_pairs, learning_rate=0.1, dtype=torch.float64)
    gates = torch.ones(cut.num_pairs, requires_grad=True)
    optimizers = [adam(whole, settings), torch.optim.Adam([gates], lr=0.1)]
    expected = fit(whole, NodeTask(cut), optimizers, 3, gates=gates, evaluate=False)
    found = BatchedFit(own, batched, adam(own, settings), values=values, evaluate=False).run(3)
    assert found.losses == pytest.approx(expected.losses, rel=1e-11)
    ids = torch.arange(sparse64.num_pairs)
    torch.testing.assert_close(values.read(ids[inside]), gates.detach(), rtol=1e-8, atol=1e-10)
    assert torch.equal(values.read(ids[~inside]), torch.ones(int((~inside).sum())))


def test_normalization_moves_once_a_step_by_the_mean_of_its_batches(sparse: Graph) -> None:
    model = ResGCN(sparse.num_features, 4, sparse.num_classes, 2, 0.0)
    batched = batched_of(sparse, BatchSettings("random", num_parts=3, accumulate_batches=3))
    start = copy_state(model)
    moved = []
    for number in range(3):
        model.load_state_dict(start)
        batch = batched.schedule.batch(1, number)
        with following(model):  # an epoch is one step
            NodeTask(batched.graph_of(batch), batch.edges, keep_aggregated=False).logits(model.train())
        moved.append(copy_state(model)["layers.0.norm.running_mean"])
    model.load_state_dict(start)
    BatchedFit(model, batched, adam(model, TrainingSettings(learning_rate=1e-9)), evaluate=False).run(1)
    torch.testing.assert_close(model.state_dict()["layers.0.norm.running_mean"], torch.stack(moved).mean(0))


def test_pruned_pairs_are_in_no_batch(sparse: Graph) -> None:
    kept = torch.rand(sparse.num_pairs, generator=torch.Generator().manual_seed(0)) < 0.5
    batched = replace(batched_of(sparse, BatchSettings("random", num_parts=2)), kept=Mask({"edges": kept}))
    for number in range(2):
        batch = batched.schedule.batch(1, number)
        thin = batched.thinned(batch)
        assert torch.equal(thin.pair_ids, batch.pair_ids[kept[batch.pair_ids]])
        assert torch.equal(thin.nodes[thin.pairs], sparse.pairs[:, thin.pair_ids])


def test_a_resumed_fit_is_the_straight_one(sparse: Graph, tmp_path: Path) -> None:
    batched = batched_of(sparse, BatchSettings("random", num_parts=4, clusters_per_batch=2))

    def fresh() -> BatchedFit:
        model = model_of(sparse, dropout=0.5)
        return BatchedFit(model, batched, adam(model, TrainingSettings()), seed=3, evaluate_every=2)

    straight = fresh()
    straight.run(9)
    stopped, resumed, saved = fresh(), fresh(), dict[str, Any]()

    def after(epoch: int, _: Any) -> bool:
        if epoch == 4:  # what a checkpoint holds; the fit then ends in its best epoch's state
            saved.update(load_state(save_state(tmp_path / "state", stopped.state_dict())))
        return epoch == 4

    stopped.run(9, after)
    resumed.load_state_dict(saved)
    resumed.run(9)
    assert resumed.history.losses == straight.history.losses
    assert resumed.history.val_accuracy == straight.history.val_accuracy
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor)


def test_epochs_between_evaluations_stand_as_the_last_that_was_judged(sparse: Graph) -> None:
    model = model_of(sparse)
    history = BatchedFit(model, batched_of(sparse), adam(model, TrainingSettings()), evaluate_every=3).run(8)
    assert len(history.val_accuracy) == len(history.losses) == 8
    assert history.val_accuracy[3] == history.val_accuracy[4] == history.val_accuracy[2]
    assert history.best_epoch in (3, 6, 8)


@pytest.mark.parametrize("preset", ["best", "fast"])
def test_searches_that_need_the_whole_graph_are_refused(sparse: Graph, preset: str) -> None:
    with pytest.raises(ValueError, match=r"to search in batches; take preset 'early-bird' or 'paper'"):
        recipes.joint(
            model_of(sparse), batched_of(sparse), edge_ratio=0.1, weight_ratio=0.1,
            settings=search.search_preset(preset),
        )  # fmt: skip


def test_a_loss_that_is_no_number_names_its_epoch(sparse: Graph) -> None:
    model = model_of(sparse)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e38)
    with pytest.raises(ValueError, match=r"training loss \(got (nan|inf) in epoch \d+\), expected a finite number"):
        BatchedFit(model, batched_of(sparse), optimizer, evaluate=False).run(5)


def test_scores_far_below_zero_have_a_best_epoch_too(sparse: Graph) -> None:
    numbers = replace(
        sparse,
        labels=torch.arange(60).float() - 500,
        num_classes=1,
        target="regression",
        metric="negative_mean_absolute_error",
    )
    model = model_of(numbers)
    history = recipes.train(model, batched_of(numbers), TrainingSettings(epochs=2))
    assert history.best_epoch in (1, 2)
    assert history.val_accuracy[history.best_epoch - 1] < -1


def test_batches_weigh_by_the_labels_of_tasks_that_are_known(sparse64: Graph) -> None:
    """One batch has no known label at all, and yet four batches a step are the graph without the pairs between them."""
    batched = batched_of(sparse64, BatchSettings("cluster", num_parts=4, accumulate_batches=4))
    drawn = torch.randint(-1, 2, (60, 3), generator=torch.Generator().manual_seed(0))
    drawn[batched.schedule.clusters == 2] = -1
    tasks = replace(sparse64, labels=drawn, num_classes=3, target="multilabel", metric="micro_f1")
    low, high = batched.schedule.clusters[tasks.pairs]
    cut = replace(tasks, pairs=tasks.pairs[:, low == high])
    whole, own = model_of(tasks), model_of(tasks)
    settings = TrainingSettings(epochs=3)
    expected = fit(whole, NodeTask(cut), [adam(whole, settings)], 3, evaluate=False)
    found = BatchedFit(own, replace(batched, source=tasks), adam(own, settings), evaluate=False).run(3)
    assert found.losses == pytest.approx(expected.losses, rel=1e-11)
