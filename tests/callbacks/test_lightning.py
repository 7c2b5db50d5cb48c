from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gebt.prune import EarlyBird, Mask, enforce_mask, prunable_weights
from gebt.prune.schedule import cubic

pytest.importorskip("lightning.pytorch", reason="needs lightning; pip install 'gebt[lightning]'")
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer

from gebt.callbacks.lightning import EarlyBirdCallback, TicketCallback

pytestmark = [
    # Lightning 2.6 asks torch's trees for what torch 2.13 calls deprecated.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    # Its advice to load data in more processes.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Module(LightningModule):
    """A user's module, which checks after each of its steps that what it is to hold is held."""

    def __init__(self, net: nn.Module, ticket: TicketCallback | None, held: Callable[..., bool], two: bool) -> None:
        super().__init__()
        self.net, self.ticket, self.held, self.automatic_optimization = net, ticket, held, not two
        self.seen: list[bool] = []

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor | None:
        self.check()
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        return None

    def check(self) -> None:
        if self.ticket is not None and self.ticket.mask is not None and self.ticket.mask.sparsity:
            self.seen.append(self.held(self, self.ticket.mask))

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)
        return [optim.SGD(self.net[layer].parameters(), lr=0.1, momentum=0.9) for layer in (0, 2)]


class Saving(Callback):
    """Keeps a checkpoint of every epoch's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch + 1}.ckpt")


Fit = Callable[..., tuple[Module, Trainer]]


@pytest.fixture
def fit(network: Callable[..., nn.Module], task: TensorDataset, held: Callable[..., bool]) -> Fit:
    def run(
        *callbacks: Callback, epochs: int = 6, resume: Path | None = None, net: nn.Module | None = None,
        two: bool = False, whole: Callable[[Any], Any] = lambda module: module, **options: Any,
    ) -> tuple[Module, Trainer]:  # fmt: skip
        ticket = next((own for own in callbacks if isinstance(own, TicketCallback)), None)
        module = Module(net or network(), ticket, held, two)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        trainer = Trainer(
            accelerator="cpu", max_epochs=epochs, callbacks=list(callbacks), log_every_n_steps=1, **quiet, **options
        )
        trainer.fit(whole(module), DataLoader(task, 8), ckpt_path=resume, weights_only=None if resume is None else True)
        module.check()
        return module, trainer

    return run


def early_bird(**options: Any) -> EarlyBirdCallback:
    """Fires at the fourth draw, whatever is drawn: three distances are under 1."""
    return EarlyBirdCallback(ratio=0.5, detector=EarlyBird(threshold=1.0, window=3), **options)


def test_the_training_stops_at_the_epoch_at_which_the_detector_fires(fit: Fit, drawn: Callable[..., Mask]) -> None:
    bird = early_bird()
    module, trainer = fit(bird, precision="bf16-mixed")
    assert (bird.fired, bird.epoch_drawn, bird.step_drawn, trainer.current_epoch) == (True, 4, 16, 4)
    assert bird.mask == drawn(module)
    assert float(trainer.callback_metrics["early_bird/distance"]) == pytest.approx(bird.trajectory[-1]["criterion"])


def test_a_resumed_training_stops_at_the_same_epoch_with_the_same_mask(fit: Fit, tmp_path: Path) -> None:
    straight = early_bird()
    module, _ = fit(straight, Saving(tmp_path))
    for epoch, steps in ((2, 16), (4, 16)):
        bird = early_bird()
        again, trainer = fit(bird, Saving(tmp_path), resume=tmp_path / f"{epoch}.ckpt")
        assert (bird.epoch_drawn, trainer.global_step) == (4, steps)
        assert (bird.mask, bird.trajectory) == (straight.mask, straight.trajectory)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))


def test_two_searches_are_saved_beside_each_other_and_count_steps(fit: Fit, tmp_path: Path) -> None:
    def birds() -> tuple[EarlyBirdCallback, EarlyBirdCallback]:
        return early_bird(stop=False), EarlyBirdCallback(ratio=0.7, every=3, name="thin", detector=EarlyBird(2, 3))

    whole, thin = birds()
    _, trainer = fit(whole, thin, Saving(tmp_path))
    assert (whole.epoch_drawn, thin.epoch_drawn, thin.step_drawn, trainer.global_step) == (3, 3, 12, 12)
    assert {"early_bird/distance", "thin/distance"} <= trainer.callback_metrics.keys()
    again = birds()
    fit(*again, Saving(tmp_path), resume=tmp_path / "2.ckpt")
    assert [own.mask for own in again] == [whole.mask, thin.mask]
    assert [own.trajectory for own in again] == [whole.trajectory, thin.trajectory]


def test_a_search_may_go_on_with_its_ticket_held(fit: Fit, held: Callable[..., bool], tmp_path: Path) -> None:
    bird = early_bird(stop=False)
    module, trainer = fit(bird, Saving(tmp_path))
    assert (bird.epoch_drawn, trainer.current_epoch) == (4, 6)
    assert held(module, bird.mask)
    again = early_bird(stop=False)
    module, _ = fit(again, Saving(tmp_path), resume=tmp_path / "5.ckpt")
    assert again.mask == bird.mask
    assert held(module, bird.mask)


@pytest.mark.parametrize("how", ["bf16-mixed", "accumulated", "clipped", "two optimizers", "compiled"])
def test_a_ticket_is_held_after_every_step_and_leaves_the_state_dict_alone(
    how: str, fit: Fit, network: Callable[..., nn.Module], drawn: Callable[..., Mask], size: Callable[..., int]
) -> None:
    options: dict[str, Any] = {
        "bf16-mixed": {"precision": "bf16-mixed"},
        "accumulated": {"accumulate_grad_batches": 3},
        "clipped": {"gradient_clip_val": 0.1},
        "two optimizers": {"two": True},
        "compiled": {"whole": partial(torch.compile, backend="eager")},
    }[how]
    net = network()
    before = copy.deepcopy(net.state_dict())
    ticket = TicketCallback(Mask({f"net.{name}": kept for name, kept in drawn(net).items()}))
    module, trainer = fit(ticket, net=net, epochs=2, **options)
    assert module.seen == [True] * 9
    assert trainer.global_step == {"accumulated": 4, "two optimizers": 16}.get(how, 8)
    assert list(net.state_dict()) == list(before)
    assert size(net.state_dict()) == size(before)


def test_a_module_holds_in_the_optimizer_that_lightning_gives_it(
    network: Callable[..., nn.Module], task: TensorDataset, drawn: Callable[..., Mask], held: Callable[..., bool]
) -> None:
    class Own(Module):
        def on_train_start(self) -> None:
            optimizer = self.optimizers()
            assert isinstance(optimizer, LightningOptimizer)
            enforce_mask(self.net, mask, optimizer)

    mask = drawn(network())
    module = Own(network(), None, held, False)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=1, **quiet).fit(module, DataLoader(task, 8))
    assert held(module.net, mask)


def test_a_compiled_part_is_pruned_under_its_wrapped_names(
    fit: Fit, network: Callable[..., nn.Module], drawn: Callable[..., Mask]
) -> None:
    net = network()
    mask = Mask({f"net.{name}": kept for name, kept in drawn(net).items()})
    module, _ = fit(TicketCallback(mask), net=torch.compile(net, backend="eager"), epochs=1)
    assert list(prunable_weights(module)) == ["net._orig_mod.0.weight", "net._orig_mod.2.weight"]
    assert not net[0].weight[~mask["net.0.weight"]].any()  # type: ignore[index]


def test_a_resumed_schedule_ends_as_the_undisturbed_one(fit: Fit, tmp_path: Path) -> None:
    def ticket() -> TicketCallback:
        return TicketCallback(schedule=partial(cubic, ratio=0.8, begin=2, end=11), every=5)

    straight = ticket()
    module, trainer = fit(straight, Saving(tmp_path), epochs=4)
    assert straight.mask is not None
    assert (straight.mask.kept, straight.ratio) == (14, 0.8)
    assert module.seen == [True] * 12
    assert float(trainer.callback_metrics["ticket/sparsity"]) == pytest.approx(0.8)
    for epoch in (1, 2, 3):  # after 4, 8 and 12 steps; masks were drawn after 5, 10 and 11
        resumed = ticket()
        again, _ = fit(resumed, Saving(tmp_path), epochs=4, resume=tmp_path / f"{epoch}.ckpt")
        assert resumed.mask == straight.mask
        assert all(again.seen)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))
