"""Runs over images: one training after the other, each a row of the record as soon as it is done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import nn

from gebt._files import write_atomically
from gebt.data.images import Images
from gebt.experiments.images.options import ImageOptions
from gebt.experiments.option_groups import RETRAINING, RUN, SEARCH
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

    Attributes:
        ratios: Shares of the channels to prune, each with a detector of its own.
        threshold: Mask distance below which the search ends.
        window: Number of earlier masks that the newest one is compared with.
        compare: Which distances must be below the threshold.
            previous: of masks of consecutive epochs (EB-Train's paper).
            window: of the newest to all in the window (its code).
        scale_l1: Coefficient of the L1 penalty on batch-norm scales.
        min_keep: Share of every layer's channels that is kept, whatever their scales.
        start: Start weights of the retraining.
            inherit: those of the epoch in which the mask was drawn.
            reinit: fresh random ones.
        low_precision: Training in simulated 8 bits.
            no: none.
            LF: the search.
            LL: search and retraining.
    """

    ratios: Annotated[tuple[float, ...], SEARCH] = (0.3, 0.5, 0.7)
    threshold: Annotated[float, SEARCH] = 0.1
    window: Annotated[int, SEARCH] = 4
    compare: Annotated[Compare, SEARCH] = "window"
    scale_l1: Annotated[float, SEARCH] = 1e-4
    min_keep: Annotated[float, SEARCH] = 0.1
    start: Annotated[early_bird_cnn.Start, RETRAINING] = "inherit"
    low_precision: Annotated[Literal["no", "LF", "LL"], SEARCH] = "no"

    def check(self, options: ImageOptions, model: nn.Module) -> None:
        """Raises `ValueError` for a ratio outside [0, 1), or none, and a network without batch-norm scales."""
        _check_ratios(self.ratios)
        self.settings(options)
        bn_scale(model)

    def settings(self, options: ImageOptions) -> CnnSettings:
        """The settings of the recipe, for resolved `options`."""
        bits, after = (None if self.low_precision == "no" else 8), (8 if self.low_precision == "LL" else None)
        chosen = {name: getattr(self, name) for name in ("threshold", "window", "compare", "scale_l1", "min_keep")}
        return CnnSettings(**options.training(), **chosen, bits=bits, bits_after=after)


def early_bird(options: ImageOptions, watch: Watch, seed: int, folder: Path, tick: Tick) -> Iterator[Row]:
    """Dense training; then for every ratio the early-bird ticket, and a random mask that keeps as many channels.

    Tickets are written: the mask over batch-norm scales and the trained smaller network.

    Args:
        options: resolved.
        watch: options of the search.
        seed: of start weights, order of images and random masks.
        folder: where tickets are written.
        tick: called once an epoch, with what is trained.

    Yields:
        A row for every training; the search's comes last, with the distances of its draws at the middle ratio.
    """
    settings, (train, test) = watch.settings(options), options.parts(seed)
    variant = _Variant(options, train, test, seed, tick)
    yield variant.trained("dense", 0.0, variant.network())
    model, tie_break, draws = variant.network(), TieBreaker(seed), list[torch.Tensor]()
    middle = sorted(watch.ratios)[len(watch.ratios) // 2]

    def on_search_epoch(epoch: int, history: Any) -> None:
        tick(f"seed {seed} search")
        draws.append(early_bird_cnn.channel_mask(model, middle, settings, tie_break).flat())

    start = time.perf_counter()
    tickets, _ = early_bird_cnn.search(
        model, train, ratios=watch.ratios, settings=settings, seed=seed, on_epoch=on_search_epoch
    )
    searched = time.perf_counter() - start
    # One search finds all tickets: each is charged for the epochs up to its own draw.
    an_epoch = searched / max(1, max(ticket.epoch for ticket in tickets.values()))
    generator = torch.Generator().manual_seed(seed)
    for ratio in watch.ratios:
        ticket = tickets[ratio]
        random_mask = make_mask(random(bn_scale(model), generator), ratio=ratio, allow_empty=True)
        for name, mask in (("early bird", ticket.mask), ("random", random_mask)):
            masked, start = dataclasses.replace(ticket, mask=mask), time.perf_counter()
            training: dict[str, Any] = {"settings": settings, "start": watch.start, "seed": seed}
            training["on_epoch"] = lambda *_, name=name: tick(f"seed {seed} {name}")
            small, _ = early_bird_cnn.retrain(masked, variant.network(), train, **training)
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
    """Options of iterative magnitude pruning.

    Attributes:
        ratio: Share of the weights that is pruned after the last level.
        levels: Number of levels, each pruning the same share of the remaining weights; 1: one-shot pruning.
        rewind: Epoch whose weights are rewound to; 0: the start weights.
        layerwise: Rank each layer alone.
        controls: Baselines trained at every level, at equal sparsity.
            reinit: the ticket's mask, fresh start weights.
            shuffled: its start weights, its mask shuffled in each layer.
            shuffled_global: its mask shuffled over all layers.
        allow_empty: Go on when a layer would lose all of its weights.
    """

    ratio: Annotated[float, SEARCH] = 0.9
    levels: Annotated[int, SEARCH] = 6
    rewind: Annotated[int, SEARCH] = 0
    layerwise: Annotated[bool, SEARCH] = False
    controls: Annotated[tuple[Baseline, ...], RUN] = ("reinit", "shuffled")
    allow_empty: Annotated[bool, SEARCH] = False

    def check(self, options: ImageOptions, model: nn.Module) -> None:
        """Raises `ValueError` for a ratio outside [0, 1), no level, and a rewind that leaves nothing to train."""
        geometric(self.ratio, self.levels)
        if not 0 <= self.rewind < (options.epochs or 0):
            raise ValueError(
                f"--rewind (got {self.rewind}), expected at least 0 and fewer than {options.epochs} epochs"
            )


def lottery_levels(options: ImageOptions, levels: Levels, seed: int, folder: Path, tick: Tick) -> Iterator[Row]:
    """All levels of iterative magnitude pruning, then every baseline of every level.

    Args:
        options: resolved.
        levels: options of the pruning.
        seed: of start weights and order of images.
        folder: finished levels are saved there, and a call with the same folder goes on after the last one.
        tick: called once an epoch, with what is trained.

    Yields:
        A row for every training.
    """
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

    settings: dict[str, Any] = {name: value for name, value in vars(levels).items() if name != "controls"}
    pruned = iterative_magnitude_pruning(model, training, **settings, seed=seed, folder=folder / f"seed-{seed}")
    for level in pruned.levels:
        yield _level_row(pruned, level.number, "ticket" if level.number else "dense", level.result, seed)
    for level in pruned.levels[1:]:
        for how in levels.controls:
            result = pruned.baseline(model, training, level.number, how, start=levels.rewind, seed=1000 + seed)
            yield _level_row(pruned, level.number, how, result, seed)


def _level_row(pruned: ImpResult, number: int, variant: str, result: Row, seed: int) -> Row:
    mask = pruned.levels[number].mask
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

    Attributes:
        score: What ranks the weights; several are possible, and random always runs.
            synflow: |w| dR/d|w|, R the output of |w| (Tanaka et al. 2020).
            snip: |w dL/dw| (Lee et al. 2019).
            grasp: w (H g), g gradient, H Hessian (Wang et al. 2020).
            taylor: (w dL/dw)^2 (Molchanov et al. 2019).
            magnitude: |w|.
            random: random, over all layers together.
            uniform: random, the same share of every layer.
            erk: random, Erdos-Renyi-Kernel shares (Evci et al. 2020).
            gem-miner: trained scores (Sreenivasan et al. 2022).
        ratios: Shares of the weights to prune.
    """

    score: Annotated[tuple[Score, ...], SEARCH] = ("synflow",)
    ratios: Annotated[tuple[float, ...], SEARCH] = (0.5, 0.9, 0.98)

    def check(self, options: ImageOptions, model: nn.Module) -> None:
        """Raises `ValueError` for another score, and for a ratio outside [0, 1) or none."""
        if unknown := [name for name in self.score if name not in get_args(Score)]:
            raise ValueError(f"--score (got {unknown[0]!r}), expected some of {get_args(Score)}")
        if "gem-miner" in self.score and (options.epochs or 0) < 2:
            raise ValueError(f"--epochs (got {options.epochs}), expected at least 2 for gem-miner")
        _check_ratios(self.ratios)

    def variants(self) -> list[Score]:
        """The scores, and the random baseline, each once.

        Returns:
            Names, "random" last unless it was asked for.

        Example:
            >>> AtInit(score=("snip", "snip", "erk")).variants()
            ['snip', 'erk', 'random']
        """
        return list(dict.fromkeys([*self.score, "random"]))


def init_prune(options: ImageOptions, at_init: AtInit, seed: int, folder: Path, tick: Tick) -> Iterator[Row]:
    """Dense training; then for every score and ratio a mask on the untrained network, and its training.

    Args:
        options: resolved.
        at_init: scores and ratios.
        seed: of start weights, order of images and random masks.
        folder: where masks are written.
        tick: called once an epoch, with what is trained.

    Yields:
        A row for every training.
    """
    train, test = options.parts(seed)
    variant = _Variant(options, train, test, seed, tick)
    yield variant.trained("dense", 0.0, variant.network())
    for score in at_init.variants():
        for ratio in at_init.ratios:
            model, start = variant.network(), time.perf_counter()
            mask = mask_at_init(
                model, train, score=score, ratio=ratio, seed=seed, settings=options.settings(),
                on_epoch=lambda *_: tick(f"seed {seed} mining"),
            )  # fmt: skip
            searched = time.perf_counter() - start
            _write(folder / f"seed-{seed}-{score}-p{100 * ratio:g}.mask.safetensors", dict(mask))
            kept = {name: int(stays.sum()) for name, stays in mask.items()}
            row = variant.trained(score, ratio, model, mask)
            yield {
                **row,
                "search_seconds": searched,
                "kept": kept,
                "emptied": sum(not count for count in kept.values()),
            }


class _Variant:
    """What the rows of one seed share."""

    def __init__(self, options: ImageOptions, train: Images, test: Images, seed: int, tick: Tick) -> None:
        self.options, self.train, self.test, self.seed, self.tick = options, train, test, seed, tick
        self.mean, self.std = train.statistics()
        self.parameters = sum(parameter.numel() for parameter in self.network().parameters())

    def network(self) -> Any:
        """A fresh network."""
        return self.options.network(self.train, self.seed)

    def accuracy(self, model: nn.Module) -> float:
        """Accuracy on the test images."""
        return accuracy(model, self.test, mean=self.mean, std=self.std)

    def trained(self, name: str, ratio: float, model: nn.Module, mask: Mask | None = None) -> Row:
        """The row of a full training, with the mask enforced."""
        start = time.perf_counter()
        fit(
            model, self.train, None, self.options.settings(), seed=self.seed,
            enforce=None if mask is None else lambda optimizer: enforce_mask(model, mask, optimizer),
            on_epoch=lambda *_: self.tick(f"seed {self.seed} {name}"),
        )  # fmt: skip
        return self.row(name, ratio, model, time.perf_counter() - start, 1.0 if mask is None else mask.density)

    def row(self, name: str, ratio: float, model: nn.Module, seconds: float, density: float) -> Row:
        """The measures of a trained network."""
        size = sum(parameter.numel() for parameter in model.parameters()) / self.parameters
        measured = {"accuracy": self.accuracy(model), "seconds": seconds, "parameters": size}
        return {"variant": name, "seed": self.seed, "ratio": ratio, "density": density, **measured}


def _check_ratios(ratios: tuple[float, ...]) -> None:
    if not ratios:
        raise ValueError("--ratios (got none), expected at least one")
    for ratio in ratios:
        pruned_count(1, ratio)


def _write(path: Path, tensors: Any) -> None:
    write_atomically(path, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))
