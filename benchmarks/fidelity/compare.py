"""One protocol for every way to a ticket: accuracy at equal measured sparsity, paired with dense, and what it cost.

python benchmarks/fidelity/compare.py --dataset cora [--model gcn] [--ratios 0.2,0.9 0.4,0.9] [--methods best fast]
    [--seeds 10] [--backend compiled] [--quick] [--json OUT]

Every method sees the same split and seed. A model is selected by validation accuracy alone, its ticket is hard, and its
accuracy is that on the pruned graph ("full": the same weights on the whole graph). `dense` and `random` are always
there. Differences are paired by seed, with a 95 % confidence interval (Student's t). Seconds are of a ticket's whole
way: search, teacher and retraining; `of_dense` is their share of the dense training's, as is `macs_of_dense`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options

from gebt.config import RunOptions
from gebt.experiment import find_ticket, graph_for, macs_for, model_for
from gebt.recipes import baselines, retrain, teddy, ugs
from gebt.sparse import backends
from gebt.ticket import Ticket
from gebt.train import NodeTask

PRESETS = ("paper", "default", "fast", "best")
METHODS = ("random", *PRESETS, "best-random-edges", "teddy", "ugs")
RATIOS = ("0.2,0.9", "0.4,0.9", "0.6,0.9", "0.8,0.9")
# UGS reaches the ratios in so many rounds, with rates that end there; its own 5 % and 20 % would be at 40 % and 89 %.
UGS_ROUNDS, QUICK_ROUNDS = 10, 2
QUICK: dict[str, Any] = {"hidden": 8, "epochs": 6, "max_epochs": 6, "retrain_epochs": 6}


@dataclass(frozen=True)
class Outcome:
    """One method on one seed: accuracies in [0, 1], sparsities as measured, cost of its whole way."""

    accuracy: float
    full: float
    edge_sparsity: float
    weight_sparsity: float
    seconds: float
    macs: float


class Seed:
    """What all methods share on one seed."""

    def __init__(self, settings: RunOptions, seed: int, quick: bool) -> None:
        self.quick, self.settings, self.seed, self.graph = quick, settings, seed, graph_for(settings, seed)

    def dense(self) -> Outcome:
        """The whole network on the whole graph, for the epochs recorded for the data set."""
        model, start = model_for(self.settings, self.graph, self.seed), time.perf_counter()
        history = baselines.dense(model, self.graph, self.settings.training(), seed=self.seed)
        seconds = time.perf_counter() - start
        macs = 3 * len(history.losses) * macs_for(self.settings, self.graph, None)
        return Outcome(history.accuracy, history.accuracy, 0.0, 0.0, seconds, macs)

    def method(self, name: str, ratios: tuple[float, float]) -> Outcome:
        """A method at (edge ratio, weight ratio)."""
        edge_ratio, weight_ratio = ratios
        if name in ("teddy", "ugs"):
            return (self._teddy if name == "teddy" else self._ugs)(edge_ratio, weight_ratio)
        preset = "best" if name == "best-random-edges" else name if name in PRESETS else "default"
        settings = preset_of(self.settings, preset, self.quick, edge_ratio=edge_ratio, weight_ratio=weight_ratio)
        start = time.perf_counter()
        if name == "random":
            model = model_for(settings, self.graph, self.seed)
            given = {"edge_ratio": edge_ratio, "weight_ratio": weight_ratio}
            ticket = baselines.random_ticket(model, self.graph, **given, seed=self.seed)
        else:
            ticket = find_ticket(settings, self.graph, model_for(settings, self.graph, self.seed), self.seed)
        if name == "best-random-edges":
            ticket = baselines.random_edges(ticket, self.graph, seed=self.seed)
        return self._retrained(settings, ticket, start)

    def _teddy(self, edge_ratio: float, weight_ratio: float) -> Outcome:
        model, start = model_for(self.settings, self.graph, self.seed), time.perf_counter()
        settings = teddy.TeddySettings(self.settings.training())
        ratios = {"edge_ratio": edge_ratio, "weight_ratio": weight_ratio}
        found = teddy.run(model, self.graph, **ratios, settings=settings, seed=self.seed)
        seconds = time.perf_counter() - start
        full = NodeTask(self.graph).evaluate(model)[2]
        whole, kept = (macs_for(self.settings, self.graph, own) for own in (None, found.ticket))
        macs = 3 * settings.training.epochs * (whole + kept)
        sparsities = found.ticket.edge_sparsity, found.ticket.weight_sparsity
        return Outcome(found.test_accuracy, full, *sparsities, seconds, macs)

    def _ugs(self, edge_ratio: float, weight_ratio: float) -> Outcome:
        model, start = model_for(self.settings, self.graph, self.seed), time.perf_counter()
        rounds = QUICK_ROUNDS if self.quick else UGS_ROUNDS
        edge_rate, weight_rate = (1 - (1 - ratio) ** (1 / rounds) for ratio in (edge_ratio, weight_ratio))
        # Training as the other methods', the L1 of the release.
        training = self.settings.training()
        settings = ugs.UgsSettings(edge_rate, weight_rate, masked=training, fixed=training)
        last = ugs.run(model, self.graph, rounds=rounds, settings=settings, seed=self.seed)[-1]
        seconds = time.perf_counter() - start
        full = NodeTask(self.graph).evaluate(model)[2]
        # Masks of the rounds before are between the whole and the last one's: their mean is near enough for a cost.
        whole, kept = (macs_for(self.settings, self.graph, own) for own in (None, last.ticket))
        macs = 3 * last.ticket.epochs_searched * (whole + kept) / 2
        sparsities = last.ticket.edge_sparsity, last.ticket.weight_sparsity
        return Outcome(last.test_accuracy, full, *sparsities, seconds, macs)

    def _retrained(self, settings: RunOptions, ticket: Ticket, start: float) -> Outcome:
        model = model_for(settings, self.graph, self.seed)
        trained = retrain.run(ticket, model, self.graph, settings.retraining(), seed=self.seed)
        seconds = time.perf_counter() - start
        full = NodeTask(self.graph).evaluate(model)[2]
        searched = ticket.epochs_searched
        whole, kept = (macs_for(settings, self.graph, own) for own in (None, ticket))
        macs = 3 * (searched * whole + len(trained.history.losses) * kept)
        return Outcome(trained.test_accuracy, full, ticket.edge_sparsity, ticket.weight_sparsity, seconds, macs)


def preset_of(settings: RunOptions, preset: Any, quick: bool, **ratios: float) -> RunOptions:
    """The same data set and network with the settings of a preset."""
    few = QUICK if quick else {}
    kept = {name: getattr(settings, name) for name in ("dataset", "model", "data_root", "backend", "seeds")}
    return RunOptions(preset=preset, **kept, **few, **ratios).resolved()


def row(
    name: str, ratios: Sequence[float], outcomes: Sequence[Outcome], dense: Sequence[Outcome]
) -> dict[str, float | str | None]:
    """One line of the table; accuracies and differences in points."""
    accuracies = [100 * outcome.accuracy for outcome in outcomes]
    moved = [100 * (own.accuracy - other.accuracy) for own, other in zip(outcomes, dense, strict=True)]
    return {
        "method": name,
        "edge_ratio": ratios[0],
        "weight_ratio": ratios[1],
        "test": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "minus_dense": statistics.fmean(moved),
        "interval": half_interval(moved),
        "full": 100 * statistics.fmean(outcome.full for outcome in outcomes),
        "edge_sparsity": statistics.fmean(outcome.edge_sparsity for outcome in outcomes),
        "weight_sparsity": statistics.fmean(outcome.weight_sparsity for outcome in outcomes),
        "seconds": statistics.median(outcome.seconds for outcome in outcomes),
        "of_dense": statistics.median(a.seconds / b.seconds for a, b in zip(outcomes, dense, strict=True)),
        "macs_of_dense": statistics.fmean(a.macs / b.macs for a, b in zip(outcomes, dense, strict=True)),
    }


def half_interval(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of the confidence interval of the mean, by Student's t; 0 for one value."""
    if len(values) < 2:
        return 0.0
    return float(student.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def main() -> None:
    """Rows for dense and every method at every pair of ratios."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="cora")
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--ratios", nargs="+", default=list(RATIOS), help="pairs edge,weight")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--backend", default=backends.DEFAULT, help="engine of the sparse products")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds = 2 if arguments.quick else arguments.seeds
    given = {"dataset": arguments.dataset, "model": arguments.model, "data_root": arguments.data_root}
    settings = RunOptions(**given, backend=arguments.backend, seeds=seeds).resolved()
    if arguments.quick:
        settings = dataclasses.replace(settings, **QUICK)
    backends.use(settings.backend)
    pairs = [(float(edge), float(weight)) for edge, weight in (pair.split(",") for pair in arguments.ratios)]
    methods = list(dict.fromkeys(("random", *arguments.methods)))
    all_seeds = [Seed(settings, seed, arguments.quick) for seed in range(seeds)]
    all_seeds[0].method("default", pairs[0])  # what is loaded or compiled on first use is no method's cost
    dense = [seed.dense() for seed in all_seeds]
    rows = [row("dense", (0.0, 0.0), dense, dense)]
    print(rows[0], flush=True)
    for ratios in pairs[:1] if arguments.quick else pairs:
        for name in methods:
            work: Callable[[Seed], Outcome] = lambda seed, name=name, ratios=ratios: seed.method(name, ratios)  # noqa: E731
            rows.append(row(name, ratios, [work(seed) for seed in all_seeds], dense))
            print(rows[-1], flush=True)
    summary = {f"{own['method']}_{own['edge_ratio']}_{own['weight_ratio']}": own["test"] for own in rows}
    finish(f"{settings.dataset}, {settings.model}, {seeds} seed(s)", rows, summary, arguments.json)


if __name__ == "__main__":
    main()
