"""Training of text encoders: one loop for classification of sentences and for masked language modelling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from gebt.data.word_pieces import Pieces
from gebt.models.bert import encoder_of
from gebt.train.loop import seeded

Enforce = Callable[[optim.Optimizer], object]
Metric = Literal["accuracy", "matthews"]


@dataclass(frozen=True)
class TextSettings:
    """AdamW, without weight decay of biases and layer norms; the rate rises and falls linearly.

    It rises over the fraction `warmup` of the steps and reaches 0 after the last one, or would after as many steps in
    each of `rounds` trainings: BERT-Tickets' code gives every round of its search the schedule of all of them. `steps`:
    as many, going round the texts, instead of `epochs`. Gradients are scaled to a norm of at most `clip`.
    Raises `ValueError` for numbers out of range.
    """

    epochs: int = 3
    steps: int | None = None
    learning_rate: float = 2e-5
    batch: int = 32
    weight_decay: float = 0.0
    warmup: float = 0.0
    rounds: int = 1
    clip: float = 1.0

    def __post_init__(self) -> None:
        counts = (self.epochs, 1 if self.steps is None else self.steps, self.batch, self.rounds)
        if min(counts) < 1:
            raise ValueError(f"epochs, steps, batch, rounds (got {counts}), expected at least 1")
        if not self.learning_rate > 0 or not self.clip > 0 or self.weight_decay < 0 or not 0 <= self.warmup < 1:
            got = (self.learning_rate, self.clip, self.weight_decay, self.warmup)
            told = "learning rate, clip, weight decay, warm-up"
            raise ValueError(f"{told} (got {got}), expected the first two above 0, a decay from 0, a share in [0, 1)")

    def total(self, texts: int) -> int:
        """Steps of one training on so many texts."""
        return self.steps if self.steps is not None else self.epochs * -(-texts // self.batch)

    def rate(self, step: int, total: int) -> float:
        """The learning rate of a step, from 0, of `total`."""
        last, rising = total * self.rounds, self.warmup * total * self.rounds
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        return self.learning_rate * (last - step) / (last - rising)

    def optimizer_of(self, model: nn.Module, more: Sequence[nn.Parameter] = ()) -> optim.Optimizer:
        """A fresh optimizer; of the model's own parameters only those of two dimensions or more decay."""
        parameters = [own for own in model.parameters() if own.requires_grad]
        groups = [
            {"params": [own for own in parameters if own.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [*(own for own in parameters if own.dim() <= 1), *more], "weight_decay": 0.0},
        ]
        return optim.AdamW(groups, lr=self.learning_rate, fused=True)


class TextTask(Protocol):
    """What is trained on texts: the loss of a batch of them, and what a trained model is worth."""

    @property
    def texts(self) -> Pieces:
        """Those it trains on."""
        ...

    def loss(self, model: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Of the texts of these numbers; what is random in it comes from `generator`."""
        ...

    def score(self, model: nn.Module) -> dict[str, float]:
        """Measures by name, of the model in evaluation mode."""
        ...


@dataclass(frozen=True, eq=False)
class Classify:
    """Classes of texts by cross entropy; scored on `dev` by accuracy, and by Matthews' correlation when asked."""

    texts: Pieces
    dev: Pieces
    metric: Metric = "accuracy"

    def loss(self, model: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """See `TextTask.loss`."""
        batch = self.texts.take(chosen)
        return F.cross_entropy(_logits(model, batch), batch.labels.to(_device(model)))

    def score(self, model: nn.Module) -> dict[str, float]:
        """accuracy in [0, 1]; matthews in [-1, 1], 0 for a single class throughout."""
        with _evaluating(model):
            parts = [self.dev.take(chosen) for chosen in self.dev.batches(128)]
            found = torch.cat([_logits(model, part).argmax(1).cpu() for part in parts])
        measured = {"accuracy": float((found == self.dev.labels).double().mean())}
        if self.metric == "matthews":
            from sklearn.metrics import matthews_corrcoef

            measured["matthews"] = float(matthews_corrcoef(self.dev.labels.numpy(), found.numpy()))
        return measured


@dataclass(frozen=True, eq=False)
class FillIn:
    """Masked language modelling (Devlin et al. 2019): tokens at random places, drawn anew for every batch.

    `tokenizer` tells the mask's number and which pieces are special, and never drawn. Scored on `dev` with one drawing.
    """

    texts: Pieces
    dev: Pieces
    tokenizer: Any
    fraction: float = 0.15

    def loss(self, model: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """See `TextTask.loss`; 0 for a batch in which nothing was drawn."""
        logits, wanted = self._filled(model, self.texts.take(chosen), generator)
        return F.cross_entropy(logits, wanted, reduction="sum") / max(1, wanted.numel())

    def score(self, model: nn.Module) -> dict[str, float]:
        """word_loss and word_accuracy, of the places drawn."""
        generator, loss, hits, count = torch.Generator().manual_seed(0), 0.0, 0, 0
        with _evaluating(model):
            for chosen in self.dev.batches(128):
                logits, wanted = self._filled(model, self.dev.take(chosen), generator)
                loss += float(F.cross_entropy(logits, wanted, reduction="sum"))
                hits, count = hits + int((logits.argmax(1) == wanted).sum()), count + wanted.numel()
        return {"word_loss": loss / max(1, count), "word_accuracy": hits / max(1, count)}

    def _filled(self, model: nn.Module, batch: Pieces, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scores of all pieces at the drawn places [M, V], and what stood there [M]."""
        given = batch.inputs(_device(model))
        shown, drawn = masked(batch.ids, self.tokenizer, generator, self.fraction)
        given["input_ids"] = shown.to(_device(model))
        hidden = encoder_of(model)[1](**given)[0]
        # The head is the greater part of the work: it reads the drawn places alone.
        logits = _word_head(model)(hidden[drawn.to(hidden.device)])
        return logits, batch.ids[drawn].to(logits.device)


def masked(ids: Tensor, tokenizer: Any, generator: torch.Generator, fraction: float = 0.15) -> tuple[Tensor, Tensor]:
    """Pieces as they are shown, and which places were drawn: each with probability `fraction`, special pieces never.

    Of the drawn ones 80 % show the mask, 10 % a random piece and 10 % what stands there. Devlin et al. 2019.
    """
    drawn = torch.rand(ids.shape, generator=generator) < fraction
    drawn &= ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    lot = torch.rand(ids.shape, generator=generator)
    others = torch.randint(len(tokenizer), ids.shape, generator=generator)
    shown = torch.where(drawn & (lot < 0.8), int(tokenizer.mask_token_id), ids)
    return torch.where(drawn & (lot >= 0.8) & (lot < 0.9), others, shown), drawn


@dataclass
class TextHistory:
    """The loss of every step before it, and what the task measured at the end."""

    losses: list[float] = field(default_factory=list)
    score: dict[str, float] = field(default_factory=dict)


def fit(
    model: nn.Module,
    task: TextTask,
    settings: TextSettings | None = None,
    *,
    seed: int = 0,
    start: int = 0,
    stop: int | None = None,
    enforce: Enforce | None = None,
    more: Sequence[nn.Parameter] = (),
    penalty: Callable[[], Tensor] | None = None,
    on_step: Callable[[int], bool] | None = None,
) -> TextHistory:
    """Trains steps `start` + 1 to `stop` (None: the schedule's last) with a fresh optimizer, then scores.

    `enforce(optimizer)` is called before the first step, as `gebt.lottery` asks of a training. `more` parameters are
    trained beside the model's, `penalty()` is added to every loss. `on_step(made)` is called before every step with the
    number of steps made; when it returns True the training ends there. Batches, and what is random in them, depend on
    `seed` and the step alone. Raises `ValueError` when a loss is not finite.
    """
    settings = settings or TextSettings()
    total = settings.total(len(task.texts))
    optimizer = settings.optimizer_of(model, more)
    if enforce is not None:
        enforce(optimizer)
    history, trained = TextHistory(), [*model.parameters(), *more]
    with seeded(seed * 100_003 + start):
        for step, chosen in _batches(task.texts, settings.batch, seed, start, total if stop is None else stop):
            if on_step is not None and on_step(step):
                break
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step, total)
            optimizer.zero_grad()
            loss = task.loss(model, chosen, torch.Generator().manual_seed(seed * 1_000_003 + step))
            (loss if penalty is None else loss + penalty()).backward()
            nn.utils.clip_grad_norm_(trained, settings.clip)
            optimizer.step()
            history.losses.append(_finite(float(loss.detach()), step))
    history.score = task.score(model)
    return history


def _batches(texts: Pieces, size: int, seed: int, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """Steps made before it and the texts of every step from `start` to `stop`, in an order of each epoch's own."""
    each = -(-len(texts) // size)
    for epoch in range(start // each, -(-stop // each)):
        for place, chosen in enumerate(texts.batches(size, seed * 100_003 + epoch)):
            if start <= epoch * each + place < stop:
                yield epoch * each + place, chosen


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise ValueError(f"loss of step {step + 1} (got {loss}), expected a finite number; use a lower learning rate")
    return loss


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    with torch.no_grad():
        yield
    model.train(training)


def _logits(model: nn.Module, batch: Pieces) -> Tensor:
    return model(**batch.inputs(_device(model))).logits


def _word_head(model: nn.Module) -> nn.Module:
    """What turns hidden states into scores of all pieces: named `cls` in BERT, `lm_head` in RoBERTa."""
    for name in ("cls", "lm_head"):
        if isinstance(head := getattr(model, name, None), nn.Module):
            return head
    raise ValueError(f"model {type(model).__name__} (got no head of language modelling), expected BertForMaskedLM")


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
