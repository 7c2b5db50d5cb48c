"""Graph classification on the given folds: dense, random, inductive tickets, their weights with random edges.

python benchmarks/tasks/graph_sets.py [--datasets mutag proteins nci1] [--ratios 0.2,0.5] [--folds 10] [--preset NAME]
    [--store FILE] [--quick] [--json OUT]

Fold k with seed k. `test`: accuracy at the best validation epoch, percent, mean and unbiased deviation over the folds;
`minus_dense`: the mean of the paired differences, with half its 95 % interval. `val`: the same epoch's on the
validation graphs, which alone settle anything. Edges of held-out graphs are pruned by the ticket's rule.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Store, finish, half_interval, options, spread

from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, graph_for, model_for
from gebt.recipes import baselines, retrain
from gebt.ticket import Ticket
from gebt.train.loop import History

VARIANTS = ("dense", "random", "random_edges_control", "ticket")


def main() -> None:
    """One row a data set, pair of ratios and variant."""
    parser = options(__doc__ or "")
    parser.add_argument("--datasets", nargs="+", default=["mutag", "proteins", "nci1"])
    parser.add_argument("--ratios", nargs="+", default=["0.2,0.5"], help="edge,weight ratios")
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--preset", default="early-bird")
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    store, rows = Store(arguments.store), list[dict[str, Any]]()
    for dataset in arguments.datasets[: 1 if arguments.quick else None]:
        for ratios in arguments.ratios:
            edge_ratio, weight_ratio = map(float, ratios.split(","))
            asked = {"dataset": dataset, "edge_ratio": edge_ratio, "weight_ratio": weight_ratio}
            few = {"epochs": 2, "max_epochs": 2, "retrain_epochs": 2, "hidden": 4} if arguments.quick else {}
            root, preset = arguments.data_root, arguments.preset
            chosen = RunOptions(**asked, **few, preset=preset, data_root=root).resolved()
            folds = [fold(chosen, number, store) for number in range(2 if arguments.quick else arguments.folds)]
            rows += [row(dataset, ratios, variant, folds) for variant in VARIANTS]
            for shown in rows[-len(VARIANTS) :]:
                print(shown, flush=True)
    finish(f"Sets of graphs, preset {arguments.preset}, {len(folds)} fold(s)", rows, {}, arguments.json)


def fold(options: RunOptions, number: int, store: Store) -> dict[str, dict[str, Any]]:
    """What each variant measured on one fold."""
    name = options.to_json()
    tickets: dict[str, Ticket] = {}

    def ticket() -> Ticket:
        if not tickets:
            graph = graph_for(options, number)
            tickets["found"] = find_ticket(options, graph, model_for(options, graph, number), number)
        return tickets["found"]

    def find(variant: str) -> dict[str, Any]:
        return store.get(f"{number} {variant} {name}", lambda: outcome(options, number, variant, ticket))

    return {variant: find(variant) for variant in VARIANTS}


def outcome(options: RunOptions, number: int, variant: str, ticket: Any) -> dict[str, Any]:
    """Accuracies of one variant on one fold, and what it took."""
    graph, start = graph_for(options, number), time.perf_counter()
    model, settings = model_for(options, graph, number), options.retraining()
    if variant == "dense":
        history = baselines.dense(model, graph, options.training(), seed=number)
        return {**measured(history, start), "edges": 0.0, "weights": 0.0}
    if variant == "random":
        ratios = {"edge_ratio": options.edge_ratio, "weight_ratio": options.weight_ratio}
        own = baselines.random_ticket(model, graph, seed=number, **ratios)
    else:
        own = ticket() if variant == "ticket" else baselines.random_edges(ticket(), graph, seed=number)
    history = retrain.run(own, model, graph, settings, seed=number).history
    drawn = {"epoch_drawn": own.epoch_drawn, "fired": own.fired}
    return {**measured(history, start), "edges": own.edge_sparsity, "weights": own.weight_sparsity, **drawn}


def measured(history: History, start: float) -> dict[str, Any]:
    """Test and validation accuracy at the best epoch, in percent, and seconds since `start`."""
    val = history.val_accuracy[history.best_epoch - 1]
    return {"test": 100 * history.accuracy, "val": 100 * val, "seconds": time.perf_counter() - start}


def row(dataset: str, ratios: str, variant: str, folds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The folds of one variant, and their paired differences to dense."""
    test = [own[variant]["test"] for own in folds]
    less = [own[variant]["test"] - own["dense"]["test"] for own in folds]
    return {
        "dataset": dataset,
        "ratios": ratios,
        "variant": variant,
        "folds": len(folds),
        "test": statistics.fmean(test),
        "std": spread(test),
        "minus_dense": statistics.fmean(less),
        "half": half_interval(less),
        "val": statistics.fmean(own[variant]["val"] for own in folds),
        "edges_gone": 100 * statistics.fmean(own[variant]["edges"] for own in folds),
        "weights_gone": 100 * statistics.fmean(own[variant]["weights"] for own in folds),
        "seconds": statistics.median(own[variant]["seconds"] for own in folds),
    }


if __name__ == "__main__":
    main()
