from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from gebt.prune import EarlyBird, Mask
from gebt.prune.schedule import cubic

pytest.importorskip("transformers", reason="needs transformers; pip install 'gebt[transformers]'")
pytest.importorskip("accelerate", reason="needs accelerate; pip install 'gebt[transformers]'")
from transformers import Trainer, TrainerCallback, TrainingArguments

from gebt.callbacks.hugging_face import EarlyBirdCallback, TicketCallback


class Model(nn.Module):
    """What the Trainer calls."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, task: TensorDataset) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        x, y = self.task[number]
        return {"x": x, "labels": y}


class Stream(IterableDataset[dict[str, Tensor]]):
    """Rows without a length."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self.rows[number] for number in range(len(self.rows)))


class Watching(TrainerCallback):
    """Looks after every step whether the ticket is held."""

    def __init__(self, ticket: TicketCallback, held: Callable[..., bool]) -> None:
        self.ticket, self.held, self.seen = ticket, held, list[bool]()

    def on_step_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        if self.ticket.mask is not None and self.ticket.mask.sparsity:
            self.seen.append(self.held(model, self.ticket.mask))


@pytest.fixture(scope="module", autouse=True)
def garbage() -> Iterator[None]:
    """The Trainer collects garbage at every start: half a second for all that was imported, unless it is set apart."""
    gc.freeze()
    yield
    gc.unfreeze()


Fit = Callable[..., tuple[Model, Trainer]]


@pytest.fixture
def fit(network: Callable[..., nn.Module], task: TensorDataset, tmp_path: Path) -> Fit:
    def run(
        *callbacks: TrainerCallback, resume: int | None = None, stream: bool = False, net: nn.Module | None = None,
        batch: int = 4, **options: Any,
    ) -> tuple[Model, Trainer]:  # fmt: skip
        # Four steps an epoch; two batches each.
        settings: dict[str, Any] = {
            "gradient_accumulation_steps": 2, "num_train_epochs": 6, "learning_rate": 0.01, "weight_decay": 0.1,
            "save_strategy": "no", "seed": 0, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
            "logging_strategy": "no",
        } | options  # fmt: skip
        arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=batch, **settings)
        model, rows = Model(net or network()), Rows(task)
        trainer = Trainer(model, arguments, train_dataset=Stream(rows) if stream else rows, callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=None if resume is None else str(tmp_path / f"checkpoint-{resume}"))
        return model, trainer

    return run


def early_bird(**options: Any) -> EarlyBirdCallback:
    """Fires at the fourth draw, whatever is drawn: three distances are under 1."""
    return EarlyBirdCallback(ratio=0.5, detector=EarlyBird(threshold=1.0, window=3), **options)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_the_training_stops_at_the_epoch_at_which_the_detector_fires(fit: Fit, drawn: Callable[..., Mask]) -> None:
    bird = early_bird()
    model, trainer = fit(bird, bf16=True)
    assert (bird.fired, bird.epoch_drawn, bird.step_drawn, trainer.state.global_step) == (True, 4, 16, 16)
    assert bird.mask == drawn(model)
    told = [(row["step"], row["early_bird/distance"]) for row in trainer.state.log_history if "train_loss" not in row]
    assert told == list(zip((8, 12, 16), (row["criterion"] for row in bird.trajectory), strict=True))


@pytest.mark.parametrize("saving", [{"save_strategy": "epoch"}, {"save_strategy": "steps", "save_steps": 4}])
def test_a_resumed_training_stops_at_the_same_epoch_with_the_same_mask(fit: Fit, saving: dict[str, Any]) -> None:
    straight = early_bird()
    model, _ = fit(straight, **saving)
    for at in (4, 12):
        bird = early_bird()
        again, trainer = fit(bird, resume=at, **saving)
        assert (bird.epoch_drawn, bird.step_drawn, trainer.state.global_step) == (4, 16, 16)
        assert (bird.mask, bird.trajectory) == (straight.mask, straight.trajectory)
        assert same_weights(again, model)
    # What has fired before the checkpoint stops what is resumed.
    bird = early_bird()
    restoring = saving["save_strategy"] == "epoch"
    _, trainer = fit(bird, resume=16, restore_callback_states_from_checkpoint=restoring, **saving)
    assert (bird.mask, bird.step_drawn, trainer.state.global_step) == (straight.mask, 16, 16)


def test_a_search_counts_steps_and_goes_on_with_its_ticket_held(fit: Fit, held: Callable[..., bool]) -> None:
    bird = early_bird(stop=False, every=2)
    model, trainer = fit(bird, num_train_epochs=3)
    assert (bird.epoch_drawn, bird.step_drawn, trainer.state.global_step) == (2, 8, 12)
    assert held(model, bird.mask)


def test_an_epoch_without_a_length_is_drawn_at_its_end(fit: Fit) -> None:
    bird = early_bird()
    fit(bird, stream=True, max_steps=100)
    assert (bird.fired, bird.detector.draws, bird.step_drawn) == (True, 4, 16)


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True, "optim": "adamw_torch_fused"},
        {"optim": "sgd", "optim_args": "momentum=0.9,foreach=True", "max_grad_norm": 0.1},
        {"torch_compile": True, "torch_compile_backend": "eager"},
    ],
    ids=["bf16", "foreach", "compiled"],
)
def test_a_ticket_is_held_after_every_step_and_leaves_the_state_dict_alone(
    options: dict[str, Any], fit: Fit, network: Callable[..., nn.Module], drawn: Callable[..., Mask],
    held: Callable[..., bool], size: Callable[..., int],
) -> None:  # fmt: skip
    net = network()
    before = copy.deepcopy(net.state_dict())
    ticket = TicketCallback(Mask({f"net.{name}": kept for name, kept in drawn(net).items()}))
    watching = Watching(ticket, held)
    model, trainer = fit(ticket, watching, net=net, num_train_epochs=2, **options)
    assert watching.seen == [True] * 8
    assert type(trainer.optimizer).__name__ == "AcceleratedOptimizer"
    assert held(model, ticket.mask)
    assert list(net.state_dict()) == list(before)
    assert size(net.state_dict()) == size(before)


def test_a_resumed_schedule_ends_as_the_undisturbed_one(fit: Fit, held: Callable[..., bool]) -> None:
    def ticket() -> TicketCallback:
        return TicketCallback(schedule=partial(cubic, ratio=0.8, begin=2, end=11), every=5)

    saving = {"save_strategy": "steps", "save_steps": 7, "num_train_epochs": 4}
    straight = ticket()
    model, trainer = fit(straight, **saving)
    assert straight.mask is not None
    assert (straight.mask.kept, straight.ratio) == (14, 0.8)
    told = [row["step"] for row in trainer.state.log_history if "ticket/sparsity" in row]
    assert told == [5, 10, 11]
    for at in (7, 14):
        resumed = ticket()
        watching = Watching(resumed, held)
        again, _ = fit(resumed, watching, resume=at, **saving)
        assert resumed.mask == straight.mask
        assert watching.seen == [True] * (16 - at)
        assert same_weights(again, model)


def test_a_search_begins_where_a_checkpoint_without_one_ends(fit: Fit) -> None:
    saving = {"save_strategy": "epoch", "num_train_epochs": 2}
    fit(**saving)
    ticket = TicketCallback(schedule=lambda step: 0.5)
    fit(ticket, resume=4, **saving)
    assert ticket.mask is not None
    assert ticket.mask.kept == 35
