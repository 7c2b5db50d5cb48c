"""What the callbacks do, whichever library calls them; none of these libraries is imported here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn, optim
from torch.utils.hooks import RemovableHandle

from gebt.prune.detector import EarlyBird
from gebt.prune.enforce import enforce_mask, parameters_of
from gebt.prune.mask import Mask, pack_bits, unpack_bits
from gebt.prune.scores import magnitude, prunable_weights
from gebt.prune.selection import Scope, make_mask, pruned_count
from gebt.prune.tie_breaking import TieBreaker

Scores = Callable[[nn.Module], Mapping[str, Tensor]]
Optimizers = Sequence[optim.Optimizer]


def weight_magnitude(model: nn.Module) -> dict[str, Tensor]:
    """|w| of the model's prunable weights."""
    return magnitude(prunable_weights(model))


class EarlyBirdState:
    """Draws a mask at the end of every epoch, or every `every` optimizer steps, until the detector fires.

    `scores(model)` (default: |w| of `prunable_weights`), `ratio`, `scope` and `allow_empty` as in `gebt.make_mask`,
    ties by one random order of `seed`. `detector`: a fresh `gebt.EarlyBird`. Once it has fired there are no more draws:
    the training is stopped, or (`stop=False`) goes on with the mask enforced. `name` is what is logged and saved under;
    give another one to each of several callbacks. Of many processes the first one's masks count.

    `mask`: the newest one; `epoch_drawn`, `step_drawn`: whole epochs and optimizer steps trained before it was drawn;
    `fired`; `trajectory`: the detector's. A resumed training needs the same arguments, and fires when it would have.
    Raises `ValueError` as `make_mask`, and for a state of another ratio or scope.
    """

    def __init__(
        self,
        *,
        ratio: float,
        scores: Scores = weight_magnitude,
        detector: EarlyBird | None = None,
        scope: Scope = "global",
        every: int | None = None,
        stop: bool = True,
        allow_empty: bool = False,
        seed: int = 0,
        name: str = "early_bird",
    ) -> None:
        super().__init__()
        pruned_count(1, ratio)
        if every is not None:
            _refuse_every(every)
        self.ratio, self.scope, self.every, self.stop, self.name = ratio, scope, every, stop, name
        self.detector = detector or EarlyBird()
        self.mask: Mask | None = None
        self.epoch_drawn = self.step_drawn = 0
        self._draw = _Draw(scores, scope, allow_empty, seed)
        self._holding = _Holding()

    @property
    def fired(self) -> bool:
        """Whether the detector has fired."""
        return self.detector.fired

    @property
    def trajectory(self) -> list[dict[str, float]]:
        """The distances so far, as `EarlyBird.trajectory`."""
        return self.detector.trajectory

    @property
    def wants_stop(self) -> bool:
        """Whether the training should end now."""
        return self.fired and self.stop

    def begin(self, model: nn.Module, optimizers: Optimizers) -> None:
        """At the start of a training, fresh or resumed."""
        if self.mask is not None and self.fired and not self.stop:
            self._holding.of(model, self.mask, optimizers)

    def draw(self, model: nn.Module, optimizers: Optimizers, epoch: int, step: int) -> dict[str, float]:
        """Draws once for a step; returns what is to be logged."""
        if self.fired or (self.mask is not None and step == self.step_drawn):
            return {}
        self.mask, self.epoch_drawn, self.step_drawn = self._draw(model, self.ratio), epoch, step
        self.detector.update(self.mask)
        self.begin(model, optimizers)
        return {f"{self.name}/distance": self.trajectory[-1]["criterion"]} if self.trajectory else {}

    def draw_every(self, model: nn.Module, optimizers: Optimizers, epoch: int, step: int) -> dict[str, float]:
        """After an optimizer step: draws if it is time."""
        if self.every is None or step == 0 or step % self.every:
            return {}
        return self.draw(model, optimizers, epoch, step)

    def end(self) -> None:
        """At the end of a training."""
        self._holding.release()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs (tensors, numbers, strings)."""
        return {
            "settings": self._settings(),
            "detector": self.detector.state_dict(),
            "mask": None if self.mask is None else self.mask.state(),
            "epoch_drawn": self.epoch_drawn,
            "step_drawn": self.step_drawn,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        saved, own = state_dict["settings"], self._settings()
        if saved != own:
            raise ValueError(f"state of {self.name!r} (got one of {saved}), expected {own}; resume with the same")
        self.detector.load_state_dict(state_dict["detector"])
        self.mask = None if state_dict["mask"] is None else Mask.of_state(state_dict["mask"])
        self.epoch_drawn, self.step_drawn = state_dict["epoch_drawn"], state_dict["step_drawn"]

    def _settings(self) -> dict[str, Any]:
        return {"ratio": self.ratio, "scope": self.scope}


class MaskEnforcer:
    """Holds a ticket's `mask`, or masks that it draws along a pruning `schedule`: pruned weights are always zero.

    `schedule(step)` is the share to prune after so many optimizer steps: `functools.partial(gebt.prune.schedule.cubic,
    ratio=0.9, begin=0, end=1000)`. A mask is drawn when the share has changed, at steps that `every` divides and when
    the schedule comes to rest, so that it ends where the schedule does. Scores that are zero for pruned weights, such
    as magnitudes, make masks thinner and thinner; where the share falls, some weights may grow again. `scores`,
    `scope`, `allow_empty`, `seed` and `name` as in `EarlyBirdState`.

    `mask`: the one enforced; `ratio`: its sparsity. A resumed training goes on with its mask. Raises `ValueError` as
    `make_mask` and `enforce_mask`, for both or none of `mask` and `schedule`, and for a state of another mask.
    """

    def __init__(
        self,
        mask: Mask | None = None,
        *,
        schedule: Callable[[int], float] | None = None,
        scores: Scores = weight_magnitude,
        every: int = 100,
        scope: Scope = "global",
        allow_empty: bool = False,
        seed: int = 0,
        name: str = "ticket",
    ) -> None:
        super().__init__()
        if (mask is None) == (schedule is None):
            got = "none" if mask is None else "both"
            raise ValueError(f"mask, schedule (got {got}), expected one of them")
        _refuse_every(every)
        self.mask, self.schedule, self.every, self.scope, self.name = mask, schedule, every, scope, name
        self.ratio: float | None = None
        self._draw = _Draw(scores, scope, allow_empty, seed)
        self._holding = _Holding()

    def begin(self, model: nn.Module, optimizers: Optimizers, step: int) -> None:
        """At the start of a training, fresh or resumed at `step`."""
        if self.schedule is not None and (self.mask is None or step == 0):
            self._thin(model, self.schedule(step))
        self._held(model, optimizers)

    def after_step(self, model: nn.Module, optimizers: Optimizers, step: int) -> dict[str, float]:
        """After an optimizer step: draws if it is time; returns what is to be logged."""
        if self.schedule is None:
            return {}
        ratio = self.schedule(step)
        if ratio == self.ratio or (step % self.every and self.schedule(step + 1) != ratio):
            return {}
        self._thin(model, ratio)
        return {f"{self.name}/sparsity": self._held(model, optimizers).sparsity}

    def end(self, model: nn.Module) -> None:
        """At the end of a training, in which other weights may have been loaded: of its best epoch, say."""
        if self.mask is not None:
            self.mask.apply_(parameters_of(model, self.mask))
        self._holding.release()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs (tensors, numbers, strings)."""
        return {"mask": None if self.mask is None else self.mask.state(), "ratio": self.ratio}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        mask = None if state_dict["mask"] is None else Mask.of_state(state_dict["mask"])
        if self.schedule is None and mask != self.mask:
            raise ValueError(f"state of {self.name!r} (got another mask: {mask}), expected the one given: {self.mask}")
        self.mask, self.ratio = mask, state_dict["ratio"]

    def _thin(self, model: nn.Module, ratio: float) -> None:
        self.mask, self.ratio = self._draw(model, ratio), ratio

    def _held(self, model: nn.Module, optimizers: Optimizers) -> Mask:
        assert self.mask is not None
        self._holding.of(model, self.mask, optimizers)
        return self.mask


class _Draw:
    """Draws masks of a model, on the CPU, the same ones in every process."""

    def __init__(self, scores: Scores, scope: Scope, allow_empty: bool, seed: int) -> None:
        self._scores, self._scope, self._allow_empty, self._tie_break = scores, scope, allow_empty, TieBreaker(seed)

    def __call__(self, model: nn.Module, ratio: float) -> Mask:
        scores = {name: _whole(score) for name, score in self._scores(model).items()}
        mask = make_mask(
            scores, ratio=ratio, scope=self._scope, tie_break=self._tie_break, allow_empty=self._allow_empty
        )
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            mask = _of_first_process(mask, next(model.parameters()).device)
        # A state comes back on the CPU, and the detector compares masks from before with masks from after.
        return Mask({name: kept.cpu() for name, kept in mask.items()})


class _Holding:
    """The mask that is held now, if any."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def of(self, model: nn.Module, mask: Mask, optimizers: Optimizers) -> None:
        """Lets go of the mask before and holds this one, each tensor in the optimizers that train it."""
        self.release()
        parameters = parameters_of(model, mask)
        trained = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in optimizers]
        for name, parameter in parameters.items():
            if not any(id(parameter) in own for own in trained):
                raise ValueError(
                    f"parameter {name!r} (got none in {len(optimizers)} optimizers), expected one of them to train it"
                )
        for optimizer, ids in zip(optimizers, trained, strict=True):
            own = {name: mask[name] for name, parameter in parameters.items() if id(parameter) in ids}
            if own:
                self._handles.append(enforce_mask(model, Mask(own), optimizer))

    def release(self) -> None:
        """Lets go."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _refuse_every(every: int) -> None:
    if every < 1:
        raise ValueError(f"every (got {every}), expected at least 1 step")


def _whole(score: Any) -> Tensor:
    """A score of a sharded model from all its shards."""
    return score.full_tensor() if hasattr(score, "full_tensor") else score


def _of_first_process(mask: Mask, device: torch.device) -> Mask:
    bits = pack_bits(mask.flat()).to(device)
    distributed.broadcast(bits, 0)
    parts = unpack_bits(bits, (mask.size,)).split([shape.numel() for shape in mask.shapes.values()])
    return Mask({name: part.view(shape) for (name, shape), part in zip(mask.shapes.items(), parts, strict=True)})
