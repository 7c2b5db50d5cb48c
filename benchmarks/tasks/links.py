"""Tickets of link prediction against the dense network and random ones: Hits@50 and ROC AUC on test links.

python benchmarks/tasks/links.py [--dataset cora] [--model gcn] [--ratios 0.1,0.9 ...] [--changes NAME ...]
    [--seeds 10] [--store FILE] [--quick] [--json OUT]

Every seed holds other links out (85 / 5 / 10 %) and draws other negatives, as many as there are test links. All
variants train by the settings of `gebt run --task links`; a change changes some of a ticket's. `minus_dense` is paired
by seed, with a 95 % confidence interval; `val` is what a choice between changes may be made by.
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Store, finish, half_interval, options

from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, graph_for, model_for
from gebt.graph.links import LinkGraph
from gebt.recipes import baselines, retrain
from gebt.ticket import Ticket
from gebt.train.links import LinkTask

# What a change sets of `gebt run --task links`.
CHANGES: dict[str, dict[str, Any]] = {
    "early-bird": {},
    "a threshold of 0.003": {"threshold": 0.003},
    "edges by magnitude": {"edge_score": "magnitude"},
    "edges by similarity": {"edge_score": "similarity"},
    "drawn by validation": {"draw_at": "validation", "max_epochs": 200},
    "by validation, similarity": {"draw_at": "validation", "max_epochs": 200, "edge_score": "similarity"},
    "retrained at the dense rate": {"retrain_learning_rate": 0.02},
    "retrained at twice the rate": {"retrain_learning_rate": 0.08},
    "retrained for 400 epochs": {"retrain_epochs": 400},
    "half of the features dropped": {"input_dropout": 0.5},
    "each layer alone": {"scope": "layer"},
    "weights rewound": {"start": "rewind"},
}
VARIANTS = ("ticket", "random_edges_control", "random")
FEW = {"hidden": 32, "epochs": 4, "retrain_epochs": 4, "max_epochs": 4}


@lru_cache(1)
def graph_of(chosen: RunOptions, seed: int) -> LinkGraph:
    """The graph of a seed."""
    graph = graph_for(chosen, seed)
    assert isinstance(graph, LinkGraph)
    return graph


@lru_cache(1)
def searched(chosen: RunOptions, seed: int) -> Ticket:
    """The ticket of a seed."""
    graph = graph_of(chosen, seed)
    return find_ticket(chosen, graph, model_for(chosen, graph, seed), seed)


def outcome(chosen: RunOptions, variant: str, seed: int) -> dict[str, float]:
    """Metric on test and validation links, and ROC AUC on the test links, of one variant of one seed."""
    graph = graph_of(chosen, seed)
    model = model_for(chosen, graph, seed)
    drawn, edges = 0, None
    if variant == "dense":
        history = baselines.dense(model, graph, chosen.training(), seed=seed)
    else:
        if variant == "random":
            ratios = {"edge_ratio": chosen.edge_ratio, "weight_ratio": chosen.weight_ratio}
            ticket = baselines.random_ticket(model, graph, **ratios, seed=seed)
        else:
            ticket = searched(chosen, seed)
            drawn = ticket.epochs_searched
            ticket = baselines.random_edges(ticket, graph, seed=seed) if variant == "random_edges_control" else ticket
        trained = retrain.run(ticket, model, graph, chosen.retraining(), seed=seed)
        history, edges = trained.history, trained.edges
    auc = float(LinkTask(graph, edges).metrics(model, "roc_auc")[2])
    found = {"test": history.accuracy, "val": history.val_accuracy[history.best_epoch - 1], "auc": auc}
    return found | {"epochs": float(len(history.losses)), "searched": float(drawn)}


def main() -> None:
    """One row a pair of ratios, change and variant, after the dense network's."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="cora")
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--ratios", nargs="+", default=["0.1,0.8"])
    parser.add_argument("--changes", nargs="+", default=["early-bird"], choices=list(CHANGES))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument(
        "--options", type=json.loads, default={}, help="JSON of options of `gebt run`, for all variants"
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds = range(2 if arguments.quick else arguments.seeds)
    common = {"dataset": arguments.dataset, "model": arguments.model, "task": "links"}
    common |= {"data_root": arguments.data_root} | arguments.options | (FEW if arguments.quick else {})
    store = Store(arguments.store)

    def found(variant: str, given: dict[str, Any]) -> list[dict[str, float]]:
        chosen = RunOptions(**common | given).resolved()
        key = f"{chosen.to_json()} {variant}"
        return [store.get(f"{key} {seed}", lambda seed=seed: outcome(chosen, variant, seed)) for seed in seeds]

    dense = found("dense", {})
    rows = [row("dense", "", "", dense, dense)]
    for ratios in arguments.ratios:
        edge_ratio, weight_ratio = map(float, ratios.split(","))
        for change in arguments.changes:
            given = {"edge_ratio": edge_ratio, "weight_ratio": weight_ratio} | CHANGES[change]
            rows += [row(variant, ratios, change, found(variant, given), dense) for variant in arguments.variants]
    title = f"Link prediction on {arguments.dataset}, {arguments.model}, {len(seeds)} seeds"
    finish(title, rows, {}, arguments.json)


def row(variant: str, ratios: str, change: str, own: list[dict[str, float]], dense: list[dict[str, float]]) -> dict:
    """Means in %, and paired differences from dense in points."""
    minus = [100 * (a["test"] - b["test"]) for a, b in zip(own, dense, strict=True)]
    auc = [100 * (a["auc"] - b["auc"]) for a, b in zip(own, dense, strict=True)]
    mean = {name: statistics.fmean(one[name] for one in own) for name in own[0]}
    return {
        "ratios": ratios,
        "change": change,
        "variant": variant,
        "test": 100 * mean["test"],
        "minus_dense": f"{statistics.fmean(minus):+.2f} ± {half_interval(minus):.2f}",
        "auc": 100 * mean["auc"],
        "auc_minus_dense": f"{statistics.fmean(auc):+.2f} ± {half_interval(auc):.2f}",
        "val": 100 * mean["val"],
        "epochs": mean["epochs"],
        "searched": mean["searched"],
    }


if __name__ == "__main__":
    main()
