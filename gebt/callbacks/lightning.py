"""Callbacks for Lightning's Trainer (extra "lightning"): early-bird tickets found, and tickets held."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError(
        f"callbacks for Lightning (got {error}), expected lightning; pip install 'gebt[lightning]'"
    ) from error

from gebt.callbacks.core import EarlyBirdState, MaskEnforcer


class EarlyBirdCallback(EarlyBirdState, Callback):
    """`EarlyBirdState` in `Trainer(callbacks=[...])`: logs the distance, sets `trainer.should_stop` when it fires.

    Names of the mask are those of the `LightningModule`. Saved in checkpoints, under `name`.
    """

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint."""
        return f"{type(self).__qualname__}{{'name': {self.name!r}}}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A ticket that was found before the checkpoint is held again, or stops the training again."""
        self.begin(pl_module, trainer.optimizers)
        self._tell(trainer, pl_module, {})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws every so many steps."""
        epoch = trainer.current_epoch + int(trainer.is_last_batch)
        told = self.draw_every(pl_module, trainer.optimizers, epoch, trainer.global_step)
        self._tell(trainer, pl_module, told)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws every epoch."""
        if self.every is None:
            told = self.draw(pl_module, trainer.optimizers, trainer.current_epoch + 1, trainer.global_step)
            self._tell(trainer, pl_module, told)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets go."""
        self.end()

    def _tell(self, trainer: Trainer, pl_module: LightningModule, told: dict[str, float]) -> None:
        if told:
            pl_module.log_dict(told, sync_dist=True)
        if self.wants_stop:
            trainer.should_stop = True


class TicketCallback(MaskEnforcer, Callback):
    """`MaskEnforcer` in `Trainer(callbacks=[...])`. Saved in checkpoints, under `name`."""

    @property
    def state_key(self) -> str:
        """The name of the state in a checkpoint."""
        return f"{type(self).__qualname__}{{'name': {self.name!r}}}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to enforce the mask."""
        self.begin(pl_module, trainer.optimizers, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws a thinner mask when it is time, and logs its sparsity."""
        told = self.after_step(pl_module, trainer.optimizers, trainer.global_step)
        if told:
            pl_module.log_dict(told, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets go."""
        self.end(pl_module)
