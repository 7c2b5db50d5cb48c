"""Lottery tickets of any network: train, prune, rewind, level after level, in anyone's training.

Frankle & Carbin 2019; rewinding to a later step: Frankle et al. 2020.
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
    """One's own training: from step (or epoch) `start` to `stop`, None: to its end.

    It makes a fresh optimizer, calls `enforce(optimizer)` once before the first step, sets its learning-rate schedule
    to `start`, and returns what it measured.
    """

    def __call__(self, model: nn.Module, *, start: int, stop: int | None, enforce: Enforce) -> Any: ...


@dataclass(frozen=True)
class Level:
    """One level: its number (0 is the dense network), the mask it trained with and what the training returned."""

    number: int
    mask: Mask
    result: Any


@dataclass(frozen=True)
class ImpResult:
    """All levels, and the state that weights, and all else in the state dict, were rewound to."""

    levels: tuple[Level, ...]
    rewound: State

    def baseline(
        self, model: nn.Module, train: Train, level: int, how: Baseline, *, start: int = 0, seed: int = 0
    ) -> Any:
        """What the training returns without the ticket's luck; `model` ends as trained.

        "reinit": the level's mask on fresh weights of `model.reset(seed)`; "shuffled": its start weights, as many kept
        entries elsewhere in each tensor, or "shuffled_global" tensors together. `start`: the rewind step.
        """
        mask = self.levels[level].mask
        if how == "reinit":
            model.reset(seed)  # type: ignore[operator]
        elif how in ("shuffled", "shuffled_global"):
            model.load_state_dict(self.rewound)
            generator = torch.Generator().manual_seed(seed)
            mask = shuffled(mask, generator=generator, within="layer" if how == "shuffled" else "all")
        else:
            raise ValueError(f"control (got {how!r}), expected 'reinit', 'shuffled' or 'shuffled_global'")
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

    Level l keeps n - floor((1 - (1 - ratio)^(l / levels)) n) weights: those of largest trained magnitude among the ones
    left, all tensors together or each alone (`layerwise`), ties by a random order of `seed`; the last level has `ratio`
    exactly, one level is one shot. Or `ratio` has those of all levels, rising, and `levels` is left out; a first one
    above 0 prunes the magnitudes at the rewind point before anything is trained from there.
    What is rewound is the whole state after step `rewind`, buffers too (0: as given), but for the tensors of the names
    in `stays`, which go on from level to level as trained.
    `folder`: every finished level is kept there, and a call with the same folder goes on after the last one; results
    must then be what JSON can hold. `model` ends as the last level trained it.
    Raises `ValueError` for a ratio outside [0, 1), fewer than 1 level, a ratio that empties a layer (unless
    `allow_empty`), a name that the state does not have, or a folder of another lottery.
    """
    if rewind < 0:
        raise ValueError(f"rewind (got {rewind}), expected at least 0")
    ratios = _ratios(ratio, levels)
    chosen = dict(weights) if weights is not None else prunable_weights(model)
    own = ratios if levels is None else ratio
    told: dict[str, Any] = {"ratio": own, "levels": levels, "rewind": rewind, "layerwise": layerwise, "seed": seed}
    if stays:
        told["stays"] = sorted(stays)
    kept = _Kept(Path(folder), told) if folder is not None else None
    rewound = _rewind_point(model, train, rewind, kept)
    if unknown := sorted(set(stays) - rewound.keys()):
        raise ValueError(f"stays (got {unknown[0]!r}), expected names of the state dict, as {next(iter(rewound))!r}")
    model.load_state_dict(rewound)
    tie_break, found, mask = TieBreaker(seed), list[Level](), Mask.ones(chosen)
    for number, share in enumerate(ratios):
        mask = _thinner(mask, magnitude(chosen), share, layerwise, tie_break, allow_empty)
        if kept is not None and kept.has(number):
            state, result = kept.level(number)
            model.load_state_dict(state)
        else:
            model.load_state_dict({name: own for name, own in rewound.items() if name not in stays}, strict=False)
            result = _train(model, train, mask, rewind, None)
            if kept is not None:
                kept.keep(number, _copied(model), result)
        found.append(Level(number, mask, result))
    return ImpResult(tuple(found), rewound)


def _ratios(ratio: float | Sequence[float], levels: int | None) -> list[float]:
    """Of all levels, from level 0."""
    if not isinstance(ratio, Sequence):
        return [0.0, *geometric(ratio, 0 if levels is None else levels)]
    if levels is not None or not ratio or list(ratio) != sorted(ratio):
        got = f"{list(ratio)}, {levels}"
        raise ValueError(f"ratio, levels (got {got}), expected one ratio and levels, or rising ratios and no levels")
    return list(ratio)


def _rewind_point(model: nn.Module, train: Train, rewind: int, kept: _Kept | None) -> State:
    if kept is not None and kept.has("rewind"):
        return kept.level("rewind")[0]
    if rewind:
        train(model, start=0, stop=rewind, enforce=lambda optimizer: None)
    state = _copied(model)
    if kept is not None:
        kept.keep("rewind", state, None)
    return state


def _train(model: nn.Module, train: Train, mask: Mask, start: int, stop: int | None) -> Any:
    mask.apply_(dict(model.named_parameters()))
    result = train(model, start=start, stop=stop, enforce=lambda optimizer: enforce_mask(model, mask, optimizer))
    parameters = dict(model.named_parameters())
    for name, own in mask.items():
        if bool(parameters[name].detach()[~own].any()):
            raise ValueError(
                f"pruned entries of {name!r} (got non-zero), expected zero; call holding(optimizer) in train"
            )
    return result


def _thinner(
    mask: Mask, scores: Mapping[str, Tensor], ratio: float, layerwise: bool, tie_break: TieBreaker, allow_empty: bool
) -> Mask:
    def thin(flat: Tensor, left: Tensor) -> Tensor:
        gone = left.numel() - int(left.sum())
        return thinned(flat, left, max(0, pruned_count(left.numel(), ratio) - gone), tie_break)

    if layerwise:
        kept = {name: thin(scores[name].flatten(), own.flatten()).view(own.shape) for name, own in mask.items()}
    else:
        together = thin(torch.cat([scores[name].flatten() for name in mask]), mask.flat())
        parts = together.split([own.numel() for own in mask.values()])
        kept = {name: part.view(mask[name].shape) for name, part in zip(mask, parts, strict=True)}
    if not allow_empty:
        check_no_layer_empty(Mask(kept), ratio)
    return Mask(kept)


def _copied(model: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class _Kept:
    """Finished levels in a folder: a state and a result each, whole or not there."""

    def __init__(self, folder: Path, told: Mapping[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        about = folder / "lottery.json"
        if about.is_file():
            before = json.loads(about.read_text())
            if before != told:
                differs = sorted(name for name in told if before.get(name) != told[name])
                raise ValueError(
                    f"folder {folder} (got a lottery of other {', '.join(differs)}), expected the same one"
                )
        else:
            write_atomically(about, json.dumps(told))

    def has(self, number: int | str) -> bool:
        return self._path(number).is_file()

    def level(self, number: int | str) -> tuple[State, Any]:
        from safetensors import safe_open

        with safe_open(self._path(number), framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return state, json.loads((file.metadata() or {})["result"])

    def keep(self, number: int | str, state: State, result: Any) -> None:
        from safetensors.torch import save

        # Tied tensors share memory, which the format does not; each is written by itself.
        alone = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}
        write_atomically(self._path(number), save(alone, {"result": json.dumps(result)}))

    def _path(self, number: int | str) -> Path:
        return self.folder / (f"level-{number}.safetensors" if isinstance(number, int) else f"{number}.safetensors")
