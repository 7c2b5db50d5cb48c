"""One run: dense and random networks, search and retraining, for every seed, all measured in the same way."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from gebt.experiments.methods import run_method
from gebt.experiments.options import OtherMethod, RunOptions
from gebt.experiments.record import RunFolder
from gebt.experiments.setup import (
    DrawLog,
    find_tickets,
    graphs_for,
    groups,
    macs_for,
    macs_with,
    model_for,
    opening,
    parameters_of,
)
from gebt.experiments.summary import summarize
from gebt.graph.edges import Edges
from gebt.graph.graph import Graph
from gebt.measure.cost import flops_executed, measure_seconds, peak_memory, state_bytes
from gebt.models.compact import CompactedModel, compact_model
from gebt.models.gnn import GCN
from gebt.models.links import LinkPredictor
from gebt.models.registry import Network
from gebt.recipes import baselines, retrain
from gebt.sparse.precision import using
from gebt.ticket import Ticket
from gebt.train.edge_scorer import TrainedEdgeScorer
from gebt.train.loop import Gates, History, NodeTask, TrainingSettings, gates_of, seeded
from gebt.train.result import Phase
from gebt.train.tasks import task_for

Progress = Callable[[str, int], object]
Model = Network | LinkPredictor
# What `fit_stacked` calls: the place in the group, the epoch, the history; True would end the training.
Tick = Callable[[int, int, History], bool]


def run(options: RunOptions, folder: RunFolder, progress: Progress = lambda variant, seed: None) -> dict[str, Any]:
    """Runs every variant for every seed.

    Seeds are trained in groups (`experiments.setup.groups`). Record and tickets of a group are written as soon as it is
    done; an interrupted run keeps them, with "complete" false.

    Args:
        options: resolved.
        folder: of the run.
        progress: called with variant and seed after every epoch.

    Returns:
        The record.
    """
    folder.write_config(options.to_json())
    per_seed: list[dict[str, Any]] = []
    record: dict[str, Any] = {}
    for seeds in groups(options):
        graphs = graphs_for(options, seeds)
        if not per_seed:
            options.search().check(graphs[0])  # before the dense network is trained
            _warm_up(options, graphs[0])
        comparison = Comparison(options, graphs, seeds, progress)
        with using(options.precision, options.device):
            rows = comparison.rows()
        for row, ticket in zip(rows, comparison.tickets, strict=True):
            per_seed.append(_saved(row, ticket, folder, options.seeds))
        record = {
            **opening(options, graphs[0], complete=len(per_seed) == options.seeds),
            "summary": summarize(per_seed),
            "per_seed": per_seed,
            "pairwise": record.get("pairwise") or comparison.draws.pairwise(),
        }
        folder.write(record)
    return record


def _saved(row: dict[str, Any], ticket: Ticket, folder: RunFolder, seeds: int) -> dict[str, Any]:
    path = ticket.save(folder.ticket(row["seed"], seeds))
    row["ticket"]["file"] = str(path.relative_to(folder.path))
    for variant in ("random", "random_edges_control", "ticket"):
        row[variant]["file_bytes"] = path.stat().st_size
    return row


class _Trained(NamedTuple):
    """What a training gives: `compacted` is the smaller network that was trained in place of the full one."""

    history: History
    edges: Edges | None = None
    compacted: CompactedModel | None = None


@dataclass
class _Variant:
    """One network after its training, and what that took."""

    model: nn.Module
    graph: Graph
    trained: _Trained
    seconds: float
    peak_bytes: int

    def task(self) -> tuple[nn.Module, NodeTask]:
        """The network that was trained, on the graph that it read."""
        small = self.trained.compacted
        model, graph = (self.model, self.graph) if small is None else (small.model, small.graph)
        return model, task_for(graph, self.trained.edges)

    def served(self, ticket: Ticket) -> tuple[nn.Module, NodeTask]:
        """The compacted network that infers, where each layer multiplies as is fastest there."""
        if not isinstance(self.model, Network | LinkPredictor):
            return self.task()
        small = compact_model(self.model, ticket.weight_mask, self.graph, training=False)
        return small.model, task_for(small.graph, self.trained.edges)


class Comparison:
    """All variants of a group of seeds, each on its graph; seconds are a seed's share of the group's.

    Args:
        options: resolved.
        graphs: one for each seed.
        seeds: those of the group.
        progress: called with variant and seed after every epoch.

    Attributes:
        draws: the masks that the search of the first seed drew.
        tickets: one for each seed.
        search_seconds: share of a seed.
    """

    def __init__(self, options: RunOptions, graphs: Sequence[Graph], seeds: Sequence[int], progress: Progress) -> None:
        self.options, self.graphs, self.seeds, self.progress = options, graphs, seeds, progress
        self.draws = DrawLog()
        self.tickets: list[Ticket] = []
        self.search_seconds = 0.0

    def rows(self) -> list[dict[str, Any]]:
        """Trains and measures every variant, and sets `tickets` and `draws`.

        Returns:
            A row for each seed.
        """
        dense = self._train("dense", self._dense)
        models, start = self._models(), time.perf_counter()
        self.tickets = find_tickets(self.options, self.graphs, models, self.seeds, self.draws, self._tick("search"))
        self.search_seconds = (time.perf_counter() - start) / len(self.seeds)
        variants = {"random": self._random(), "random_edges_control": self._random_edges(), "ticket": self.tickets}
        trained = {
            variant: self._train(variant, partial(self._retrain, tickets)) for variant, tickets in variants.items()
        }
        rows = []
        for number, (seed, graph, ticket) in enumerate(zip(self.seeds, self.graphs, self.tickets, strict=True)):
            row: dict[str, Any] = {"seed": seed, "fingerprint": graph.fingerprint}
            row["stacked"] = len(self.seeds)
            row["dense"] = self._row(dense[number], None, None, 0.0)
            searched = self._search_flops(models[number], graph, ticket)
            for variant, tickets in variants.items():
                source = None if variant == "random" else ticket
                row[variant] = self._row(trained[variant][number], tickets[number], source, searched)
            row["ticket"]["epoch_drawn"], row["ticket"]["fired"] = ticket.epoch_drawn, ticket.fired
            row["ticket"]["trajectory"] = ticket.provenance["trajectory"]
            row |= {name: self._method_row(name, graph, seed) for name in self.options.other_methods}
            rows.append(row)
        return rows

    def _models(self) -> list[Model]:
        return [model_for(self.options, graph, seed) for graph, seed in zip(self.graphs, self.seeds, strict=True)]

    def _tick(self, variant: str) -> Tick:
        def tick(number: int, epoch: int, history: History) -> bool:
            self.progress(variant, self.seeds[number])
            return False

        return tick

    def _random(self) -> list[Ticket]:
        """As many edges and weights as each ticket keeps, at random."""
        origins = [ticket.provenance for ticket in self.tickets]
        ratios = [
            {name: origin.get(name) for name in ("edge_ratio", "weight_ratio", "feature_ratio")} for origin in origins
        ]
        structure = self.options.search().weight_structure
        inputs = zip(self._models(), self.graphs, self.seeds, ratios, strict=True)
        return [
            baselines.random_ticket(model, graph, seed=seed, weight_structure=structure, **of_seed)  # type: ignore[arg-type]
            for model, graph, seed, of_seed in inputs
        ]

    def _random_edges(self) -> list[Ticket]:
        inputs = zip(self.tickets, self.graphs, self.seeds, strict=True)
        return [baselines.random_edges(ticket, graph, seed=seed) for ticket, graph, seed in inputs]

    def _dense(self, models: list[Model], tick: Tick) -> list[_Trained]:
        settings = self.options.training()
        if len(models) > 1:
            histories = baselines.dense_stacked(
                cast(list[GCN], models), self.graphs, settings, seeds=self.seeds, on_epoch=tick
            )
            return [_Trained(history) for history in histories]
        alone = partial(tick, 0)
        return [_Trained(baselines.dense(models[0], self.graphs[0], settings, seed=self.seeds[0], on_epoch=alone))]

    def _retrain(self, tickets: list[Ticket], models: list[Model], tick: Tick) -> list[_Trained]:
        settings = self.options.retraining()
        if len(models) > 1:
            results = retrain.run_stacked(
                tickets, cast(list[GCN], models), self.graphs, settings, seeds=self.seeds, on_epoch=tick
            )
        else:
            inputs = (tickets[0], models[0], self.graphs[0], settings)
            results = [retrain.run(*inputs, seed=self.seeds[0], on_epoch=partial(tick, 0))]
        return [_Trained(result.history, result.edges, result.compacted) for result in results]

    def _train(self, variant: str, work: Callable[..., list[_Trained]]) -> list[_Variant]:
        models = self._models()
        with peak_memory(self.options.device) as peak:
            start = time.perf_counter()
            results = work(models, self._tick(variant))
            seconds = (time.perf_counter() - start) / len(models)
        return [
            _Variant(model, graph, result, seconds, peak.bytes)
            for model, graph, result in zip(models, self.graphs, results, strict=True)
        ]

    def _row(
        self, trained: _Variant, ticket: Ticket | None, source: Ticket | None, search_flops: float
    ) -> dict[str, Any]:
        """The measures of one variant of one seed; `source`: the ticket whose search its mask comes from.

        Seconds and flops are those of the network that was trained, and of the one that serves: compacted where it was.
        """
        history = trained.trained.history
        model, task = trained.task()
        served, serving = trained.served(ticket) if ticket and self.options.compaction else (model, task)
        served.eval()
        dense, pruned = (macs_for(self.options, trained.graph, masked) for masked in (None, ticket))
        epochs = len(history.losses)
        searched = self._search_epochs(source) if source else 0
        with torch.no_grad():
            inference = measure_seconds(lambda: serving.logits(served), repeats=20, warmup=3)
            inference_flops = flops_executed(lambda: serving.logits(served))
        search_seconds = self.search_seconds if source else 0.0
        return {
            "accuracy": history.accuracy,
            "val_accuracy": history.val_accuracy[history.best_epoch - 1],
            "best_epoch": history.best_epoch,
            "seconds": {"search": search_seconds, "retrain": trained.seconds, "inference": inference.median},
            "parameters": parameters_of(self.options, trained.graph, trained.model, ticket),
            "edge_sparsity": ticket.edge_sparsity if ticket else 0.0,
            "weight_sparsity": ticket.weight_sparsity if ticket else 0.0,
            "macs_paper": {"inference": pruned, "training": 3 * (epochs * pruned + searched * dense)},
            "flops_executed": {
                "inference": inference_flops,
                "training": epochs * _step_flops(model, task, None) + (search_flops if source else 0.0),
            },
            "peak_bytes": trained.peak_bytes,
            "file_bytes": state_bytes(trained.model),
        }

    def _method_row(self, name: OtherMethod, graph: Graph, seed: int) -> dict[str, Any]:
        """The measures of another method's ticket; "retrain" is its last training, "search" all before."""
        model, timer = model_for(self.options, graph, seed), _Timer(lambda: self.progress(name, seed))
        with peak_memory(self.options.device) as peak:
            result = run_method(name, self.options, graph, model, seed, timer)
            search_seconds, seconds = timer.split()
        trained = _Variant(model, graph, _Trained(result.history, result.edges), seconds, peak.bytes)
        row = self._row(trained, result.ticket, None, 0.0)
        row["seconds"]["search"] = search_seconds
        phases = result.phases
        row["macs_paper"]["training"] = 3 * sum(
            phase.epochs * macs_with(self.options, graph, phase.pairs, phase.weights) for phase in phases
        )
        row["flops_executed"]["training"] = sum(
            phase.epochs * self._phase_flops(model, graph, phase) for phase in phases
        )
        return row

    @staticmethod
    def _phase_flops(model: nn.Module, graph: Graph, phase: Phase) -> int:
        # What a product runs depends on how many pairs there are, not on which.
        edges = Edges.from_pairs(graph.pairs[:, : phase.pairs], graph.num_nodes)
        gates = torch.ones(phase.pairs, device=graph.pairs.device, requires_grad=True) if phase.gated else None
        return _step_flops(model, task_for(graph, edges), gates)

    def _search_epochs(self, ticket: Ticket) -> int:
        pretrained = self.options.epochs if self.options.algorithm == "graph" else 0
        return ticket.epochs_searched + pretrained  # type: ignore[operator]

    def _search_flops(self, model: nn.Module, graph: Graph, ticket: Ticket) -> float:
        task, algorithm = task_for(graph), self.options.algorithm
        ones = torch.ones(graph.num_pairs, device=graph.pairs.device, requires_grad=True)
        gates: Gates = ones if algorithm != "weights" and self.options.search().trains_edges else None
        if algorithm == "joint" and self.options.edge_score == "learned":
            gates = TrainedEdgeScorer(task, self.options.edge_ratio, 0).gates
        drawn = ticket.epochs_searched * _step_flops(model, task, gates, train_weights=algorithm != "graph")
        if algorithm != "graph":
            return drawn
        return drawn + self.options.epochs * _step_flops(model, task, None)  # type: ignore[operator]


class _Timer:
    """Called after every epoch; it knows when the last training began."""

    def __init__(self, tick: Callable[[], object]) -> None:
        self.tick, self.start = tick, time.perf_counter()
        self.last = self.start

    def __call__(self, epoch: int, history: History) -> bool:
        self.tick()
        if epoch == 1:
            self.last = time.perf_counter()
        return False

    def split(self) -> tuple[float, float]:
        """Seconds before the first epoch of the last training ended, and seconds since."""
        return self.last - self.start, time.perf_counter() - self.last


def _step_flops(model: nn.Module, task: NodeTask, gates: Gates, train_weights: bool = True) -> int:
    # On a copy and under a fixed seed: counting must not move the gradients or random state of a run.
    counted = copy.deepcopy(model).train().requires_grad_(train_weights)

    def step() -> None:
        task.loss(task.logits(counted, gates_of(gates, task))).backward()

    with seeded(0):
        step()  # products that "auto" times on their first call are no part of it
        return flops_executed(step)


def _warm_up(options: RunOptions, graph: Graph) -> None:
    # The first products of a process pay for allocations and thread start; no variant should.
    model = model_for(options, graph, 0)
    ticket = baselines.random_ticket(model, graph, edge_ratio=options.edge_ratio, weight_ratio=options.weight_ratio)
    with using(options.precision, options.device):
        retrain.run(ticket, model, graph, retrain.RetrainSettings(TrainingSettings(epochs=3)))
