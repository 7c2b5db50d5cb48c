"""Every method by one protocol: accuracy at equal measured sparsity, paired with dense and with `best`, and the cost.

python benchmarks/fidelity/compare.py [--dataset cora ...] [--model gcn ...] [--ratios 0.2,0.9 ...] [--methods ...]
    [--seeds 10] [--set name=value ...] [--store FILE] [--imbalance 10] [--quick] [--json OUT] [--picture OUT.png]

`dense` and `random` are always there. Differences are paired by seed, with a 95 % confidence interval (Student's t).
`of_dense`, `macs_of_dense`: seconds and multiply-adds of a ticket's whole way as a share of dense training;
`inference_of_dense`: multiply-adds of one inference. With `best` among the methods the
summary counts the cells where it is significantly worse than a method, and where it is better. With a store the
outcomes of seeds that are in it are not computed again: seconds compare only within one machine's store.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options
from protocol import CONTROL, PRESETS, Protocol, Ratios, against, pairs_of, parsed, row

from gebt.experiments.methods import OTHER_METHODS
from gebt.sparse import backends

METHODS = ("random", *PRESETS, "best-random-edges", "teddy", "sgcn", "imp", "one-shot", "ugs", "wd-glt", "dropedge")
RATIOS = ("0.2,0.9", "0.4,0.9", "0.6,0.9", "0.8,0.9")


def cell(protocol: Protocol, dataset: str, model: str, ratios: Ratios, methods: list[str], seeds: range) -> list[Any]:
    """The rows of one data set, network and pair of ratios: dense first."""
    found: dict[str, list[Any]] = {name: [] for name in ("dense", *methods)}
    for seed in seeds:  # one method after the other for each seed, so that noise in the seconds meets all
        for name, own in found.items():
            own.append(protocol.outcome(dataset, model, name, ratios, seed))
    rows = []
    for name, own in found.items():
        rows.append(row(name, ratios, own, found["dense"], dataset=dataset, model=model))
        rows[-1]["inference_of_dense"] = protocol.inference_share(dataset, model, own[0])
        if "best" in found:
            rows[-1]["best_minus"], rows[-1]["best_interval"] = against(found["best"], own)
        print(rows[-1], flush=True)
    return rows


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For every other method: in how many cells `best` is better, significantly better, significantly worse."""
    summary: dict[str, Any] = {}
    for name in sorted({own["method"] for own in rows} & {*OTHER_METHODS, "random"}):
        cells = [own for own in rows if own["method"] == name]
        better = sum(own["best_minus"] > 0 for own in cells)
        surely = sum(own["best_minus"] > own["best_interval"] for own in cells)
        worse = sum(-own["best_minus"] > own["best_interval"] for own in cells)
        summary[f"best against {name}"] = f"{better} of {len(cells)} better ({surely} significantly), {worse} worse"
    return summary


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy less dense against what training (with the search) and inference cost (Fig. 6 of the paper)."""
    figure = Figure(figsize=(15, 5))
    panels = figure.subplots(1, 3, sharey=True)
    names = list(dict.fromkeys(own["method"] for own in rows if own["method"] != "dense"))
    marks = "os^vDP*X<>phd"
    costs = {
        "macs_of_dense": "multiply-adds of search and training (paper's)",
        "of_dense": "seconds of search and training",
        "inference_of_dense": "multiply-adds of inference (paper's)",
    }
    for axes, (cost, title) in zip(panels, costs.items(), strict=True):
        for number, name in enumerate(names):
            own = [r for r in rows if r["method"] == name]
            axes.errorbar(
                [r[cost] for r in own], [r["minus_dense"] for r in own], [r["interval"] for r in own],
                fmt=marks[number % len(marks)], ms=6, capsize=2, lw=0.8, label=name,
            )  # fmt: skip
        axes.axhline(0, color="#7f7f7f", ls="--", lw=1)
        axes.set(xscale="log", xlabel=f"{title}, dense = 1")
    panels[0].set_ylabel("test accuracy less dense, points")
    panels[0].set_ylim(max(-15, min(r["minus_dense"] for r in rows) - 1), None)
    panels[2].legend(frameon=False, fontsize=8, ncols=2)
    where = " and ".join(dict.fromkeys(f"{r['dataset']}, {r['model']}" for r in rows))
    figure.suptitle(f"{where}: accuracy against what finding and training a ticket took")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Rows for dense and every method in every cell."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", nargs="+", default=["cora"])
    parser.add_argument("--model", nargs="+", default=["gcn"])
    parser.add_argument("--ratios", nargs="+", default=list(RATIOS), help="pairs edge,weight")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        help=f"presets (also preset:name=value,...), preset{CONTROL}, other methods",
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--set", nargs="+", default=[], help="options of a run for every method: epochs=50")
    parser.add_argument("--store", type=Path, help="JSON lines: outcomes that are known, and those found")
    parser.add_argument("--picture", type=Path, help="write accuracy against cost to this PNG")
    parser.add_argument("--imbalance", type=int, default=1, help="half of the classes have so many times fewer labels")
    parser.add_argument("--backend", default=backends.DEFAULT, help="engine of the sparse products")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    backends.use(arguments.backend)
    seeds = range(2 if arguments.quick else arguments.seeds)
    given = {"data_root": arguments.data_root, **dict(map(parsed, arguments.set))}
    if arguments.backend != backends.DEFAULT:
        given["backend"] = arguments.backend
    protocol = Protocol(arguments.quick, arguments.store, arguments.imbalance, **given)
    pairs = pairs_of(arguments.ratios)[: 1 if arguments.quick else None]
    methods = list(dict.fromkeys(("random", *arguments.methods)))
    rows = [
        own
        for dataset in arguments.dataset
        for model in arguments.model
        for ratios in pairs
        for own in cell(protocol, dataset, model, ratios, methods, seeds)
    ]
    summary: dict[str, Any] = verdict(rows) if "best" in methods else {}
    if arguments.picture:
        picture(rows, arguments.picture)
    finish(f"{len(seeds)} seed(s)", rows, summary, arguments.json)


if __name__ == "__main__":
    main()
