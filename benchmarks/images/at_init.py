"""Tickets at initialization at extreme sparsity: Gem-Miner beside SynFlow, SNIP, random masks, and IMP with rewinding.

python benchmarks/images/at_init.py [--data cifar10] [--pool 2] [--images 5000] [--model resnet18] [--width 0.125]
    [--epochs 25] [--mining-epochs 75] [--densities 0.05 0.014 0.005] [--seeds 2] [--store FILE] [--quick] [--json OUT]

Sreenivasan et al. 2022: every mask is finetuned from the weights it was found on, for the same epochs. Sanity checks of
Gem-Miner's own ticket at the middle density: fresh weights ("reinit"), the mask shuffled in each layer, and its
inversion. IMP rewinds to epoch 1 and removes half of what is left a level; all of its levels count as its cost. `pool`:
images are averaged over squares of so many pixels. Accuracy is that of the last epoch on the test images: nothing is
selected. `seconds`: from the start to the trained ticket.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Store, finish, half_interval, options, spread
from pooled import images

from gebt.models.vision_registry import image_network
from gebt.prune.enforce import enforce_mask
from gebt.prune.gem_miner import inverted
from gebt.prune.imp import iterative_magnitude_pruning
from gebt.prune.mask import Mask
from gebt.prune.random_masks import shuffled
from gebt.recipes.at_init import mask_at_init
from gebt.train.images import ImageSettings, accuracy, fit

SCORES = ("gem-miner", "synflow", "snip", "random", "erk")


def main() -> None:
    """One row a method and density."""
    parser = options(__doc__ or "")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--width", type=float, default=0.125)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--mining-epochs", type=int, default=75)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--densities", type=float, nargs="+", default=[0.05, 0.014, 0.005])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--store", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        own = {"data": "digits", "pool": 1, "images": 64, "epochs": 2, "mining_epochs": 3, "densities": [0.1]}
        vars(arguments).update(own, model="preresnet20", width=0.25)
    torch.set_num_threads(arguments.threads)
    names = ("data", "pool", "images", "model", "width", "epochs", "mining_epochs", "learning_rate", "densities")
    key, store = " ".join(f"{name}={getattr(arguments, name)}" for name in names), Store(arguments.store)
    found = [
        store.get(f"{key} seed={seed}", lambda seed=seed: _Seed(arguments, seed).rows())
        for seed in range(arguments.seeds)
    ]
    rows = [summed([rows[number] for rows in found]) for number in range(len(found[0]))]
    title = f"{arguments.model} x {arguments.width:g}, {arguments.data}, {arguments.images} images, {len(found)} seeds"
    finish(title, rows, summary(rows), arguments.json)


class _Seed:
    """All methods on one seed."""

    def __init__(self, arguments: Any, seed: int) -> None:
        own, self.seed = arguments, seed
        self.arguments = own
        train, self.test = (images(own.data, part, own.data_root, own.pool) for part in ("train", "test"))
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        self.train = train.take(order[: own.images])
        cifar = own.data.startswith("cifar")
        self.settings = ImageSettings(
            epochs=own.epochs, learning_rate=own.learning_rate, batch=64, schedule="cosine",
            crop=(4 // own.pool) if cifar else 1, flip=cifar, weight_decay=5e-4,
        )  # fmt: skip
        self.mean, self.std = self.train.statistics()
        self.found: list[dict[str, Any]] = []

    def network(self, seed: int | None = None) -> Any:
        """Fresh."""
        own = self.seed if seed is None else seed
        return image_network(
            self.arguments.model, self.train.shape, len(self.train.classes), width=self.arguments.width, seed=own
        )

    def rows(self) -> list[dict[str, Any]]:
        """In the order of the table."""
        self._finetune("dense", 1.0, self.network(), None)
        middle = self.arguments.densities[len(self.arguments.densities) // 2]
        for density in self.arguments.densities:
            for score in SCORES:
                model, start = self.network(), time.perf_counter()
                given = dataclasses.replace(self.settings, epochs=self.arguments.mining_epochs)
                ratio = 1 - density
                mask = mask_at_init(model, self.train, score=score, ratio=ratio, settings=given, seed=self.seed)  # type: ignore[arg-type]
                searched = time.perf_counter() - start
                weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                self._finetune(score, density, model, mask, searched)
                if score == "gem-miner" and density == middle:
                    self._sanity(mask, weights, density)
        self._iterative()
        return self.found

    def _sanity(self, mask: Mask, weights: dict[str, torch.Tensor], density: float) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self._finetune("gem-miner, reinit", density, self.network(1000 + self.seed), mask)
        others = {"shuffled": shuffled(mask, generator=generator), "inverted": inverted(mask, generator=generator)}
        for name, other in others.items():
            model = self.network()
            model.load_state_dict(weights)
            self._finetune(f"gem-miner, {name}", density, model, other)

    def _iterative(self) -> None:
        """Half of what is left a level, through all densities."""
        densities = [1.0]
        for wanted in sorted(self.arguments.densities, reverse=True):
            while densities[-1] / 2 > wanted:
                densities.append(densities[-1] / 2)
            densities.append(wanted)

        def train(model: nn.Module, *, start: int, stop: int | None, enforce: Any) -> dict[str, float]:
            begun = time.perf_counter()
            fit(model, self.train, None, self.settings, seed=self.seed, start=start, stop=stop, enforce=enforce)
            reached = accuracy(model, self.test, mean=self.mean, std=self.std)
            return {"accuracy": reached, "seconds": time.perf_counter() - begun}

        ratios = [1 - density for density in densities]
        levels = iterative_magnitude_pruning(
            self.network(), train, ratio=ratios, rewind=1, seed=self.seed, allow_empty=True
        ).levels
        for number, level in enumerate(levels):
            if densities[number] in self.arguments.densities:
                spent = sum(own.result["seconds"] for own in levels[: number + 1])
                emptied = sum(not bool(kept.any()) for kept in level.mask.values())
                self._row("imp", level.mask.density, level.result["accuracy"], spent, emptied)

    def _finetune(self, name: str, density: float, model: Any, mask: Mask | None, searched: float = 0.0) -> None:
        start = time.perf_counter()
        held = None if mask is None else (lambda optimizer: enforce_mask(model, mask, optimizer))
        fit(model, self.train, None, self.settings, seed=self.seed, enforce=held)
        seconds = searched + time.perf_counter() - start
        emptied = 0 if mask is None else sum(not bool(kept.any()) for kept in mask.values())
        self._row(name, density, accuracy(model, self.test, mean=self.mean, std=self.std), seconds, emptied)

    def _row(self, name: str, density: float, reached: float, seconds: float, emptied: int) -> None:
        row = {"method": name, "density": density, "test": reached, "seconds": seconds, "emptied_layers": emptied}
        self.found.append(row)
        print(self.seed, row, flush=True)


def summed(own: list[dict[str, Any]]) -> dict[str, Any]:
    """One row over all seeds."""
    tests = [100 * row["test"] for row in own]
    return {
        "method": own[0]["method"],
        "density": own[0]["density"],
        "test": statistics.fmean(tests),
        "std": spread(tests),
        "interval": half_interval(tests),
        "emptied_layers": statistics.fmean(row["emptied_layers"] for row in own),
        "seconds": statistics.median(row["seconds"] for row in own),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Gem-Miner beside the best of the others and IMP, by density."""
    summary: dict[str, Any] = {}
    for gem in (row for row in rows if row["method"] == "gem-miner"):
        alike = {row["method"]: row for row in rows if abs(row["density"] - gem["density"]) < 1e-3 * gem["density"]}
        best = max(alike[name]["test"] for name in SCORES[1:])
        summary[f"gem-miner minus best other, {gem['density']:g}"] = gem["test"] - best
        if "imp" in alike:
            summary[f"gem-miner minus imp, {gem['density']:g}"] = gem["test"] - alike["imp"]["test"]
            summary[f"seconds of imp over gem-miner's, {gem['density']:g}"] = alike["imp"]["seconds"] / gem["seconds"]
    return summary


if __name__ == "__main__":
    main()
