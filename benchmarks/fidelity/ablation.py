"""What each part of preset `best` adds, and what it costs: `best` with one part changed at a time.

python benchmarks/fidelity/ablation.py [--dataset cora ...] [--ratios 0.4,0.9 0.8,0.9] [--variants NAME ...]
    [--seeds 10] [--store FILE] [--quick] [--json OUT]

`minus_best` is paired by seed, with a 95 % confidence interval; `val` is what a choice between them may be made by.
Cost is that of search and retraining as a share of dense training.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options
from protocol import Protocol, against, mean_of, pairs_of, row

VARIANTS = {
    "best": "best",
    "no soft labels": "best:distill=0",
    "soft labels not propagated": "best:label_propagation=0",
    "label propagation 0.5": "best:label_propagation=0.5",
    "label propagation 0.9": "best:label_propagation=0.9",
    "edges by similarity": "best:edge_score=similarity",
    "edges by reliance + magnitude": "best:edge_score=reliance+magnitude",
    "edges by local degree": "best:edge_score=local_degree",
    "edges by magnitude (paper)": "best:edge_score=magnitude",
    "edges at random": "best-random-edges",
    "prediction EMA 0.9": "best:prediction_ema=0.9",
    "trained edge weights": "best:edge_score=reliance+magnitude,edge_weights=trained",
    "degree-corrected edge weights": "best:edge_weights=degree_corrected",
    "drawn by the detector": "best:draw_at=detector",
    "search of 100 epochs": "best:max_epochs=100",
    "search at twice the rate": "best:search_learning_rate=0.02",
    "retrained at the dense rate": "best:retrain_learning_rate=0.01",
    "weights rewound": "best:start=rewind",
}


def main() -> None:
    """One row a data set, pair of ratios and variant."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", nargs="+", default=["cora"])
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--ratios", nargs="+", default=["0.4,0.9", "0.8,0.9"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds = range(2 if arguments.quick else arguments.seeds)
    protocol = Protocol(arguments.quick, arguments.store, data_root=arguments.data_root)
    rows: list[dict[str, Any]] = []
    for dataset in arguments.dataset:
        for ratios in pairs_of(arguments.ratios)[: 1 if arguments.quick else None]:
            dense = protocol.outcomes(dataset, arguments.model, "dense", ratios, seeds)
            best = protocol.outcomes(dataset, arguments.model, "best", ratios, seeds)
            for name in dict.fromkeys(("best", *arguments.variants)):
                found = protocol.outcomes(dataset, arguments.model, VARIANTS[name], ratios, seeds)
                own = row(name, ratios, found, dense, dataset=dataset)
                for unused in ("full", "edge_sparsity", "weight_sparsity", "seconds"):
                    del own[unused]
                own["val"] = 100 * mean_of(found, lambda outcome: outcome.val)
                own["minus_best"], own["minus_best_interval"] = against(found, best)
                rows.append(own)
                print(own, flush=True)
    finish(f"{len(seeds)} seed(s), {arguments.model}", rows, {"variants": len(arguments.variants)}, arguments.json)


if __name__ == "__main__":
    main()
