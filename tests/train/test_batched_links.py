"""Links in batches: targets are those of the batch, losses and searches those of the whole graph, commands run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.cli.main import main
from gebt.data.mapped.convert import convert
from gebt.experiments.record import read_record
from gebt.graph import Edges, Graph, LinkGraph, hold_out_links
from gebt.graph.batch_schedule import BatchSchedule, BatchSettings, stream_of
from gebt.graph.batches import Sampler
from gebt.models import GCN, LinkPredictor
from gebt.prune.mask import Mask
from gebt.recipes import minibatch as recipes
from gebt.recipes import search
from gebt.train import LinkTask
from gebt.train.loop import TrainingSettings, adam, seeded
from gebt.train.minibatch import Batched, BatchedFit

FOUR = BatchSettings("random", num_parts=4, accumulate_batches=4)


@pytest.fixture
def held(sparse64: Graph) -> LinkGraph:
    return hold_out_links(sparse64, (0.6, 0.2, 0.2))


def batched_of(graph: LinkGraph, settings: BatchSettings = FOUR, kept: Mask | None = None) -> Batched:
    edges = Edges.from_pairs(graph.pairs, graph.num_nodes)
    plan = BatchSchedule(Sampler(edges), torch.arange(graph.num_nodes), settings, seed=0)
    return Batched(graph, plan, kept=kept, edges=edges)


def predictor(graph: Graph) -> LinkPredictor:
    return LinkPredictor(GCN(graph.num_features, 8, 6, dropout=0.0), 8).double()


def test_links_of_a_batch_are_targets_also_pruned_ones_and_those_kept_carry_messages(held: LinkGraph) -> None:
    kept = Mask({"edges": torch.arange(held.num_pairs) % 2 == 0})
    batched, found = batched_of(held, kept=kept), set[tuple[int, ...]]()
    for number in range(4):
        batch = batched.schedule.batch(1, number)
        task, ids = batched.task_of(batch)
        assert isinstance(task, LinkTask)
        targets = task.targets()
        assert torch.equal(targets[:, : task.num_labels], batch.pairs)
        assert bool((targets[0] != targets[1]).all())
        assert int(targets.max()) < batch.nodes.numel()
        assert torch.equal(ids, batch.pair_ids[batch.pair_ids % 2 == 0])
        assert torch.equal(batch.nodes[task.edges.pairs], held.pairs[:, ids])
        found |= set(map(tuple, batch.nodes[batch.pairs].t().tolist()))
    parts = batched.schedule.parts(1)
    together = parts[held.pairs[0]] == parts[held.pairs[1]]
    assert found == set(map(tuple, held.pairs[:, together].t().tolist()))


@pytest.mark.parametrize("strategy", ["random", "cluster", "random-walk"])
def test_the_loss_of_an_epoch_is_the_mean_over_the_links_of_its_batches(held: LinkGraph, strategy: Any) -> None:
    batched, model = (
        batched_of(held, BatchSettings(strategy, num_parts=4, size=15, accumulate_batches=4)),
        predictor(held),
    )
    told, links = 0.0, 0
    assert len(batched.schedule) == 4
    for number in range(4):
        task, _ = batched.task_of(batched.schedule.batch(1, number))
        with seeded(stream_of(0, 1, number, 1)):
            told += float(task.loss(task.logits(model.train())).detach()) * task.graph.num_pairs
        links += task.graph.num_pairs
    fit = BatchedFit(model, batched, adam(model, TrainingSettings(epochs=1)), evaluate=False)
    assert fit.run(1).losses == [pytest.approx(told / links, rel=1e-12)]


def losses(graph: LinkGraph, settings: BatchSettings, seed: int = 0) -> list[float]:
    batched, model = batched_of(graph, settings), predictor(graph)
    batched.schedule.seed = seed
    return BatchedFit(model, batched, adam(model, TrainingSettings(epochs=2)), seed=seed).run(2).losses


def test_batches_without_a_link_are_passed_over(held: LinkGraph) -> None:
    alone = replace(held, pairs=held.pairs[:, :1])
    assert losses(alone, BatchSettings("random", num_parts=held.num_nodes)) == [0.0, 0.0]  # one node a batch
    # At times the link is in one of the three batches of a step, and two have none.
    found = [losses(alone, BatchSettings("random", num_parts=3, accumulate_batches=3), seed)[0] for seed in range(8)]
    assert all(0 <= loss < 10 for loss in found)
    assert 0 < sum(loss > 0 for loss in found) < 8


def test_a_search_in_one_batch_draws_the_masks_of_pairs_and_weights_asked_for(held: LinkGraph) -> None:
    settings = search.SearchSettings(max_epochs=4, threshold=1e-9)
    whole = batched_of(held, BatchSettings("random", num_parts=1))
    ticket = recipes.joint(predictor(held), whole, edge_ratio=0.4, weight_ratio=0.5, settings=settings)
    assert ticket.edge_mask.kept == held.num_pairs - int(0.4 * held.num_pairs)
    ticket.check(predictor(held), held)
    model = predictor(held)
    history = recipes.retrain(ticket, model, whole, TrainingSettings(epochs=2))
    measured = LinkTask(held, ticket.edges(held)).evaluate(model)
    assert history.accuracy == measured[2]


def test_links_in_batches_are_a_command(tmp_path: Path) -> None:
    few = ["--hidden=8", "--epochs=2", "--max-epochs=2", "--retrain-epochs=2"]
    main(["run", "--task=links", "--batching=random", "--num_parts=3", *few, "--out", str(tmp_path / "run")])
    record = read_record(tmp_path / "run")
    found: dict[str, Any] = record["per_seed"][0]
    assert record["graph"]["metric"] == "hits@50"
    assert 0 < found["ticket"]["accuracy"] <= 1
    assert found["ticket"]["edge_sparsity"] == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--task=links", "--batching=neighbor"],
            "--batching (got 'neighbor'), expected one of ('random', 'cluster', 'random-walk') for links",
        ),
        (
            ["--task=links", "--graph=MAPPED"],
            "--task (got 'links'), expected 'nodes' for a graph that is read from disk",
        ),
        (["--dataset=mutag", "--batching=random"], "--batching (got it for a set of graphs), expected none"),
    ],
)
def test_what_has_no_batches_is_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--graph=MAPPED" in options:
        options = [options[0], f"--graph={convert('digits', tmp_path / 'mapped')}"]
    with pytest.raises(SystemExit) as ending:
        main(["run", *options, "--out", str(tmp_path / "run")])
    assert ending.value.code == 2
    assert message in capsys.readouterr().err
