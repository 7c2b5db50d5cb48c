"""The lottery tickets' first figure: LeNet-300-100 on MNIST, accuracy by density, tickets and their controls.

python benchmarks/images/lottery_figure.py [--seeds 10] [--levels 15] [--epochs 5] [--store FILE] [--picture OUT.png]
    [--quick] [--json OUT] [--data-root FOLDER]

Frankle & Carbin 2019, fig. 1 and 3: Adam at 0.0012, batches of 60, 55,000 images for training and 5,000 for
validation, each layer ranked alone, weights rewound to the start. Controls have the ticket's mask and fresh weights
("reinit"), or its weights and a mask shuffled in each layer ("shuffled"). Accuracy is that of the last epoch on the
test images, so nothing is selected; `after_1` is that on the validation images after one epoch: who learns faster.
"""

from __future__ import annotations

import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Store, finish, half_interval, options, spread

from gebt.data.images import Images, load_images
from gebt.models.mlp import MLP
from gebt.prune.imp import iterative_magnitude_pruning
from gebt.train.images import ImageSettings, accuracy, fit

RATIO = 0.964  # what 15 levels of a fifth of what is left come to: 3.6 % stay
CONTROLS = ("reinit", "shuffled")


def main() -> None:
    """One row a level and kind of ticket."""
    parser = options(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--levels", type=int, default=15, help=f"to a density of {1 - RATIO:.3f}")
    parser.add_argument("--controls", nargs="+", type=int, default=[3, 7, 11, 15], help="levels that have controls")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    store, name = Store(arguments.store), "digits" if arguments.quick else "mnist"
    seeds, levels, epochs = (2, 2, 2) if arguments.quick else (arguments.seeds, arguments.levels, arguments.epochs)
    controls = [level for level in ([2] if arguments.quick else arguments.controls) if level <= levels]

    @cache
    def images() -> list[Images]:
        return [load_images(name, part, arguments.data_root) for part in ("train", "test")]  # type: ignore[arg-type]

    found = []
    for seed in range(seeds):
        key = f"{name} {levels} {epochs} {controls} {seed}"
        found.append(store.get(key, lambda seed=seed: one(*images(), seed, levels, controls, epochs)))
        print(f"seed {seed}: {found[-1][-1]}", flush=True)
    rows = [summed(own, found) for own in range(len(found[0]))]
    summary = {"tickets at least as good as dense, smallest density": smallest_winner(rows, found)}
    if arguments.picture is not None:
        draw(rows, arguments.picture)
    finish(f"LeNet-300-100 on {name}, {seeds} seeds, accuracy in %", rows, summary, arguments.json)


def one(train: Images, test: Images, seed: int, levels: int, controls: list[int], epochs: int) -> list[dict[str, Any]]:
    """All levels and controls of one seed."""
    kept, held_out = train.split(55 / 60, seed)
    given: dict[str, Any] = {"milestones": (), "weight_decay": 0.0, "crop": 0, "flip": False, "batch": 60}
    settings = ImageSettings(epochs=epochs, learning_rate=1.2e-3, optimizer="adam", **given)
    model = MLP(train.pixels[0].numel(), len(train.classes), seed=seed)
    mean, std = kept.statistics()

    def training(model: Any, *, start: int, stop: int | None, enforce: Any) -> dict[str, float]:
        history = fit(model, kept, held_out, settings, seed=seed, start=start, stop=stop, enforce=enforce)
        return {"test": accuracy(model, test, mean=mean, std=std), "after_1": history.accuracy[0]}

    found = iterative_magnitude_pruning(model, training, ratio=RATIO, levels=levels, layerwise=True, seed=seed)
    rows = [{"kind": "ticket", "density": level.mask.density, **level.result} for level in found.levels]
    for number in controls:
        for how in CONTROLS:
            result = found.baseline(model, training, number, how, seed=1000 + seed)  # type: ignore[arg-type]
            rows.append({"kind": how, "density": found.levels[number].mask.density, **result})
    return rows


def summed(number: int, found: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """One row over all seeds, beside the dense network's of the same seed."""
    own, dense = [rows[number] for rows in found], [rows[0] for rows in found]
    tests = [100 * row["test"] for row in own]
    moved = [test - 100 * row["test"] for test, row in zip(tests, dense, strict=True)]
    return {
        "kind": own[0]["kind"],
        "density": own[0]["density"],
        "test": statistics.fmean(tests),
        "std": spread(tests),
        "minus_dense": statistics.fmean(moved),
        "interval": half_interval(moved),
        "after_1": statistics.fmean(100 * row["after_1"] for row in own),
    }


def smallest_winner(rows: list[dict[str, Any]], found: list[list[dict[str, Any]]]) -> float:
    """The smallest density from which on upwards every mean is that of the dense network or better."""
    tickets = sorted((row for row in rows if row["kind"] == "ticket"), key=lambda row: -row["density"])
    winners = [1.0]
    for row in tickets[1:]:
        if row["minus_dense"] < 0:
            break
        winners.append(row["density"])
    return winners[-1]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy, and accuracy after one epoch, by density."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, column, title in zip(
        figure.subplots(1, 2), ("test", "after_1"), ("after the last epoch", "after one epoch"), strict=True
    ):
        for kind in ("ticket", *CONTROLS):
            own = [row for row in rows if row["kind"] == kind]
            axes.plot([100 * row["density"] for row in own], [row[column] for row in own], marker="o", label=kind)
        axes.set(xscale="log", xlabel="weights kept, %", ylabel="accuracy, %", title=title)
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
