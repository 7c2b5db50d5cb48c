"""Do early-bird tickets of channels exist, and what does EB-Train save? Accuracy by draw epoch; seconds end to end.

python benchmarks/images/early_bird.py [--data mnist] [--model preresnet20] [--width 0.5] [--pool 1] [--pad 0]
    [--images 5000] [--epochs 30] [--ratios 0.3 0.5 0.7] [--draws 1 2 4 ...] [--seeds 3] [--store FILE]
    [--picture OUT.png] [--quick] [--json OUT] [--data-root FOLDER]

You et al. 2020: SGD with momentum, rate cut at half and three quarters of the epochs, L1 on batch-norm scales. A draw
takes the channels of smallest scale out; "whole schedule" trains the smaller network for all epochs again, with the
weights of the draw: drawn at the last epoch it is train-prune-retrain. "early bird" is the detector's draw, and trains
only the epochs that are left; "random" takes as many random channels at the same epoch. Accuracy is that of the
last epoch on the test images: nothing is selected. Seconds are epochs times the median seconds of one.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import Store, finish, half_interval, options, spread
from pooled import images

from gebt.models.vision_registry import image_network
from gebt.prune.detector import Compare, pairwise_distances
from gebt.prune.mask import Mask
from gebt.prune.scores import bn_scale, random
from gebt.prune.selection import make_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.recipes.early_bird_cnn import ChannelTicket, CnnSettings, channel_mask, retrain
from gebt.train.images import ImageTrainer, accuracy

TEST = 10_000


def main() -> None:
    """One row a kind of ticket, ratio and draw; a heat map of mask distances."""
    parser = options(__doc__ or "")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--model", default="preresnet20")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--pool", type=int, default=1, help="average images over squares of so many pixels")
    parser.add_argument("--pad", type=int, default=0, help="zeros on all sides of an image")
    parser.add_argument("--images", type=int, default=5000, help="for training, drawn by seed")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--scale-l1", type=float, default=1e-4)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5, 0.7])
    parser.add_argument("--draws", type=int, nargs="*", default=[1, 2, 4, 8, 15], help="epochs, for the middle ratio")
    parser.add_argument("--compare", choices=get_args(Compare), default="previous", help="of the detector")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        own = {
            "data": "digits",
            "pool": 1,
            "width": 0.25,
            "images": 128,
            "epochs": 7,
            "ratios": [0.5],
            "draws": [2],
            "seeds": 2,
        }
        vars(arguments).update(own, batch=64)
    torch.set_num_threads(arguments.threads)
    store = Store(arguments.store)
    names = (
        "data",
        "pool",
        "pad",
        "model",
        "width",
        "images",
        "epochs",
        "batch",
        "learning_rate",
        "scale_l1",
        "ratios",
        "draws",
        "compare",
    )
    key = " ".join(f"{name}={getattr(arguments, name)}" for name in names)
    found = [store.get(f"{key} seed={seed}", lambda seed=seed: one(arguments, seed)) for seed in range(arguments.seeds)]
    rows = [summed(number, found) for number in range(len(found[0]["rows"]))]
    figures = summary(rows)
    for compare in get_args(Compare):
        epochs = [epoch for one in found for epoch in one["fired"][compare].values()]
        figures[f"epochs at which {compare!r} fires"] = f"{min(epochs)} to {max(epochs)}" if epochs else "never"
    if arguments.picture is not None:
        draw(rows, found[0], arguments.picture)
    title = (
        f"{arguments.model} x {arguments.width:g}, {arguments.data}, {arguments.images} images, {arguments.seeds} seeds"
    )
    finish(title, rows, figures, arguments.json)


def one(arguments: Any, seed: int) -> dict[str, Any]:
    """All tickets of one seed: rows, and the pairwise distances of the middle ratio's draws."""
    train, test = (
        images(arguments.data, part, arguments.data_root, arguments.pool, arguments.pad) for part in ("train", "test")
    )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    train, test = train.take(order[: arguments.images]), test.take(torch.arange(min(TEST, len(test))))
    epochs = arguments.epochs
    crop, flip = (4 // arguments.pool, True) if arguments.data.startswith("cifar") else (1, False)
    settings = CnnSettings(
        epochs=epochs, learning_rate=arguments.learning_rate, milestones=(epochs // 2, 3 * epochs // 4),
        batch=arguments.batch, crop=crop, flip=flip, scale_l1=arguments.scale_l1,
    )  # fmt: skip
    model = image_network(arguments.model, train.shape, len(train.classes), width=arguments.width, seed=seed)
    mean, std = train.statistics()
    trainer, masks, states, seconds = ImageTrainer(model, train, None, settings, seed), [], [], []
    ties, rules = TieBreaker(seed), get_args(Compare)
    birds = {
        (ratio, compare): replace(settings, compare=compare).detector()
        for ratio in arguments.ratios
        for compare in rules
    }
    fired: dict[str, dict[float, int]] = {compare: {} for compare in rules}
    for epoch in range(epochs + 1):
        if epoch:
            seconds.append(timed(lambda epoch=epoch: trainer.epoch(epoch)))
        masks.append({ratio: channel_mask(model, ratio, settings, ties) for ratio in arguments.ratios})
        states.append(copy.deepcopy(model.state_dict()))
        for (ratio, compare), bird in birds.items():
            if bird.update(masks[-1][ratio]):
                fired[compare].setdefault(ratio, epoch)
    dense_epoch = statistics.median(seconds)
    dense = accuracy(model, test, mean=mean, std=std)
    size = sum(parameter.numel() for parameter in model.parameters())
    rows = [row("dense", 0.0, epochs, dense, epochs * dense_epoch, 1.0)]

    def retrain_ticket(kind: str, ratio: float, epoch: int, mask: Mask, *, whole: bool) -> None:
        ticket = ChannelTicket(ratio, mask, states[epoch], 0 if whole else epoch, True, ())
        twin = image_network(arguments.model, train.shape, len(train.classes), width=arguments.width, seed=seed)
        took: list[float] = []
        last = [time.perf_counter()]

        def tick(*_: Any) -> None:
            took.append(time.perf_counter() - last[0])
            last[0] = time.perf_counter()

        small, _ = retrain(replace(ticket), twin, train, settings=settings, seed=seed, on_epoch=tick)
        reached = accuracy(small, test, mean=mean, std=std)
        left = sum(parameter.numel() for parameter in small.parameters()) / size
        cost = epoch * dense_epoch + len(took) * statistics.median(took)
        rows.append(row(kind, ratio, epoch, reached, cost, left))
        print(seed, rows[-1], flush=True)

    middle = arguments.ratios[len(arguments.ratios) // 2]
    for epoch in arguments.draws:
        retrain_ticket("whole schedule", middle, epoch, masks[epoch][middle], whole=True)
    for ratio in arguments.ratios:
        retrain_ticket("whole schedule", ratio, epochs, masks[epochs][ratio], whole=True)
        epoch = min(fired[arguments.compare].get(ratio, epochs), epochs - 1)
        retrain_ticket("early bird", ratio, epoch, masks[epoch][ratio], whole=False)
        drawn_scores = random(bn_scale(model), torch.Generator().manual_seed(seed))
        retrain_ticket("random", ratio, epoch, make_mask(drawn_scores, ratio=ratio, allow_empty=True), whole=False)
    drawn = torch.stack([own[middle].flat() for own in masks])
    return {"rows": rows, "distances": pairwise_distances(drawn).tolist(), "fired": fired}


def timed(work: Any) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(kind: str, ratio: float, epoch: int, reached: float, seconds: float, left: float) -> dict[str, Any]:
    """What one training came to."""
    return {"kind": kind, "ratio": ratio, "drawn": epoch, "test": reached, "seconds": seconds, "parameters": left}


def summed(number: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """One row over all seeds; differences to train-prune-retrain of the same ratio and seed, or to dense."""
    own = [one["rows"][number] for one in found]
    kind, ratio = own[0]["kind"], own[0]["ratio"]
    peers = [peer(one["rows"], ratio) for one in found]
    moved = [100 * (mine["test"] - theirs["test"]) for mine, theirs in zip(own, peers, strict=True)]
    return {
        "kind": kind,
        "ratio": ratio,
        "drawn": statistics.fmean(one["drawn"] for one in own),
        "test": statistics.fmean(100 * one["test"] for one in own),
        "std": spread([100 * one["test"] for one in own]),
        "minus_late": statistics.fmean(moved),
        "interval": half_interval(moved),
        "parameters": statistics.fmean(one["parameters"] for one in own),
        "times_faster": statistics.fmean(
            theirs["seconds"] / mine["seconds"] for mine, theirs in zip(own, peers, strict=True)
        ),
    }


def peer(rows: list[dict[str, Any]], ratio: float) -> dict[str, Any]:
    """Train-prune-retrain of a ratio; dense training for the dense network."""
    alike = [row for row in rows if row["ratio"] == ratio and row["kind"] in ("dense", "whole schedule")]
    return max(alike, key=lambda row: row["drawn"])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The early bird beside train-prune-retrain, by ratio."""
    early = [row for row in rows if row["kind"] == "early bird"]
    return {
        **{f"early bird minus late draw, {row['ratio']:g}": row["minus_late"] for row in early},
        **{f"times fewer seconds, {row['ratio']:g}": row["times_faster"] for row in early},
    }


def draw(rows: list[dict[str, Any]], first: dict[str, Any], path: Path) -> None:
    """Mask distances of the first seed as a heat map, and accuracy by draw epoch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = left.imshow(first["distances"], origin="lower", cmap="viridis_r", vmin=0)
    figure.colorbar(shown, ax=left, label="share of channels that differ")
    left.set(xlabel="epoch of one draw", ylabel="epoch of the other", title="mask distance, first seed")
    whole = [row for row in rows if row["kind"] == "whole schedule"]
    middle = statistics.mode([row["ratio"] for row in whole])
    own = sorted((row for row in whole if row["ratio"] == middle), key=lambda row: row["drawn"])
    right.errorbar([row["drawn"] for row in own], [row["test"] for row in own], [row["std"] for row in own], marker="o")
    right.set(
        xlabel="epoch of the draw", ylabel="accuracy, %", title=f"retrained ticket, {100 * middle:g} % of channels"
    )
    for row in rows:
        if row["kind"] == "early bird" and row["ratio"] == middle:
            right.axvline(row["drawn"], linestyle=":", color="gray", label="detector")
            right.legend()
    right.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
