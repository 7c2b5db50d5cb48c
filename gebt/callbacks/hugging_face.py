"""Callbacks for the Trainer of Hugging Face (extra "accelerate"): early-bird tickets found, and tickets held."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        f"callbacks for Hugging Face (got {error}), expected transformers; pip install 'gebt[transformers]'"
    ) from error

from gebt.callbacks.core import EarlyBirdState, MaskEnforcer


class EarlyBirdCallback(EarlyBirdState, TrainerCallback):
    """`EarlyBirdState` in `Trainer(callbacks=[...])`: sets `control.should_training_stop` when it fires.

    Distances are in `state.log_history`. Saved in checkpoints, in trainer_state.json under `name`; a training that is
    resumed from one finds it there, whatever `restore_callback_states_from_checkpoint` says.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A ticket that was found before the checkpoint is held again, or stops the training after one batch."""
        _restore(self, state)
        self.begin(*_trained(kwargs))
        self._tell(state, control, {})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draws every so many steps, or after the last step of an epoch: a checkpoint may be saved before its end."""
        epoch, step = state.epoch or 0.0, state.global_step
        if self.every is not None:
            self._tell(state, control, self.draw_every(*_trained(kwargs), int(epoch), step))
        elif epoch == int(epoch):
            self._tell(state, control, self.draw(*_trained(kwargs), int(epoch), step))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draws at the end of an epoch whose length was not known before."""
        if self.every is None:
            self._tell(state, control, self.draw(*_trained(kwargs), int(state.epoch or 0), state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets go."""
        self.end()

    def _tell(self, state: TrainerState, control: TrainerControl, told: dict[str, float]) -> None:
        if self.step_drawn == state.global_step:
            _keep(self, state, told)
        if self.wants_stop:
            control.should_training_stop = True


class TicketCallback(MaskEnforcer, TrainerCallback):
    """`MaskEnforcer` in `Trainer(callbacks=[...])`. Saved as `EarlyBirdCallback` is; sparsities are logged alike."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins to enforce the mask."""
        _restore(self, state)
        self.begin(*_trained(kwargs), state.global_step)
        _keep(self, state, {})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draws a thinner mask when it is time."""
        told = self.after_step(*_trained(kwargs), state.global_step)
        if told:
            _keep(self, state, told)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets go; the best checkpoint's weights, if the Trainer loaded them, are pruned as the last ones were."""
        self.end(kwargs["model"])


def _trained(kwargs: dict[str, Any]) -> tuple[nn.Module, list[optim.Optimizer]]:
    return kwargs["model"], [kwargs["optimizer"]]


def _key(callback: EarlyBirdState | MaskEnforcer) -> str:
    return f"gebt.{type(callback).__name__}.{callback.name}"


def _restore(callback: EarlyBirdState | MaskEnforcer, state: TrainerState) -> None:
    saved = _saved(state).get(_key(callback))
    if saved is not None:
        callback.load_state_dict(_from_json(saved))


def _keep(callback: EarlyBirdState | MaskEnforcer, state: TrainerState, told: dict[str, float]) -> None:
    # Not by `ExportableState`: the Trainer makes new callbacks of it from JSON, which a score function is not, mixes up
    # two of one class, and cannot resume from a checkpoint that had none.
    _saved(state)[_key(callback)] = _to_json(callback.state_dict())
    if told:
        state.log_history.append({**told, "epoch": state.epoch, "step": state.global_step})


def _saved(state: TrainerState) -> dict[str, Any]:
    saved: Any = state.stateful_callbacks
    return saved


def _to_json(value: Any) -> Any:
    """The value with bits as text."""
    if isinstance(value, Tensor):
        return {"base64": base64.b64encode(value.cpu().numpy().tobytes()).decode()}
    if isinstance(value, dict):
        return {name: _to_json(own) for name, own in value.items()}
    return [_to_json(own) for own in value] if isinstance(value, list) else value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"base64"}:
            return torch.from_numpy(np.frombuffer(base64.b64decode(value["base64"]), np.uint8).copy())
        return {name: _from_json(own) for name, own in value.items()}
    return [_from_json(own) for own in value] if isinstance(value, list) else value
