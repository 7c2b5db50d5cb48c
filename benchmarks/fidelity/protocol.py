"""One protocol for every way to a ticket: what a method reaches on one seed, and how methods compare.

Every method sees the same split and seed. A model is selected by validation accuracy alone, its ticket is hard, and its
accuracy is that on the pruned graph (`full`: the same weights on the whole graph). Sparsities are measured. Seconds and
multiply-adds are of the whole way: search, teacher and retraining.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Store, half_interval

from gebt.experiments.methods import OTHER_METHODS, run_method
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, graph_for, macs_for, macs_with, model_for
from gebt.graph import Graph
from gebt.prune.scores import prunable_weights
from gebt.recipes import baselines, retrain
from gebt.ticket import Ticket
from gebt.train.tasks import task_for

PRESETS = ("paper", "early-bird", "fast", "best")
CONTROL = "-random-edges"
QUICK: dict[str, Any] = {"hidden": 8, "epochs": 6, "max_epochs": 6, "retrain_epochs": 6}
Ratios = tuple[float, float]


@dataclass(frozen=True)
class Outcome:
    """One method on one seed: accuracies in [0, 1], sparsities as measured, cost of its whole way."""

    accuracy: float
    full: float
    val: float
    edge_sparsity: float
    weight_sparsity: float
    seconds: float
    macs: float
    epoch_drawn: int = 0
    fired: bool = False


class Protocol:
    """Outcomes by data set, network, method, ratios and seed; kept in `store` (JSON lines), so that a stop loses none.

    A method is "dense", "random", a preset, a preset with changes ("best:label_propagation=0,distill=0"), one with
    as many edges drawn at random ("best-random-edges"), or a baseline (`gebt.experiments.methods`). `imbalance`: see
    `imbalanced`.
    """

    def __init__(self, quick: bool = False, store: Path | None = None, imbalance: int = 1, **options: Any) -> None:
        self.quick, self.store, self.imbalance, self.options = quick, Store(store), imbalance, options
        self._warm: set[tuple[str, str]] = set()

    def outcomes(self, dataset: str, model: str, method: str, ratios: Ratios, seeds: Iterable[int]) -> list[Outcome]:
        """Of all seeds, in order."""
        return [self.outcome(dataset, model, method, ratios, seed) for seed in seeds]

    def outcome(self, dataset: str, model: str, method: str, ratios: Ratios, seed: int) -> Outcome:
        """Of one seed: looked up, or found and kept."""
        ratios = (0.0, 0.0) if method == "dense" else ratios
        where = f"{dataset}/{self.imbalance}" if self.imbalance > 1 else dataset
        own = " ".join(f"{name}={value}" for name, value in sorted(self.options.items()) if value is not None)
        key = f"{where} {model} {method} {ratios[0]:g},{ratios[1]:g} {seed} {own}".strip()

        def find() -> dict[str, Any]:
            if (dataset, model) not in self._warm:
                self._warm.add((dataset, model))
                # What is loaded or compiled on first use is no part of anybody's seconds.
                self._find(dataset, model, "early-bird:max_epochs=1,retrain_epochs=1", (0.0, 0.0), seed)
            return asdict(self._find(dataset, model, method, ratios, seed))

        return Outcome(**self.store.get(key, find))

    def settings(self, dataset: str, model: str, method: str, ratios: Ratios) -> RunOptions:
        """The options of a method, resolved."""
        preset, _, own = method.removesuffix(CONTROL).partition(":")
        chosen: dict[str, Any] = {**self.options, **(QUICK if self.quick else {})}
        chosen |= dict(parsed(part) for part in own.split(",") if part)
        if model.startswith("resgcn"):
            chosen["depth"] = int(model[6:])
        preset = preset if preset in PRESETS else "early-bird"
        given = {"dataset": dataset, "model": model, "edge_ratio": ratios[0], "weight_ratio": ratios[1]}
        return RunOptions(preset=preset, **given, **chosen).resolved()  # type: ignore[arg-type]

    def inference_share(self, dataset: str, model: str, outcome: Outcome) -> float:
        """Multiply-adds of one inference of the ticket as a share of the dense network's, by the paper's convention."""
        settings = self.settings(dataset, model, "dense", (0.0, 0.0))
        graph = _graph(settings, 0)
        whole = sum(p.numel() for p in prunable_weights(model_for(settings, graph, 0)).values())
        pairs, weights = graph.num_pairs * (1 - outcome.edge_sparsity), whole * (1 - outcome.weight_sparsity)
        return macs_with(settings, graph, round(pairs), round(weights)) / macs_for(settings, graph, None)

    def _find(self, dataset: str, model: str, method: str, ratios: Ratios, seed: int) -> Outcome:
        settings = self.settings(dataset, model, method, ratios)
        graph = imbalanced(_graph(settings, seed), self.imbalance, seed)
        if method == "dense":
            return _dense(settings, graph, seed)
        if method in OTHER_METHODS:
            return _rival(settings, graph, method, seed)
        start = time.perf_counter()
        network = model_for(settings, graph, seed)
        if method == "random":
            given = {"edge_ratio": ratios[0], "weight_ratio": ratios[1]}
            ticket = baselines.random_ticket(network, graph, **given, seed=seed)
        else:
            ticket = find_ticket(settings, graph, network, seed)
        if method.endswith(CONTROL):
            ticket = baselines.random_edges(ticket, graph, seed=seed)
        return _retrained(settings, graph, ticket, seed, start)


def parsed(part: str) -> tuple[str, Any]:
    """A setting from a text such as "epochs=50"."""
    name, _, value = part.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


@lru_cache(maxsize=12)
def _loaded(dataset: str, data_root: Path | None, split: int) -> Graph:
    return graph_for(RunOptions(dataset=dataset, data_root=data_root).resolved(), split)


def _graph(settings: RunOptions, seed: int) -> Graph:
    return _loaded(settings.dataset, settings.data_root, seed)


def imbalanced(graph: Graph, ratio: int, seed: int) -> Graph:
    """The graph with a `ratio`-th of the training labels in half of the classes, drawn by seed; 1: as it is.

    Measured by balanced accuracy: rare classes count as much as the others.
    """
    if ratio == 1:
        return graph
    generator = torch.Generator().manual_seed(seed)
    rare = torch.randperm(graph.num_classes, generator=generator)[: graph.num_classes // 2]
    train_mask = graph.train_mask.clone()
    for label in rare.tolist():
        members = (train_mask & (graph.labels == label)).nonzero().squeeze(1)
        order = torch.randperm(members.numel(), generator=generator)
        train_mask[members[order[max(1, members.numel() // ratio) :]]] = False
    return replace(graph, train_mask=train_mask, metric="balanced_accuracy")


def _dense(settings: RunOptions, graph: Graph, seed: int) -> Outcome:
    """The whole network on the whole graph, for the epochs recorded for the data set."""
    model, start = model_for(settings, graph, seed), time.perf_counter()
    history = baselines.dense(model, graph, settings.training(), seed=seed)
    seconds = time.perf_counter() - start
    macs, val = 3 * len(history.losses) * macs_for(settings, graph, None), history.val_accuracy[history.best_epoch - 1]
    return Outcome(history.accuracy, history.accuracy, val, 0.0, 0.0, seconds, macs, history.best_epoch)


def _rival(settings: RunOptions, graph: Graph, name: Any, seed: int) -> Outcome:
    model, start = model_for(settings, graph, seed), time.perf_counter()
    found = run_method(name, settings, graph, model, seed)
    seconds = time.perf_counter() - start
    full, val = task_for(graph).evaluate(model)[2], found.history.val_accuracy[found.history.best_epoch - 1]
    macs = 3 * sum(phase.epochs * macs_with(settings, graph, phase.pairs, phase.weights) for phase in found.phases)
    ticket = found.ticket
    given = (found.test_accuracy, full, val, ticket.edge_sparsity, ticket.weight_sparsity, seconds, macs)
    return Outcome(*given, ticket.epoch_drawn, ticket.fired)


def _retrained(settings: RunOptions, graph: Graph, ticket: Ticket, seed: int, start: float) -> Outcome:
    model = model_for(settings, graph, seed)
    trained = retrain.run(ticket, model, graph, settings.retraining(), seed=seed)
    seconds = time.perf_counter() - start
    full, val = task_for(graph).evaluate(model)[2], trained.history.val_accuracy[trained.best_epoch - 1]
    whole, kept = (macs_for(settings, graph, own) for own in (None, ticket))
    macs = 3 * (ticket.epochs_searched * whole + len(trained.history.losses) * kept)
    sparsities = ticket.edge_sparsity, ticket.weight_sparsity
    return Outcome(trained.test_accuracy, full, val, *sparsities, seconds, macs, ticket.epoch_drawn, ticket.fired)


def against(own: Sequence[Outcome], other: Sequence[Outcome]) -> tuple[float, float]:
    """Mean of the paired differences in points, and half the width of its 95 % confidence interval (Student's t)."""
    moved = [100 * (mine.accuracy - theirs.accuracy) for mine, theirs in zip(own, other, strict=True)]
    return statistics.fmean(moved), half_interval(moved)


def row(name: str, ratios: Ratios, own: Sequence[Outcome], dense: Sequence[Outcome], **first: Any) -> dict[str, Any]:
    """One line of a table; accuracies and differences in points, cost as shares of dense training's."""
    accuracies = [100 * outcome.accuracy for outcome in own]
    moved, interval = against(own, dense)
    return {
        **first,
        "method": name,
        "edge_ratio": ratios[0],
        "weight_ratio": ratios[1],
        "test": statistics.fmean(accuracies),
        "std": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "minus_dense": moved,
        "interval": interval,
        "full": 100 * mean_of(own, lambda outcome: outcome.full),
        "edge_sparsity": mean_of(own, lambda outcome: outcome.edge_sparsity),
        "weight_sparsity": mean_of(own, lambda outcome: outcome.weight_sparsity),
        "seconds": statistics.median(outcome.seconds for outcome in own),
        "of_dense": statistics.median(a.seconds / b.seconds for a, b in zip(own, dense, strict=True)),
        "macs_of_dense": statistics.fmean(a.macs / b.macs for a, b in zip(own, dense, strict=True)),
    }


def mean_of(outcomes: Sequence[Outcome], part: Callable[[Outcome], float]) -> float:
    """The mean of one number over outcomes."""
    return statistics.fmean(part(outcome) for outcome in outcomes)


def pairs_of(texts: Sequence[str]) -> list[Ratios]:
    """Pairs of ratios from texts such as "0.2,0.9"."""
    return [(float(edge), float(weight)) for edge, weight in (text.split(",") for text in texts)]
