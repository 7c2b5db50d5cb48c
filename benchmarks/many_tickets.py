"""Many tickets one after another and together: seconds, accuracy, and whether they are the same.

python benchmarks/many_tickets.py [--dataset cora] [--seeds 10] [--backend auto] [--quick] [--json OUT]

Every seed is a search and a retraining of its ticket, with the settings of `gebt run`. First both ways are shown to
give the same in double precision; then they are timed in turn.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import finish, options
from torch import Tensor

from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, graphs_for, model_for
from gebt.graph import Graph
from gebt.models import GCN
from gebt.recipes import retrain, search
from gebt.sparse import SparseMatrix, backends
from gebt.ticket import Ticket
from gebt.train.stacked import worth_stacking

WAYS = ("apart", "together")
CHECKED_EPOCHS = 5
AGREEMENT = 1e-9


class Seeds:
    """The graphs and settings of all seeds, and the two ways through them."""

    def __init__(self, settings: RunOptions, graphs: Sequence[Graph]) -> None:
        self.settings, self.seeds, self.graphs = settings, range(settings.seeds), graphs

    def models(self) -> list[GCN]:
        """The network of each seed, before any training."""
        return [model_for(self.settings, graph, seed) for graph, seed in zip(self.graphs, self.seeds, strict=True)]

    def found_apart(self) -> list[Ticket]:
        """One search after another."""
        given = zip(self.graphs, self.models(), self.seeds, strict=True)
        return [find_ticket(self.settings, graph, model, seed) for graph, model, seed in given]

    def found_together(self) -> list[Ticket]:
        """All searches in one."""
        ratios = {"edge_ratio": self.settings.edge_ratio, "weight_ratio": self.settings.weight_ratio}
        settings = self.settings.search()
        return search.joint_stacked(self.models(), self.graphs, **ratios, settings=settings, seeds=self.seeds)

    def trained_apart(self, tickets: Sequence[Ticket]) -> list[retrain.RetrainResult]:
        """One retraining after another."""
        given = zip(tickets, self.models(), self.graphs, self.seeds, strict=True)
        settings = self.settings.retraining()
        return [retrain.run(ticket, model, graph, settings, seed=seed) for ticket, model, graph, seed in given]

    def trained_together(self, tickets: Sequence[Ticket]) -> list[retrain.RetrainResult]:
        """All retrainings in one."""
        settings = self.settings.retraining()
        return retrain.run_stacked(tickets, self.models(), self.graphs, settings, seeds=self.seeds)


def few(settings: RunOptions, **more: Any) -> RunOptions:
    """The same run with few epochs."""
    return dataclasses.replace(
        settings, max_epochs=CHECKED_EPOCHS, retrain_epochs=CHECKED_EPOCHS, threshold=1e-12, **more
    )


def check(settings: RunOptions, graphs: Sequence[Graph]) -> None:
    """Ends the program when the two ways differ in masks, weights or losses (all networks whole, double precision)."""
    torch.set_default_dtype(torch.float64)
    work = Seeds(few(settings, compaction=False), [doubled(graph) for graph in graphs])
    pairs = list(zip(work.found_apart(), work.found_together(), strict=True))
    masks = all((a.edge_mask, a.weight_mask) == (b.edge_mask, b.weight_mask) for a, b in pairs)
    states = [(a.state_at_draw, b.state_at_draw) for a, b in pairs]
    weights = max(float((a[name] - tensor).abs().max()) for a, b in states for name, tensor in b.items())
    trained = zip(work.trained_apart([a for a, _ in pairs]), work.trained_together([b for _, b in pairs]), strict=True)
    losses = max(abs(a - b) for h, k in trained for a, b in zip(h.history.losses, k.history.losses, strict=True))
    torch.set_default_dtype(torch.float32)
    if not masks or max(weights, losses) > AGREEMENT:
        got = f"equal masks: {masks}; weights {weights:.1e} and losses {losses:.1e} apart"
        raise SystemExit(f"tickets together (got {got}), expected those found one by one")


def doubled(graph: Graph) -> Graph:
    """The graph in double precision."""
    features = graph.features
    if isinstance(features, Tensor):
        return dataclasses.replace(graph, features=features.double())
    return dataclasses.replace(graph, features=SparseMatrix(features.pattern, features.values.double()))


def time_both(work: Seeds, seconds: dict[str, list[float]]) -> dict[str, list[retrain.RetrainResult]]:
    """Notes the seconds of each way's search and retraining; returns what was trained."""
    trained = {}
    for way in WAYS:
        start = time.perf_counter()
        found = getattr(work, f"found_{way}")()
        middle = time.perf_counter()
        trained[way] = getattr(work, f"trained_{way}")(found)
        seconds.setdefault(f"search {way}", []).append(middle - start)
        seconds.setdefault(f"retrain {way}", []).append(time.perf_counter() - middle)
    return trained


def main() -> None:
    """Rows for the search, the retraining and both; seconds are medians over the rounds."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="cora")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    parser.add_argument("--backend", default=backends.AUTO, help="engine of the sparse products")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds, rounds = (2, 1) if arguments.quick else (arguments.seeds, arguments.rounds)
    ratios = {"edge_ratio": 0.2, "weight_ratio": 0.9}
    settings = RunOptions(
        dataset=arguments.dataset, seeds=seeds, backend=arguments.backend, data_root=arguments.data_root, **ratios
    ).resolved()
    backends.use(settings.backend)
    graphs = graphs_for(settings, range(seeds))
    check(settings, graphs)
    time_both(Seeds(few(settings), graphs), {})  # warm-up
    work, seconds = Seeds(few(settings) if arguments.quick else settings, graphs), {}
    for _ in range(rounds):
        trained = time_both(work, seconds)
    for way in WAYS:
        parts = zip(seconds[f"search {way}"], seconds[f"retrain {way}"], strict=True)
        seconds[f"both {way}"] = [a + b for a, b in parts]
    rows = [row(phase, seconds, seeds) for phase in ("search", "retrain", "both")]
    summary = {f"accuracy_{way}": statistics.fmean(own.test_accuracy for own in trained[way]) for way in WAYS}
    summary["equal_accuracies"] = sum(
        a.test_accuracy == b.test_accuracy for a, b in zip(trained["apart"], trained["together"], strict=True)
    )
    summary |= {"speedup": rows[-1]["times_faster"], "pays": worth_stacking(graphs[0], work.models()[0], seeds)}
    title = f"{arguments.dataset}: {seeds} tickets, {settings.backend} products, medians of {rounds} round(s)"
    finish(title, rows, summary, arguments.json)


def row(phase: str, seconds: dict[str, list[float]], seeds: int) -> dict[str, Any]:
    """One line of the table."""
    apart, together = (statistics.median(seconds[f"{phase} {way}"]) for way in WAYS)
    return {
        "phase": phase,
        "apart_s": apart,
        "together_s": together,
        "a_ticket_s": together / seeds,
        "times_faster": apart / together,
    }


if __name__ == "__main__":
    main()
