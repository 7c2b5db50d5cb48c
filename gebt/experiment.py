"""One run: dense, random, joint search and retraining for every seed, measured the same way."""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gebt.config import RunOptions
from gebt.cost import flops_executed, macs_paper, measure_seconds, peak_memory, state_bytes
from gebt.data.graphs import load_graph
from gebt.data.manifest import dataset_info
from gebt.graph.canonical import Graph
from gebt.graph.edges import Edges
from gebt.models.gnn import GCN
from gebt.prune.detector import pairwise_distances
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.recipes import baselines, retrain, search
from gebt.record import RunFolder, machine
from gebt.sparse import backends
from gebt.ticket import Ticket
from gebt.train.loop import History, NodeTask, TrainingSettings, seeded

ARMS = ("dense", "random", "random_edges", "ticket")
# More entries than this are sampled for the heat maps of mask distances, which only picture the search.
PICTURED_ENTRIES = 1 << 20

Progress = Callable[[str, int], object]


def graph_for(options: RunOptions, seed: int) -> Graph:
    """The graph of one seed: a drawn split follows the seed of the run unless one is fixed."""
    drawn = dataset_info(options.dataset).split == "seeded"
    split_seed = options.split_seed if options.split_seed is not None else seed if drawn else 0
    graph = load_graph(options.dataset, options.data_root, split_seed=split_seed, symmetrise=options.symmetrise)
    return graph if options.device == "cpu" else graph.to(options.device)


def model_for(options: RunOptions, graph: Graph, seed: int) -> GCN:
    """The network of one seed."""
    sizes = (graph.num_features, options.hidden, graph.num_classes, options.depth, options.dropout)
    return GCN(*sizes, seed=seed, input_dropout=options.input_dropout).to(options.device)  # type: ignore[arg-type]


def epochs_of(options: RunOptions) -> int:
    """The most epochs that a run trains, all arms and seeds together (for a progress bar)."""
    search_epochs = options.max_epochs + (options.epochs if options.algorithm == "graph" else 0)  # type: ignore[operator]
    return options.seeds * (options.epochs + search_epochs + 3 * options.retrain_epochs)  # type: ignore[operator]


def find_ticket(
    options: RunOptions,
    graph: Graph,
    model: nn.Module,
    seed: int,
    on_draw: search.DrawObserver | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """The ticket of one seed by the chosen algorithm; a graph-only search pretrains the network first."""
    common: dict[str, Any] = {"settings": options.search(), "seed": seed, "on_draw": on_draw, "on_epoch": on_epoch}
    weights: dict[str, Any] = {"weight_ratio": options.weight_ratio, "feature_ratio": options.feature_ratio}
    if options.algorithm == "joint":
        return search.joint(model, graph, edge_ratio=options.edge_ratio, **weights, **common)
    if options.algorithm == "weights":
        return search.weights_only(model, graph, **weights, **common)
    baselines.dense(model, graph, options.training(), seed=seed, on_epoch=on_epoch)
    return search.graph_only(model, graph, edge_ratio=options.edge_ratio, **common)


def run(options: RunOptions, folder: RunFolder, progress: Progress = lambda arm, seed: None) -> dict[str, Any]:
    """Runs every arm for every seed of resolved `options` and returns the record.

    The record and each ticket are on disk as soon as their seed is done; an interrupted run keeps them, with
    "complete" false. `progress(arm, seed)` is called once a trained epoch.
    """
    folder.write_config(options.to_json())
    per_seed: list[dict[str, Any]] = []
    record: dict[str, Any] = {}
    for seed in range(options.seeds):
        graph = graph_for(options, seed)
        if seed == 0:
            _warm_up(options, graph)
        comparison = _Comparison(options, graph, seed, progress)
        row = comparison.run()
        comparison.ticket.save(folder.ticket(seed, options.seeds))
        row["ticket"]["file"] = str(folder.ticket(seed, options.seeds).relative_to(folder.path))
        row["ticket"]["file_bytes"] = folder.ticket(seed, options.seeds).stat().st_size
        for arm in ("random", "random_edges"):
            row[arm]["file_bytes"] = row["ticket"]["file_bytes"]
        per_seed.append(row)
        record = {
            **opening(options, graph, complete=seed + 1 == options.seeds),
            "summary": summarise(per_seed),
            "per_seed": per_seed,
            "pairwise": record.get("pairwise") or comparison.draws.pairwise(),
        }
        folder.write(record)
    return record


def summarise(per_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: accuracies as mean, unbiased std and values; seconds as medians; the peak as the highest."""
    summary: dict[str, Any] = {}
    for arm in ARMS:
        rows = [row[arm] for row in per_seed]
        values = [row["accuracy"] for row in rows]
        summary[arm] = {
            "accuracy": {"mean": statistics.fmean(values), "std": _std(values), "values": values},
            "val_accuracy": statistics.fmean(row["val_accuracy"] for row in rows),
            "seconds": _over(rows, "seconds", statistics.median),
            "seconds_std": _over(rows, "seconds", _std),
            "edge_sparsity": statistics.fmean(row["edge_sparsity"] for row in rows),
            "weight_sparsity": statistics.fmean(row["weight_sparsity"] for row in rows),
            "macs_paper": _over(rows, "macs_paper", statistics.fmean),
            "flops_executed": _over(rows, "flops_executed", statistics.fmean),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
            "file_bytes": round(statistics.fmean(row["file_bytes"] for row in rows)),
        }
    tickets = [row["ticket"] for row in per_seed]
    summary["ticket"]["epoch_drawn"] = [row["epoch_drawn"] for row in tickets]
    summary["ticket"]["fired"] = [row["fired"] for row in tickets]
    return summary


def _std(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _over(rows: list[dict[str, Any]], key: str, reduce: Callable[[list[float]], Any]) -> dict[str, Any]:
    return {part: reduce([row[key][part] for row in rows]) for part in rows[0][key]}


class DrawLog:
    """The masks of every draw of one search, for the heat maps of their pairwise distances."""

    def __init__(self) -> None:
        self._drawn: dict[str, list[torch.Tensor]] = {"weights": [], "edges": []}
        self._sample: dict[str, torch.Tensor | None] = {}

    def __call__(self, epoch: int, weights: Mask, edges: Mask) -> None:
        """Takes the masks drawn in `epoch`."""
        for kind, mask in (("weights", weights), ("edges", edges)):
            flat = mask.flat()
            if kind not in self._sample:
                many = flat.numel() > PICTURED_ENTRIES
                shuffled = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(0)) if many else None
                self._sample[kind] = shuffled[:PICTURED_ENTRIES] if shuffled is not None else None
            sample = self._sample[kind]
            self._drawn[kind].append(flat if sample is None else flat[sample])

    def pairwise(self) -> dict[str, list[list[float]]]:
        """For weights and edges: the share of entries that differ between the draws of every two epochs."""
        return {
            kind: [[round(float(d), 6) for d in row] for row in pairwise_distances(torch.stack(masks))]
            for kind, masks in self._drawn.items()
        }


@dataclass
class _Trained:
    model: nn.Module
    task: NodeTask
    history: History
    seconds: float
    peak_bytes: int


class _Comparison:
    """All arms of one seed on one graph."""

    def __init__(self, options: RunOptions, graph: Graph, seed: int, progress: Progress) -> None:
        self.options, self.graph, self.seed, self.progress = options, graph, seed, progress
        self.draws = DrawLog()
        self.ticket: Ticket

    def run(self) -> dict[str, Any]:
        """Trains and measures every arm; `ticket` and `draws` are set afterwards."""
        dense = self._train("dense", lambda model, tick: self._dense(model, tick))
        search_model, start = self._model(), time.perf_counter()
        self.ticket = find_ticket(
            self.options, self.graph, search_model, self.seed, self.draws, lambda *_: self._tick("search")
        )
        search_seconds = time.perf_counter() - start
        rows: dict[str, Any] = {"seed": self.seed, "fingerprint": self.graph.fingerprint}
        rows["dense"] = self._row(dense, None, 0.0, 0.0)
        ratios: dict[str, Any] = {
            name: self.ticket.provenance.get(name) for name in ("edge_ratio", "weight_ratio", "feature_ratio")
        }
        structure = self.ticket.provenance["settings"]["weight_structure"]
        arms = {
            "random": (
                baselines.random_ticket(
                    self._model(), self.graph, seed=self.seed, weight_structure=structure, **ratios
                ),
                0.0,
            ),
            "random_edges": (baselines.random_edges(self.ticket, self.graph, seed=self.seed), search_seconds),
            "ticket": (self.ticket, search_seconds),
        }
        searched = self._search_flops(search_model)
        for arm, (ticket, seconds) in arms.items():
            trained = self._train(arm, lambda model, tick, ticket=ticket: self._retrain(ticket, model, tick))
            rows[arm] = self._row(trained, ticket, seconds, searched if seconds else 0.0)
        rows["ticket"]["epoch_drawn"] = self.ticket.epoch_drawn
        rows["ticket"]["fired"] = self.ticket.fired
        rows["ticket"]["trajectory"] = self.ticket.provenance["trajectory"]
        return rows

    def _model(self) -> GCN:
        return model_for(self.options, self.graph, self.seed)

    def _tick(self, arm: str) -> bool:
        self.progress(arm, self.seed)
        return False

    def _dense(self, model: nn.Module, tick: Callable[..., bool]) -> tuple[History, Edges | None]:
        return baselines.dense(model, self.graph, self.options.training(), seed=self.seed, on_epoch=tick), None

    def _retrain(self, ticket: Ticket, model: nn.Module, tick: Callable[..., bool]) -> tuple[History, Edges | None]:
        settings = self.options.retraining()
        trained = retrain.run(ticket, model, self.graph, settings, seed=self.seed, on_epoch=tick)
        return trained.history, trained.edges

    def _train(self, arm: str, work: Callable[..., tuple[History, Edges | None]]) -> _Trained:
        model = self._model()
        with peak_memory() as peak:
            start = time.perf_counter()
            history, edges = work(model, lambda *_: self._tick(arm))
            seconds = time.perf_counter() - start
        return _Trained(model, NodeTask(self.graph, edges), history, seconds, peak.bytes)

    def _row(
        self, trained: _Trained, ticket: Ticket | None, search_seconds: float, search_flops: float
    ) -> dict[str, Any]:
        history = trained.history
        whole, kept = self._macs(None), self._macs(ticket)
        epochs = len(history.losses)
        searched = self._search_epochs() if search_seconds else 0
        model = trained.model.eval()
        with torch.no_grad():
            inference = measure_seconds(lambda: trained.task.logits(model), repeats=20, warmup=3)
            inference_flops = flops_executed(lambda: trained.task.logits(model))
        return {
            "accuracy": history.accuracy,
            "val_accuracy": history.val_accuracy[history.best_epoch - 1],
            "best_epoch": history.best_epoch,
            "seconds": {"search": search_seconds, "retrain": trained.seconds, "inference": inference.median},
            "edge_sparsity": ticket.edge_sparsity if ticket else 0.0,
            "weight_sparsity": ticket.weight_sparsity if ticket else 0.0,
            "macs_paper": {"inference": kept, "training": 3 * (epochs * kept + searched * whole)},
            "flops_executed": {
                "inference": inference_flops,
                "training": epochs * _step_flops(trained.model, trained.task, None) + search_flops,
            },
            "peak_bytes": trained.peak_bytes,
            "file_bytes": state_bytes(trained.model),
        }

    def _macs(self, ticket: Ticket | None) -> float:
        weights = prunable_weights(self._model())
        return macs_paper(
            nodes=self.graph.num_nodes,
            pairs=ticket.edge_mask.kept if ticket else self.graph.num_pairs,
            features=self.graph.num_features,
            weights=ticket.weight_mask.kept if ticket else sum(w.numel() for w in weights.values()),
            depth=self.options.depth,  # type: ignore[arg-type]
        )

    def _search_epochs(self) -> int:
        pretrained = self.options.epochs if self.options.algorithm == "graph" else 0
        return self.ticket.epoch_drawn + pretrained  # type: ignore[operator]

    def _search_flops(self, model: nn.Module) -> float:
        task, algorithm = NodeTask(self.graph), self.options.algorithm
        gates = torch.ones(self.graph.num_pairs, requires_grad=True) if algorithm != "weights" else None
        drawn = self.ticket.epoch_drawn * _step_flops(model, task, gates, train_weights=algorithm != "graph")
        if algorithm != "graph":
            return drawn
        return drawn + self.options.epochs * _step_flops(model, task, None)  # type: ignore[operator]


def _step_flops(model: nn.Module, task: NodeTask, gates: torch.Tensor | None, train_weights: bool = True) -> int:
    # On a copy and under a seed of its own: counting must not move the gradients or random state of a run.
    counted = copy.deepcopy(model).train().requires_grad_(train_weights)
    with seeded(0):
        return flops_executed(lambda: task.loss(task.logits(counted, gates)).backward())


def _warm_up(options: RunOptions, graph: Graph) -> None:
    # The first products of a process pay for allocations and thread start; no arm should.
    model = model_for(options, graph, 0)
    ticket = baselines.random_ticket(model, graph, edge_ratio=options.edge_ratio, weight_ratio=options.weight_ratio)
    retrain.run(ticket, model, graph, retrain.RetrainSettings(TrainingSettings(epochs=3)))


def opening(options: RunOptions, graph: Graph, *, complete: bool) -> dict[str, Any]:
    """What every record begins with: the data, the resolved options, the machine."""
    return {
        "complete": complete,
        "dataset": options.dataset,
        "graph": _described(graph),
        "config": json.loads(options.to_json()),
        "machine": machine(),
        "products": backends.choices(),
    }


def _described(graph: Graph) -> dict[str, Any]:
    return {
        "nodes": graph.num_nodes,
        "pairs": graph.num_pairs,
        "features": graph.num_features,
        "classes": graph.num_classes,
        "train": int(graph.train_mask.sum()),
        "val": int(graph.val_mask.sum()),
        "test": int(graph.test_mask.sum()),
        "notes": list(graph.notes),
    }
