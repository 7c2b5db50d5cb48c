"""The runs: trainings one after the other, each a row as soon as it is there."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import nn

from gebt._files import write_atomically
from gebt.data.images import Images
from gebt.experiments.images.options import ImageOptions
from gebt.prune.detector import Compare, pairwise_distances
from gebt.prune.enforce import enforce_mask
from gebt.prune.imp import Baseline, ImpResult, iterative_magnitude_pruning
from gebt.prune.mask import Mask
from gebt.prune.schedule import geometric
from gebt.prune.scores import bn_scale, random
from gebt.prune.selection import make_mask, pruned_count
from gebt.prune.tie_breaking import TieBreaker
from gebt.recipes import early_bird_cnn
from gebt.recipes.at_init import Score, mask_at_init
from gebt.recipes.early_bird_cnn import CnnSettings
from gebt.train.images import accuracy, fit

Row = dict[str, Any]
Tick = Callable[[str], object]


@dataclasses.dataclass(frozen=True)
class Watch:
    """Options of the search for early-bird tickets.

    Parameters
    ----------
    ratios
        Shares of the channels to take out, each with a detector of its own.
    threshold
        Largest mask distance at which the search ends.
    window
        Masks before the newest one that it is compared with.
    rule
        newest: to all masks of the window, as EB-Train's code; consecutive: masks one after the other, as its paper.
    scale_l1
        L1 penalty on batch-norm scales.
    least
        Share of every layer's channels that stays, whatever their scales.
    start
        inherit: go on with the weights of the draw; reinit: with fresh ones.
    low_precision
        Search in simulated 8 bits (LF), or search and retrain (LL).
    """

    ratios: tuple[float, ...] = (0.3, 0.5, 0.7)
    threshold: float = 0.1
    window: int = 4
    compare: Compare = "window"
    scale_l1: float = 1e-4
    min_keep: float = 0.1
    start: early_bird_cnn.Start = "inherit"
    low_precision: Literal["no", "LF", "LL"] = "no"

    def check(self, options: ImageOptions, model: nn.Module) -> None:
        """Raises `ValueError` for a ratio outside [0, 1), or none, and a network without batch-norm scales."""
        _check_ratios(self.ratios)
        self.settings(options)
        bn_scale(model)

    def settings(self, options: ImageOptions) -> CnnSettings:
        """Those of the recipe."""
        bits, after = (None if self.low_precision == "no" else 8), (8 if self.low_precision == "LL" else None)
        own = {name: getattr(self, name) for name in ("threshold", "window", "compare", "scale_l1", "min_keep")}
        return CnnSettings(**options.training(), **own, bits=bits, bits_after=after)


def early_bird(options: ImageOptions, watch: Watch, seed: int, folder: Path, tick: Tick) -> Iterator[Row]:
    """Dense training; then for every ratio the early-bird ticket, and as many channels taken out by chance.

    The search's row comes last, with the pairwise distances of its draws at the middle ratio. Tickets are written into
    `folder`: the mask over batch-norm scales and the trained smaller network.
    """
    settings, (train, test) = watch.settings(options), options.parts(seed)
    variant = _Variant(options, train, test, seed, tick)
    yield variant.trained("dense", 0.0, variant.network())
    model, tie_break, draws = variant.network(), TieBreaker(seed), list[torch.Tensor]()
    middle = sorted(watch.ratios)[len(watch.ratios) // 2]

    def watched(epoch: int, history: Any) -> None:
        tick(f"seed {seed} search")
        draws.append(early_bird_cnn.channel_mask(model, middle, settings, tie_break).flat())

    start = time.perf_counter()
    found, _ = early_bird_cnn.search(model, train, ratios=watch.ratios, settings=settings, seed=seed, on_epoch=watched)
    searched = time.perf_counter() - start
    # One search finds all tickets: each is charged for the epochs up to its own draw.
    an_epoch = searched / max(1, max(ticket.epoch for ticket in found.values()))
    chance = torch.Generator().manual_seed(seed)
    for ratio in watch.ratios:
        ticket = found[ratio]
        by_chance = make_mask(random(bn_scale(model), chance), ratio=ratio, allow_empty=True)
        for name, mask in (("early bird", ticket.mask), ("random", by_chance)):
            own, start = dataclasses.replace(ticket, mask=mask), time.perf_counter()
            told: dict[str, Any] = {"settings": settings, "start": watch.start, "seed": seed}
            told["on_epoch"] = lambda *_, name=name: tick(f"seed {seed} {name}")
            small, _ = early_bird_cnn.retrain(own, variant.network(), train, **told)
            seconds = time.perf_counter() - start + ticket.epoch * an_epoch
            row = variant.row(name, ratio, small, seconds, mask.density)
            if name == "early bird":
                stem = folder / f"seed-{seed}-p{100 * ratio:g}"
                _write(Path(f"{stem}.mask.safetensors"), dict(mask))
                _write(Path(f"{stem}.network.safetensors"), small.state_dict())
            yield {**row, "epoch_drawn": ticket.epoch, "fired": ticket.fired}
    pairwise = pairwise_distances(torch.stack(draws)).tolist() if draws else []
    yield {"variant": "search", "seed": seed, "ratio": middle, "pairwise": pairwise, "seconds": searched}


@dataclasses.dataclass(frozen=True)
class Levels:
    """Options of lottery tickets.

    Parameters
    ----------
    ratio
        Share of the weights that is gone after the last level.
    levels
        Levels, each removing the same share of what is left; 1: one shot.
    rewind
        Epoch whose weights are rewound to; 0: those at the start.
    layerwise
        Rank each layer alone.
    controls
        Tickets without their luck, trained at every level: reinit, shuffled, "shuffled_global"; or none.
    allow_empty
        Go on when a layer would lose all of its weights.
    """

    ratio: float = 0.9
    levels: int = 6
    rewind: int = 0
    layerwise: bool = False
    controls: tuple[Baseline, ...] = ("reinit", "shuffled")
    allow_empty: bool = False

    def check(self, options: ImageOptions, model: nn.Module) -> None:
        """Raises `ValueError` for a ratio outside [0, 1), no level, and a rewind that leaves nothing to train."""
        geometric(self.ratio, self.levels)
        if not 0 <= self.rewind < (options.epochs or 0):
            raise ValueError(
                f"--rewind (got {self.rewind}), expected at least 0 and fewer than {options.epochs} epochs"
            )


def lottery_levels(options: ImageOptions, levels: Levels, seed: int, folder: Path, tick: Tick) -> Iterator[Row]:
    """All levels of the lottery, then every control of every level; levels are kept in `folder` and gone on with."""
    train, test = options.parts(seed)
    variant = _Variant(options, train, test, seed, tick)
    model = variant.network()

    def training(model: nn.Module, *, start: int, stop: int | None, enforce: Any) -> Row:
        begun = time.perf_counter()
        fit(
            model, train, None, options.settings(), seed=seed, start=start, stop=stop, enforce=enforce,
            on_epoch=lambda *_: tick(f"seed {seed}"),
        )  # fmt: skip
        return {"accuracy": variant.accuracy(model), "seconds": time.perf_counter() - begun}

    own: dict[str, Any] = {name: value for name, value in vars(levels).items() if name != "controls"}
    found = iterative_magnitude_pruning(model, training, **own, seed=seed, folder=folder / f"seed-{seed}")
    for level in found.levels:
        yield _level_row(found, level.number, "ticket" if level.number else "dense", level.result, seed)
    for level in found.levels[1:]:
        for how in levels.controls:
            result = found.baseline(model, training, level.number, how, start=levels.rewind, seed=1000 + seed)
            yield _level_row(found, level.number, how, result, seed)


def _level_row(found: ImpResult, number: int, variant: str, result: Row, seed: int) -> Row:
    mask = found.levels[number].mask
    return {
        "variant": variant,
        "seed": seed,
        "level": number,
        "ratio": mask.sparsity,
        "density": mask.density,
        **result,
    }


@dataclasses.dataclass(frozen=True)
class AtInit:
    """Options of pruning at initialization.

    Parameters
    ----------
    score
        Which weights stay: synflow, snip, grasp, taylor, magnitude, random, even, erk or gem-miner; several may be
        given. A random mask of equal sparsity and the dense network stand beside them.
    ratios
        Shares of the weights to remove.
    """

    score: tuple[Score, ...] = ("synflow",)
    ratios: tuple[float, ...] = (0.5, 0.9, 0.98)

    def check(self, options: ImageOptions, model: nn.Module) -> None:
        """Raises `ValueError` for another score, and for a ratio outside [0, 1) or none."""
        if unknown := [name for name in self.score if name not in get_args(Score)]:
            raise ValueError(f"--score (got {unknown[0]!r}), expected some of {get_args(Score)}")
        if "gem-miner" in self.score and (options.epochs or 0) < 2:
            raise ValueError(f"--epochs (got {options.epochs}), expected at least 2 for gem-miner")
        _check_ratios(self.ratios)

    def variants(self) -> list[Score]:
        """The scores, and the random control, each once."""
        return list(dict.fromkeys([*self.score, "random"]))


def init_prune(options: ImageOptions, at_init: AtInit, seed: int, folder: Path, tick: Tick) -> Iterator[Row]:
    """Dense training; then for every score and ratio a mask on the untrained network, written, and its training."""
    train, test = options.parts(seed)
    variant = _Variant(options, train, test, seed, tick)
    yield variant.trained("dense", 0.0, variant.network())
    for score in at_init.variants():
        for ratio in at_init.ratios:
            model, start = variant.network(), time.perf_counter()
            told = {"settings": options.settings(), "on_epoch": lambda *_, own=score: tick(f"seed {seed} mining")}
            mask = mask_at_init(model, train, score=score, ratio=ratio, seed=seed, **told)  # type: ignore[arg-type]
            searched = time.perf_counter() - start
            _write(folder / f"seed-{seed}-{score}-p{100 * ratio:g}.mask.safetensors", dict(mask))
            kept = {name: int(own.sum()) for name, own in mask.items()}
            row = variant.trained(score, ratio, model, mask)
            yield {**row, "search_seconds": searched, "kept": kept, "emptied": sum(not left for left in kept.values())}


class _Variant:
    """What the rows of one seed share."""

    def __init__(self, options: ImageOptions, train: Images, test: Images, seed: int, tick: Tick) -> None:
        self.options, self.train, self.test, self.seed, self.tick = options, train, test, seed, tick
        self.mean, self.std = train.statistics()
        self.whole = sum(parameter.numel() for parameter in self.network().parameters())

    def network(self) -> Any:
        """A fresh network."""
        return self.options.network(self.train, self.seed)

    def accuracy(self, model: nn.Module) -> float:
        """On the test images."""
        return accuracy(model, self.test, mean=self.mean, std=self.std)

    def trained(self, name: str, ratio: float, model: nn.Module, mask: Mask | None = None) -> Row:
        """The row of a whole training, the mask held."""
        start = time.perf_counter()
        fit(
            model, self.train, None, self.options.settings(), seed=self.seed,
            enforce=None if mask is None else lambda optimizer: enforce_mask(model, mask, optimizer),
            on_epoch=lambda *_: self.tick(f"seed {self.seed} {name}"),
        )  # fmt: skip
        return self.row(name, ratio, model, time.perf_counter() - start, 1.0 if mask is None else mask.density)

    def row(self, name: str, ratio: float, model: nn.Module, seconds: float, density: float) -> Row:
        """What a trained network comes to."""
        size = sum(parameter.numel() for parameter in model.parameters()) / self.whole
        told = {"accuracy": self.accuracy(model), "seconds": seconds, "parameters": size}
        return {"variant": name, "seed": self.seed, "ratio": ratio, "density": density, **told}


def _check_ratios(ratios: tuple[float, ...]) -> None:
    if not ratios:
        raise ValueError("--ratios (got none), expected at least one")
    for ratio in ratios:
        pruned_count(1, ratio)


def _write(path: Path, tensors: Any) -> None:
    write_atomically(path, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))
