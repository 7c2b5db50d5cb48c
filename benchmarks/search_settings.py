"""Which search settings find the better tickets? One row a setting and ratio pair; the presets were chosen by `val`.

python benchmarks/search_settings.py [--dataset cora] [--seeds 10] [--quick] [--json OUT]
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch
from common import finish, options

from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, graph_for, model_for
from gebt.recipes import baselines, retrain

# Every row changes the row above it in what its name says.
SETTINGS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "... retrained at 4x": {"preset": "paper", "retrain_learning_rate": 0.04},
    "... no L1": {"preset": "paper", "retrain_learning_rate": 0.04, "edge_l1": 0.0},
    "... exchanged, 0.1": {"edge_score": "magnitude", "threshold": 0.1},
    "... exchanged, 0.03": {"edge_score": "magnitude"},
    "... local degree (early-bird)": {},
    "early-bird, edge values never move": {"edge_learning_rate": 1e-30},
    "early-bird, L1": {"edge_l1": 1e-4},
    "early-bird, 0.1": {"threshold": 0.1},
    "early-bird, 0.02": {"threshold": 0.02},
    "early-bird, window 5": {"window": 5},
    "early-bird, warm-up 10": {"warmup": 10},
    "early-bird, retrained at 1x": {"retrain_learning_rate": 0.01},
    "early-bird, rewind": {"start": "rewind"},
    "early-bird, reinit": {"start": "reinit"},
}
RATIOS = ((0.2, 0.9), (0.4, 0.9))


def main() -> None:
    """Searches and retrains every setting on the same seeds; `random edges` keeps each ticket's own weights."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="cora")
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds = 2 if arguments.quick else arguments.seeds
    base = RunOptions(dataset=arguments.dataset, seeds=seeds, data_root=arguments.data_root)
    if arguments.quick:
        base = dataclasses.replace(base, epochs=10, retrain_epochs=10, max_epochs=12)
    dense = [_dense(base.resolved(), seed) for seed in range(seeds)]
    rows = [{"setting": "dense", **_summed(dense, [], [])}]
    for edge_ratio, weight_ratio in RATIOS:
        for name, changes in SETTINGS.items():
            settings = dataclasses.replace(base, edge_ratio=edge_ratio, weight_ratio=weight_ratio, **changes).resolved()
            found = [_ticket(settings, seed) for seed in range(seeds)]
            row = _summed([pair for pair, _, _ in found], [drawn for _, drawn, _ in found], [f for _, _, f in found])
            rows.append({"setting": name, "edges": edge_ratio, "weights": weight_ratio, **row})
            print(rows[-1], flush=True)
    columns = ("setting", "edges", "weights", "drawn", "fired", "val", "test", "std")
    full = [{column: row.get(column) for column in columns} for row in rows]
    finish(f"{arguments.dataset}, {seeds} seeds, accuracy in %", full, {"seeds": seeds}, arguments.json)


def _dense(settings: RunOptions, seed: int) -> tuple[float, float]:
    graph = graph_for(settings, seed)
    history = baselines.dense(model_for(settings, graph, seed), graph, settings.training(), seed=seed)
    return max(history.val_accuracy), history.accuracy


def _ticket(settings: RunOptions, seed: int) -> tuple[tuple[float, float], int, bool]:
    graph = graph_for(settings, seed)
    ticket = find_ticket(settings, graph, model_for(settings, graph, seed), seed)
    model = model_for(settings, graph, seed)
    history = retrain.run(ticket, model, graph, settings.retraining(), seed=seed).history
    return (max(history.val_accuracy), history.accuracy), ticket.epoch_drawn, ticket.fired


def _summed(pairs: list[tuple[float, float]], drawn: list[int], fired: list[bool]) -> dict[str, Any]:
    val, test = ([100 * value for value in column] for column in zip(*pairs, strict=True))
    return {
        "drawn": f"{min(drawn)}-{max(drawn)}" if drawn else None,
        "fired": sum(fired) if fired else None,
        "val": round(statistics.fmean(val), 2),
        "test": round(statistics.fmean(test), 2),
        "std": round(statistics.stdev(test), 2),
    }


if __name__ == "__main__":
    main()
