"""Do early-bird tickets exist? Accuracy of tickets by the epoch they are drawn (Fig. 1: graph alone; Fig. 4: joint).

python benchmarks/fidelity/drawn_when.py [--algorithm graph|joint] [--dataset cora] [--edge-ratios 0.2 0.4 0.6]
    [--epochs 1 2 5 ...] [--seeds 10] [--store FILE] [--quick] [--json OUT] [--picture OUT.png]

Settings of preset `paper`, but no detector: the search runs for so many epochs, its last masks are drawn. "graph":
masks over edges alone, on a pretrained network; the pruned graph is retrained from fresh weights (pretrain, sparsify,
retrain). "joint": both masks, the ticket's weights inherited. The row "detector" is what the detector draws,
"random edges" the same ticket with as many edges drawn at random.
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
from protocol import CONTROL, Protocol, row

EPOCHS = (1, 2, 5, 10, 15, 20, 30, 50, 100)
OWN = {"graph": "algorithm=graph,start=reinit", "joint": "algorithm=joint"}


def main() -> None:
    """One row an edge ratio and epoch; the detector's own draw beside them."""
    parser = options(__doc__ or "")
    parser.add_argument("--algorithm", choices=sorted(OWN), default="graph")
    parser.add_argument("--dataset", default="cora")
    parser.add_argument("--edge-ratios", nargs="+", type=float, default=[0.2, 0.4, 0.6])
    parser.add_argument("--weight-ratio", type=float, default=0.5, help="of joint tickets")
    parser.add_argument("--epochs", nargs="+", type=int, default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seeds = range(2 if arguments.quick else arguments.seeds)
    protocol, where = Protocol(arguments.quick, arguments.store, data_root=arguments.data_root), arguments.dataset
    own, weight_ratio = OWN[arguments.algorithm], arguments.weight_ratio if arguments.algorithm == "joint" else 0.0
    epochs = [1, 3] if arguments.quick else arguments.epochs
    rows: list[dict[str, Any]] = []
    for edge_ratio in arguments.edge_ratios[: 1 if arguments.quick else None]:
        ratios = (edge_ratio, weight_ratio)
        dense = protocol.outcomes(where, "gcn", "dense", ratios, seeds)
        for epoch in epochs:
            # A queue that is never full lets no detector fire.
            method = f"paper:{own},window=1000,max_epochs={epoch}"
            found = protocol.outcomes(where, "gcn", method, ratios, seeds)
            rows.append(row(f"epoch {epoch}", ratios, found, dense, drawn=epoch))
            print(rows[-1], flush=True)
        control = protocol.outcomes(where, "gcn", f"paper:{own}{CONTROL}", ratios, seeds)
        rows.append(row("random edges", ratios, control, dense, drawn=0))
        found = protocol.outcomes(where, "gcn", f"paper:{own}", ratios, seeds)
        drawn = [outcome.epoch_drawn for outcome in found]
        rows.append(row("detector", ratios, found, dense, drawn=statistics.fmean(drawn)))
        rows[-1]["method"] = f"detector, epochs {min(drawn)} to {max(drawn)}"
    if arguments.picture:
        picture(rows, dense[0].accuracy and 100 * statistics.fmean(d.accuracy for d in dense), arguments)
    summary = {
        own["method"] + f" at {own['edge_ratio']:g}": own["minus_dense"] for own in rows if "detector" in own["method"]
    }
    finish(f"{where}, {arguments.algorithm}, {len(seeds)} seed(s)", rows, summary, arguments.json)


def picture(rows: list[dict[str, Any]], dense: float, arguments: Any) -> None:
    """Accuracy against the epoch drawn, one line an edge ratio."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for edge_ratio in dict.fromkeys(own["edge_ratio"] for own in rows):
        own = [r for r in rows if r["edge_ratio"] == edge_ratio]
        line = [r for r in own if r["method"].startswith("epoch")]
        label = f"{100 * edge_ratio:g} % of the edges gone"
        drawn = axes.errorbar(
            [r["drawn"] for r in line], [r["test"] for r in line], [r["std"] for r in line], marker="o", capsize=2,
            label=label,
        )  # fmt: skip
        axes.plot(own[-1]["drawn"], own[-1]["test"], "*", ms=14, color=drawn[0].get_color(), mec="black")
        axes.axhline(own[-2]["test"], color=drawn[0].get_color(), ls=":", lw=1)
    axes.axhline(dense, color="#7f7f7f", ls="--", label="dense")
    axes.set(xscale="log", xlabel="epoch drawn (star: the detector's; dotted: random edges)", ylabel="test accuracy, %")
    axes.set_title(f"{arguments.dataset}: {arguments.algorithm} tickets by the epoch they are drawn")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
