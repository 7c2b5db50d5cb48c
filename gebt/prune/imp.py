"""Iterative magnitude pruning of any network: train, prune, rewind, level after level, with any training function.

Source: Frankle & Carbin 2019; rewinding to a later step: Frankle et al. 2020.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn, optim

from gebt._files import write_atomically
from gebt.prune.enforce import enforce_mask
from gebt.prune.mask import Mask
from gebt.prune.random_masks import shuffled
from gebt.prune.schedule import geometric
from gebt.prune.scores import magnitude, prunable_weights
from gebt.prune.selection import check_no_layer_empty, pruned_count, thinned
from gebt.prune.tie_breaking import TieBreaker

Enforce = Callable[[optim.Optimizer], object]
Baseline = Literal["reinit", "shuffled", "shuffled_global"]
State = dict[str, Tensor]


class Train(Protocol):
    """A training function: trains `model` from step (or epoch) `start` to `stop`; None: to the end.

    It makes a fresh optimizer, calls `enforce(optimizer)` once before the first step, sets its learning-rate schedule
    to `start`, and returns what it measured.
    """

    def __call__(self, model: nn.Module, *, start: int, stop: int | None, enforce: Enforce) -> Any: ...


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes:
        number: 0 is the dense network.
        mask: the mask that the level trained with.
        result: what the training returned.
    """

    number: int
    mask: Mask
    result: Any


@dataclass(frozen=True)
class ImpResult:
    """What `iterative_magnitude_pruning` returns.

    Attributes:
        levels: all levels, the dense network first.
        rewound: the state dict (weights, buffers) that every level starts from.
    """

    levels: tuple[Level, ...]
    rewound: State

    def baseline(
        self, model: nn.Module, train: Train, level: int, how: Baseline, *, start: int = 0, seed: int = 0
    ) -> Any:
        """Trains a baseline that a level's ticket must beat; `model` ends as trained.

        Args:
            model: the network that was pruned.
            train: its training function.
            level: whose mask.
            how: "reinit": the level's mask on new weights, of `model.reset(seed)`. "shuffled": the start weights, and
                as many kept entries elsewhere in each tensor; "shuffled_global": in all tensors together.
            start: the rewind step.
            seed: of the new weights or the shuffle.

        Returns:
            What the training returns.

        Raises:
            ValueError: for another `how`.
        """
        mask = self.levels[level].mask
        if how == "reinit":
            model.reset(seed)  # type: ignore[operator]
        elif how in ("shuffled", "shuffled_global"):
            model.load_state_dict(self.rewound)
            generator = torch.Generator().manual_seed(seed)
            mask = shuffled(mask, generator=generator, within="layer" if how == "shuffled" else "all")
        else:
            raise ValueError(f"how (got {how!r}), expected 'reinit', 'shuffled' or 'shuffled_global'")
        return _train(model, train, mask, start, None)


def iterative_magnitude_pruning(
    model: nn.Module,
    train: Train,
    *,
    ratio: float | Sequence[float],
    levels: int | None = None,
    rewind: int = 0,
    weights: Mapping[str, nn.Parameter] | None = None,
    layerwise: bool = False,
    stays: Collection[str] = (),
    allow_empty: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
) -> ImpResult:
    """Level 0 trains the dense network; each further level prunes the trained weights, rewinds and trains again.

    Level l keeps n - floor((1 - (1 - ratio)^(l / levels)) n) weights: of those not yet pruned, the ones of largest
    trained magnitude. `model` ends as the last level trained it.

    Args:
        model: the network, with its start weights.
        train: its training function (`Train`).
        ratio: share of the weights pruned at the last level, exactly. Or those of all levels, rising, without `levels`;
            a first one above 0 prunes the magnitudes at the rewind point before anything is trained from there.
        levels: how many levels; 1 is one shot.
        rewind: the step whose state (buffers too) every level starts from; 0: the state at the call.
        weights: what is pruned, by name; default: `prunable_weights`.
        layerwise: ranks each tensor alone instead of all together.
        stays: names in the state dict of what is not rewound but goes on from level to level as trained.
        allow_empty: a tensor may lose every entry.
        seed: of the random order of ties.
        folder: where every finished level is stored; a call with the same folder goes on after the last one. Results
            must then be what JSON can hold.

    Returns:
        All levels and the state they start from.

    Raises:
        ValueError: for a ratio outside [0, 1), fewer than 1 level, a ratio that empties a layer (unless `allow_empty`),
            a name that the state does not have, a folder of a run with other options, or a training that leaves pruned
            entries other than zero.

    Example:
        >>> def train(model, *, start, stop, enforce):
        ...     optimizer = optim.SGD(model.parameters(), lr=0.1)
        ...     enforce(optimizer)
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        ...     return sum(int(p.count_nonzero()) for p in model.parameters())
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 2, bias=False))
        >>> result = iterative_magnitude_pruning(model, train, ratio=0.75, levels=2, layerwise=True)
        >>> [(level.number, level.result) for level in result.levels]
        [(0, 16), (1, 8), (2, 4)]
    """
    if rewind < 0:
        raise ValueError(f"rewind (got {rewind}), expected at least 0")
    ratios = _ratios(ratio, levels)
    chosen = dict(weights) if weights is not None else prunable_weights(model)
    options: dict[str, Any] = {
        "ratio": ratios if levels is None else ratio,
        "levels": levels,
        "rewind": rewind,
        "layerwise": layerwise,
        "seed": seed,
    }
    if stays:
        options["stays"] = sorted(stays)
    stored = _StoredLevels(Path(folder), options) if folder is not None else None
    rewound = _rewind_point(model, train, rewind, stored)
    if unknown := sorted(set(stays) - rewound.keys()):
        raise ValueError(f"stays (got {unknown[0]!r}), expected names of the state dict, as {next(iter(rewound))!r}")
    model.load_state_dict(rewound)
    tie_break, done, mask = TieBreaker(seed), list[Level](), Mask.ones(chosen)
    for number, share in enumerate(ratios):
        mask = _thinner(mask, magnitude(chosen), share, layerwise, tie_break, allow_empty)
        if stored is not None and stored.has(number):
            state, result = stored.load(number)
            model.load_state_dict(state)
        else:
            model.load_state_dict({name: t for name, t in rewound.items() if name not in stays}, strict=False)
            result = _train(model, train, mask, rewind, None)
            if stored is not None:
                stored.save(number, _copied(model), result)
        done.append(Level(number, mask, result))
    return ImpResult(tuple(done), rewound)


def _ratios(ratio: float | Sequence[float], levels: int | None) -> list[float]:
    """Of all levels, from level 0."""
    if not isinstance(ratio, Sequence):
        return [0.0, *geometric(ratio, 0 if levels is None else levels)]
    if levels is not None or not ratio or list(ratio) != sorted(ratio):
        got = f"{list(ratio)}, {levels}"
        raise ValueError(f"ratio, levels (got {got}), expected one ratio and levels, or rising ratios and no levels")
    return list(ratio)


def _rewind_point(model: nn.Module, train: Train, rewind: int, stored: _StoredLevels | None) -> State:
    if stored is not None and stored.has("rewind"):
        return stored.load("rewind")[0]
    if rewind:
        train(model, start=0, stop=rewind, enforce=lambda optimizer: None)
    state = _copied(model)
    if stored is not None:
        stored.save("rewind", state, None)
    return state


def _train(model: nn.Module, train: Train, mask: Mask, start: int, stop: int | None) -> Any:
    mask.apply_(dict(model.named_parameters()))
    result = train(model, start=start, stop=stop, enforce=lambda optimizer: enforce_mask(model, mask, optimizer))
    parameters = dict(model.named_parameters())
    for name, kept in mask.items():
        if bool(parameters[name].detach()[~kept].any()):
            raise ValueError(
                f"pruned entries of {name!r} (got non-zero), expected zero; call enforce(optimizer) in train"
            )
    return result


def _thinner(
    mask: Mask, scores: Mapping[str, Tensor], ratio: float, layerwise: bool, tie_break: TieBreaker, allow_empty: bool
) -> Mask:
    def thin(flat: Tensor, kept: Tensor) -> Tensor:
        pruned = kept.numel() - int(kept.sum())
        return thinned(flat, kept, max(0, pruned_count(kept.numel(), ratio) - pruned), tie_break)

    if layerwise:
        tensors = {name: thin(scores[name].flatten(), kept.flatten()).view(kept.shape) for name, kept in mask.items()}
    else:
        together = thin(torch.cat([scores[name].flatten() for name in mask]), mask.flat())
        parts = together.split([shape.numel() for shape in mask.shapes.values()])
        tensors = {name: part.view(mask[name].shape) for name, part in zip(mask, parts, strict=True)}
    thinner = Mask(tensors)
    if not allow_empty:
        check_no_layer_empty(thinner, ratio)
    return thinner


def _copied(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class _StoredLevels:
    """Finished levels in a folder: a state and a result each, in full or not there."""

    def __init__(self, folder: Path, options: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / "lottery.json"
        if about.is_file():
            before = json.loads(about.read_text())
            if before != options:
                differs = sorted(name for name in options if before.get(name) != options[name])
                raise ValueError(f"folder {folder} (got a run with other {', '.join(differs)}), expected the same")
        else:
            write_atomically(about, json.dumps(options))

    def has(self, number: int | str) -> bool:
        return self._path(number).is_file()

    def load(self, number: int | str) -> tuple[State, Any]:
        from safetensors import safe_open

        with safe_open(self._path(number), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return state, json.loads((file.metadata() or {})["result"])

    def save(self, number: int | str, state: State, result: Any) -> None:
        from safetensors.torch import save

        # Tied tensors share memory, which the format does not; each is written by itself.
        separate = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
        write_atomically(self._path(number), save(separate, {"result": json.dumps(result)}))

    def _path(self, number: int | str) -> Path:
        return self.folder / (f"level-{number}.safetensors" if isinstance(number, int) else f"{number}.safetensors")
