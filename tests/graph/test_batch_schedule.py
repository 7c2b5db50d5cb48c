"""Plans: an epoch's batches hold every training node once, and are the same in whatever order they are built."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gebt.graph import Graph
from gebt.graph.batch_schedule import BatchSchedule, BatchSettings, stream_of
from gebt.graph.batches import Batch, Sampler
from gebt.graph.edges import Edges

CUTS = ("random", "cluster", "neighbor", "random-walk")


def plan_of(graph: Graph, seed: int = 0, **settings: Any) -> BatchSchedule:
    chosen = {"num_parts": 5, "size": 7, **settings}
    train = graph.train_mask.nonzero().squeeze(1)
    return BatchSchedule(Sampler(Edges.from_pairs(graph.pairs, graph.num_nodes)), train, BatchSettings(**chosen), seed)


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("nodes", "pairs", "pair_ids"))


@pytest.mark.parametrize("strategy", CUTS)
def test_an_epoch_holds_every_training_node_once(sparse: Graph, strategy: str) -> None:
    plan = plan_of(sparse, strategy=strategy, clusters_per_batch=2)
    for epoch in (1, 2):
        batches = [plan.batch(epoch, number) for number in range(len(plan))]
        targets = torch.cat([batch.nodes[batch.targets] for batch in batches])
        if strategy == "random-walk":  # walks meet
            assert torch.isin(sparse.train_mask.nonzero().squeeze(1), targets).all()
            continue
        assert targets.unique().numel() == targets.numel()
        expected = torch.arange(60) if strategy in ("random", "cluster") else sparse.train_mask.nonzero().squeeze(1)
        assert torch.equal(targets.sort().values, expected)


@pytest.mark.parametrize("strategy", CUTS)
def test_a_batch_is_the_same_whoever_builds_it_and_whenever(sparse: Graph, strategy: str) -> None:
    one, other = plan_of(sparse, strategy=strategy), plan_of(sparse, strategy=strategy)
    backwards = [one.batch(3, number) for number in reversed(range(len(one)))]
    assert all(equal(other.batch(3, number), batch) for number, batch in enumerate(reversed(backwards)))
    for epoch, plan in (
        (4, one),
        (3, plan_of(sparse, seed=1, strategy=strategy)),
    ):  # another epoch or seed is cut otherwise
        others = [plan.batch(epoch, number) for number in range(len(plan))]
        assert not all(equal(*both) for both in zip(reversed(backwards), others, strict=True))


def test_random_parts_let_other_pairs_in_each_epoch_and_clusters_the_same_ones(sparse: Graph) -> None:
    def seen(plan: BatchSchedule, epoch: int) -> torch.Tensor:
        return torch.cat([plan.batch(epoch, number).pair_ids for number in range(len(plan))]).sort().values

    drawn, clustered = plan_of(sparse, strategy="random"), plan_of(sparse, strategy="cluster")
    assert not torch.equal(seen(drawn, 1), seen(drawn, 2))
    assert torch.equal(seen(clustered, 1), seen(clustered, 2))
    for plan, epoch in ((drawn, 2), (clustered, 1)):
        low, high = plan.parts(epoch)[sparse.pairs]
        assert torch.equal(seen(plan, epoch), (low == high).nonzero().squeeze(1))


def test_streams_of_other_numbers_are_others() -> None:
    numbers = ((0,), (0, 0), (0, 1), (1, 0), (1, 1), (1, 1, 1), (11, 1), (1, 11))
    found = {stream_of(*own) for own in numbers}
    assert len(found) == len(numbers)
    assert all(0 <= seed < 2**63 for seed in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "metis"}, r"strategy of batches \(got 'metis'\), expected one of"),
        ({"num_parts": 0}, r"parts of batches \(got 0\), expected at least 1"),
        ({"accumulate_batches": 0}, r"accumulate_batches of batches \(got 0\)"),
        ({"num_parts": 4, "clusters_per_batch": 5}, r"clusters per batch \(got 5 of 4\), expected at most 4"),
        ({"strategy": "random", "num_parts": 61}, r"parts \(got 61 of 60 nodes\), expected 1 to 60"),
        ({"strategy": "cluster", "num_parts": 61}, r"parts \(got 61 of 60 nodes\), expected 1 to 60"),
    ],
)
def test_settings_that_cannot_be_are_refused(sparse: Graph, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(sparse, **settings)
