"""Seeds that are trained together get the record that they would get one by one."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from gebt.experiments.compare import Comparison
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import MOST_STACKED, graphs_for, groups
from gebt.experiments.summary import VARIANTS
from gebt.graph import Graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.ticket import Ticket

SEEDS = (0, 1, 2)
FEW: dict[str, Any] = {"hidden": 8, "epochs": 4, "retrain_epochs": 3, "max_epochs": 6, "learning_rate": 0.02}
# Executed flops depend on how layers multiply, which compaction settles by the clock.
SAME = ("accuracy", "val_accuracy", "best_epoch", "edge_sparsity", "weight_sparsity", "macs_paper")


def compared(graph: Graph, groups: list[list[int]]) -> tuple[list[dict[str, Any]], list[Ticket], list[tuple[str, int]]]:
    rows, tickets, ticks = [], [], []
    for seeds in groups:
        work = Comparison(
            RunOptions(**FEW).resolved(),
            [graph] * len(seeds),
            seeds,
            lambda variant, seed: ticks.append((variant, seed)),
        )
        rows += work.rows()
        tickets += work.tickets
    return rows, tickets, ticks


def test_a_group_is_compared_as_its_seeds_alone(sparse64: Graph) -> None:
    together, found, ticks = compared(sparse64, [list(SEEDS)])
    alone, expected, ticks_alone = compared(sparse64, [[seed] for seed in SEEDS])
    for ticket, other in zip(found, expected, strict=True):
        assert (ticket.edge_mask, ticket.weight_mask) == (other.edge_mask, other.weight_mask)
    for row, other in zip(together, alone, strict=True):
        assert (row["seed"], row["stacked"]) == (other["seed"], len(SEEDS))
        for variant in VARIANTS:
            assert {name: row[variant][name] for name in SAME} == {name: other[variant][name] for name in SAME}
            assert (row[variant]["seconds"]["search"] > 0) == (variant in ("ticket", "random_edges_control"))
    assert sorted(ticks) == sorted(ticks_alone)


def test_every_arm_is_measured_on_a_set_of_graphs(fold: GraphClassificationFold) -> None:
    options = RunOptions(dataset="mutag", edge_ratio=0.3, **FEW).resolved()
    work = Comparison(options, [fold], [0], lambda variant, seed: None)
    row, ticket = work.rows()[0], work.tickets[0]
    assert ticket.edge_scorer is not None
    assert {row[variant]["edge_sparsity"] for variant in VARIANTS[1:]} == {ticket.edge_sparsity}
    assert {row[variant]["weight_sparsity"] for variant in VARIANTS[1:]} == {ticket.weight_sparsity}
    assert row["random"]["flops_executed"]["training"] < row["ticket"]["flops_executed"]["training"]
    inference = [row[variant]["flops_executed"]["inference"] for variant in VARIANTS]
    assert 0 < max(inference[1:]) < inference[0]


@pytest.mark.parametrize("compaction", [True, False])
def test_what_serves_is_measured(toy: Graph, compaction: bool) -> None:
    few = FEW | {"hidden": 64, "weight_structure": "unit", "weight_ratio": 0.75, "compaction": compaction}
    row = Comparison(RunOptions(**few).resolved(), [toy], [0], lambda variant, seed: None).rows()[0]
    shares = [
        row[variant]["flops_executed"]["inference"] / row["dense"]["flops_executed"]["inference"]
        for variant in VARIANTS[1:]
    ]
    # Of 64 hidden units 16 are left; products over edges as wide as the classes stay.
    assert all(share < 0.4 if compaction else share > 0.8 for share in shares), shares


@pytest.mark.skipif("GEBT_DATA" not in os.environ, reason="GEBT_DATA is not set")
def test_seeds_are_grouped_where_it_pays() -> None:
    def grouped(**changes: Any) -> list[list[int]]:
        options: dict[str, Any] = {"dataset": "cora", "seeds": MOST_STACKED + 2, **changes}
        return groups(RunOptions(**options).resolved())

    one_by_one = [[seed] for seed in range(MOST_STACKED + 2)]
    assert grouped() == [list(range(MOST_STACKED)), [MOST_STACKED, MOST_STACKED + 1]]
    assert grouped(stack_seeds=False) == grouped(algorithm="weights") == grouped(weight_structure="unit") == one_by_one
    assert grouped(seeds=1) == [[0]]
    assert grouped(dataset="digits") == one_by_one  # dense features


def test_seeds_share_a_graph_unless_its_split_is_theirs() -> None:
    first, second = graphs_for(RunOptions(dataset="digits", split_seed=3).resolved(), (0, 1))
    assert first is second
    first, second = graphs_for(RunOptions(dataset="digits").resolved(), (0, 1))
    assert not torch.equal(first.train_mask, second.train_mask)
