"""How good are the dense networks that tickets are compared with? One row a data set, at its recorded settings.

python benchmarks/dense.py [--datasets cora citeseer ...] [--seeds 10] [--quick] [--json OUT]
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch
from common import finish, options

from gebt.experiments.options import RunOptions
from gebt.experiments.setup import graph_for, model_for
from gebt.recipes import baselines

# Test accuracy of GCN: Kipf & Welling 2017 (public split), Shchur et al. 2018 (20 a class, random splits).
PUBLISHED = {
    "cora": 81.5,
    "citeseer": 70.3,
    "pubmed": 79.0,
    "amazon-computers": 82.6,
    "coauthor-cs": 91.1,
    "coauthor-physics": 92.8,
}


def main() -> None:
    """Trains dense networks; where the split is drawn, every seed has its own."""
    parser = options(__doc__ or "")
    parser.add_argument("--datasets", nargs="+", default=list(PUBLISHED))
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.datasets[:1] if arguments.quick else arguments.datasets
    rows = []
    for name in names:
        settings = RunOptions(dataset=name, data_root=arguments.data_root, seeds=arguments.seeds).resolved()
        if arguments.quick:
            settings = dataclasses.replace(settings, seeds=2, epochs=10)
        start, accuracies, validation = time.perf_counter(), [], []
        for seed in range(settings.seeds):
            graph = graph_for(settings, seed)
            history = baselines.dense(model_for(settings, graph, seed), graph, settings.training(), seed=seed)
            accuracies.append(100 * history.accuracy)
            validation.append(100 * max(history.val_accuracy))
        rows.append(
            {
                "dataset": name,
                "hidden": settings.hidden,
                "dropout": settings.dropout,
                "weight_decay": settings.weight_decay,
                "epochs": settings.epochs,
                "val": statistics.fmean(validation),
                "test": statistics.fmean(accuracies),
                "std": statistics.stdev(accuracies),
                "published": PUBLISHED.get(name),
                "seconds_a_seed": (time.perf_counter() - start) / settings.seeds,
            }
        )
        print(rows[-1], flush=True)
    finish(f"dense GCN, {arguments.seeds} seeds, accuracy in %", rows, {"data_sets": len(rows)}, arguments.json)


if __name__ == "__main__":
    main()
