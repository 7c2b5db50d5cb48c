"""When do masks stop moving? Detected epochs and heat maps of mask distances (Fig. 2), and the three stop criteria.

python benchmarks/fidelity/detector.py [--dataset cora citeseer pubmed] [--model gcn gat gin sage] [--seeds 10]
    [--criteria sum weights edges] [--ratios 0.2,0.9] [--store FILE] [--quick] [--json OUT] [--picture OUT.png]

Settings of preset `paper` (entry-normalized distances, threshold 0.1, three in a row), and of `default` (distances per
exchanged entry, threshold 0.03). The paper's ranges: joint tickets are detected at epochs 9 to 26 (Cora) and 13 to 22
(CiteSeer) of 100; with the edges' distance alone at 8 to 26, with the weights' alone at 10 to 13.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options
from protocol import Protocol, pairs_of, row

from gebt.experiments.setup import DrawLog, find_ticket, graph_for, model_for

PAPER = {
    ("cora", "sum"): "9 to 26", ("citeseer", "sum"): "13 to 22", ("cora", "edges"): "8 to 26",
    ("citeseer", "edges"): "8 to 26", ("cora", "weights"): "10 to 13", ("citeseer", "weights"): "10 to 13",
}  # fmt: skip


def main() -> None:
    """One row a data set, network, preset and criterion."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", nargs="+", default=["cora", "citeseer", "pubmed"])
    parser.add_argument("--model", nargs="+", default=["gcn", "gat", "gin", "sage"])
    parser.add_argument("--criteria", nargs="+", default=["sum", "weights", "edges"])
    parser.add_argument("--ratios", nargs="+", default=["0.2,0.9"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds = range(2 if arguments.quick else arguments.seeds)
    protocol = Protocol(arguments.quick, arguments.store, data_root=arguments.data_root)
    rows: list[dict[str, Any]] = []
    for dataset in arguments.dataset:
        for model in arguments.model[: 1 if arguments.quick else None]:
            for ratios in pairs_of(arguments.ratios):
                dense = protocol.outcomes(dataset, model, "dense", ratios, seeds)
                for preset in ("paper", "early-bird"):
                    for criterion in arguments.criteria:
                        found = protocol.outcomes(dataset, model, f"{preset}:criterion={criterion}", ratios, seeds)
                        drawn = [outcome.epoch_drawn for outcome in found]
                        own = row(preset, ratios, found, dense, dataset=dataset, model=model, criterion=criterion)
                        columns = ("dataset", "model", "method", "criterion", "test", "std", "minus_dense", "interval")
                        rows.append({name: own[name] for name in columns})
                        rows[-1] |= {
                            "first": min(drawn),
                            "mean": statistics.fmean(drawn),
                            "last": max(drawn),
                            "fired": sum(outcome.fired for outcome in found),
                            "paper's": PAPER.get((dataset, criterion), "") if preset == "paper" else "",
                        }
                        print(rows[-1], flush=True)
    if arguments.picture:
        picture(protocol, arguments)
    finish(f"{len(seeds)} seed(s), epoch drawn", rows, {"rows": len(rows)}, arguments.json)


def picture(protocol: Protocol, arguments: Any) -> None:
    """Heat maps of the distances between the masks of every two epochs of 60, for each data set: edges, weights."""
    figure = Figure(figsize=(4 * len(arguments.dataset), 7))
    panels = figure.subplots(2, len(arguments.dataset), squeeze=False)
    for column, dataset in enumerate(arguments.dataset):
        settings = protocol.settings(
            dataset, "gcn", "paper:threshold=1e-30,max_epochs=60", pairs_of(arguments.ratios)[0]
        )
        graph, log = graph_for(settings, 0), DrawLog()
        find_ticket(settings, graph, model_for(settings, graph, 0), 0, log)
        for axes, (kind, distances) in zip(panels[:, column], log.pairwise().items(), strict=True):
            image = axes.imshow(distances, cmap="viridis", origin="lower", interpolation="nearest")
            axes.set(title=f"{dataset}: {kind[:-1]} masks", xlabel="epoch", ylabel="epoch")
            figure.colorbar(image, ax=axes, fraction=0.046)
    figure.suptitle("share of entries in which the masks drawn at two epochs differ")
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=100)


if __name__ == "__main__":
    main()
