"""Gem-Miner: tickets at initialization, found by training a score for every weight.

Source: Sreenivasan et al., "Rare Gems: Finding Lottery Tickets at Initialization", NeurIPS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.func import functional_call

from gebt.prune.mask import Mask
from gebt.prune.saliency import Loss, cross_entropy
from gebt.prune.scores import prunable_weights
from gebt.prune.selection import pruned_count, thinned
from gebt.prune.tie_breaking import TieBreaker

# optimizer(parameters, steps) -> what trains the scores, and its schedule (stepped after every batch) or None.
ScoreOptimizer = Callable[[list[nn.Parameter], int], tuple[optim.Optimizer, Any]]


@dataclass(frozen=True)
class GemMinerResult:
    """The ticket of Gem-Miner and how it came about.

    Attributes:
        mask: the mask of the ticket.
        scores: the learned scores by weight, in [0, 1].
        frozen: (epoch, entries still alive) after each freezing.
    """

    mask: Mask
    scores: dict[str, Tensor]
    frozen: tuple[tuple[int, int], ...]


def gem_miner(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    *,
    ratio: float,
    epochs: int,
    period: int = 5,
    regularization: float = 1e-4,
    loss: Loss = cross_entropy,
    optimizer: ScoreOptimizer | None = None,
    weights: Mapping[str, nn.Parameter] | None = None,
    signed_constant: bool = True,
    seed: int = 0,
    on_epoch: Callable[[int, float], object] | None = None,
) -> GemMinerResult:
    """Trains a score p in [0, 1] for every weight, weights untouched, and freezes the lowest out every `period` epochs.

    Forward with w * m, m = 1[p > 0.5] f, f the entries still alive; backward as if m were p (straight through), so
    dL/dp = f w dL/d(w m). Loss: `loss(model, batch)` + regularization * sum p^2. p starts uniform in [0, 1] and is
    clamped to it before every forward pass. After epochs period, 2 period, ... < epochs those alive are cut to
    n - floor((1 - (1 - ratio)^(j / K)) n), K events in all, lowest p first: the last one reaches the ratio exactly. The
    mask is all that are alive then, ones with p <= 0.5 included (the paper's finetuning trains them all). Finetune
    `model` under the mask with `gebt.enforce_mask`.

    Args:
        model: the network at initialization.
        batches: `batches(epoch)` gives the batches of an epoch, numbered from 1.
        ratio: share of the weights to prune.
        epochs: epochs of training the scores, more than `period`.
        period: epochs between two freezings.
        regularization: factor of the penalty sum p^2.
        loss: `loss(model, batch)`, the mean over the batch.
        optimizer: makes what trains the scores; default: SGD of rate 0.1, momentum 0.9 and a cosine schedule.
        weights: what gets scores, by name; default: `prunable_weights`.
        signed_constant: first sets w to sign(w) sqrt(2 / fan in), the paper's start, which `model` keeps.
        seed: of the first scores and the order of ties.
        on_epoch: called with the epoch and its mean loss.

    Returns:
        Mask, scores and freezings.

    Raises:
        ValueError: for a ratio outside [0, 1), fewer epochs than one freezing needs, a negative regularization, and a
            weight that the loss does not depend on.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> data = [(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))]
        >>> result = gem_miner(nn.Linear(2, 2), lambda epoch: data, ratio=0.5, epochs=3, period=1)
        >>> result.mask.kept, result.frozen
        (2, ((1, 3), (2, 2)))
    """
    chosen = dict(weights) if weights is not None else prunable_weights(model)
    pruned_count(1, ratio)
    events = (epochs - 1) // period if period >= 1 else 0
    if events < 1:
        raise ValueError(f"epochs, period (got {(epochs, period)}), expected epochs > period >= 1 for one freezing")
    if regularization < 0:
        raise ValueError(f"regularization (got {regularization}), expected at least 0")
    if signed_constant:
        _set_signed_constants(chosen)
    return _Miner(model, chosen, loss, regularization, seed).run(
        batches, ratio, epochs, period, events, optimizer or _sgd, on_epoch
    )


def inverted(mask: Mask, *, generator: torch.Generator) -> Mask:
    """As many entries of each tensor, those that `mask` prunes first: a sanity check of tickets.

    Args:
        mask: the mask of a ticket.
        generator: draws which of the pruned entries are kept.

    Returns:
        A mask that keeps as many entries of each tensor as `mask`; of those that `mask` keeps, only as many as the
        pruned ones are too few.

    Example:
        >>> mask = Mask({"w": torch.tensor([True, False])})
        >>> inverted(mask, generator=torch.Generator().manual_seed(0))["w"]
        tensor([False,  True])
    """
    tensors = {}
    for name, kept in mask.items():
        flat = kept.flatten()
        order = torch.randperm(flat.numel(), generator=generator).to(flat.device)
        # Pruned entries first, in random order; kept ones only where there are not enough of them.
        ranked = order[flat[order].long().argsort(stable=True)]
        chosen = torch.zeros_like(flat)
        chosen[ranked[: int(flat.sum())]] = True
        tensors[name] = chosen.view(kept.shape)
    return Mask(tensors)


class _Miner:
    """Scores, the flags of those alive, and the training of the former."""

    def __init__(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], loss: Loss, regularization: float, seed: int
    ) -> None:
        self.model, self.weights, self.loss, self.regularization = model, weights, loss, regularization
        generator = torch.Generator().manual_seed(seed)
        self.tie_break = TieBreaker.from_generator(generator)
        drawn = {name: torch.rand(weight.shape, generator=generator).to(weight) for name, weight in weights.items()}
        self.scores = {name: nn.Parameter(score) for name, score in drawn.items()}
        self.alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}

    def run(
        self,
        batches: Callable[[int], Iterable[Any]],
        ratio: float,
        epochs: int,
        period: int,
        events: int,
        optimizer: ScoreOptimizer,
        on_epoch: Callable[[int, float], object] | None,
    ) -> GemMinerResult:
        chosen: tuple[optim.Optimizer, Any] | None = None
        frozen: list[tuple[int, int]] = []
        for epoch in range(1, epochs + 1):
            now = list(batches(epoch))
            if chosen is None:
                chosen = optimizer(list(self.scores.values()), epochs * len(now))
            total = self._epoch(now, *chosen)
            if on_epoch is not None:
                on_epoch(epoch, total / max(len(now), 1))
            if epoch % period == 0 and len(frozen) < events:
                share = (len(frozen) + 1) / events
                self._freeze(ratio if share == 1 else 1 - (1 - ratio) ** share)
                frozen.append((epoch, sum(int(flag.sum()) for flag in self.alive.values())))
        self._project()
        scores = {name: score.detach() for name, score in self.scores.items()}
        return GemMinerResult(Mask(dict(self.alive)), scores, tuple(frozen))

    def _epoch(self, batches: list[Any], optimizer: optim.Optimizer, schedule: Any) -> float:
        total = 0.0
        for batch in batches:
            self._project()
            optimizer.zero_grad()
            value = self.loss(_Masked(self.model, self._effective()), batch)
            penalty = torch.stack([score.square().sum() for score in self.scores.values()]).sum()
            (value + self.regularization * penalty).backward()
            _refuse_unseen(self.scores)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += float(value.detach())
        return total

    def _effective(self) -> dict[str, Tensor]:
        rounded = {name: _Round.apply(score) * self.alive[name] for name, score in self.scores.items()}  # type: ignore[no-untyped-call]
        return {name: weight.detach() * rounded[name] for name, weight in self.weights.items()}

    def _project(self) -> None:
        with torch.no_grad():
            for score in self.scores.values():
                score.clamp_(0, 1)

    def _freeze(self, ratio: float) -> None:
        self._project()
        flat = torch.cat([score.detach().flatten() for score in self.scores.values()])
        alive = torch.cat([flag.flatten() for flag in self.alive.values()])
        pruned = alive.numel() - int(alive.sum())
        alive = thinned(flat, alive, max(0, pruned_count(alive.numel(), ratio) - pruned), self.tie_break)
        parts = alive.split([flag.numel() for flag in self.alive.values()])
        self.alive = {name: part.view(self.alive[name].shape) for name, part in zip(self.alive, parts, strict=True)}


class _Masked(nn.Module):
    """The network with other tensors in the place of some of its weights."""

    def __init__(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self._tensors = model, dict(tensors)

    def forward(self, *inputs: Any, **more: Any) -> Any:
        return functional_call(self.model, self._tensors, inputs, more)


class _Round(torch.autograd.Function):
    """1[p > 0.5]; the gradient passes as if it were p."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        return (score > 0.5).to(score)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _set_signed_constants(weights: Mapping[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for weight in weights.values():
            fan_in = weight[0].numel()
            sign = torch.where(weight < 0, -1.0, 1.0).to(weight)
            weight.copy_(sign * math.sqrt(2 / fan_in))


def _sgd(scores: list[nn.Parameter], steps: int) -> tuple[optim.Optimizer, Any]:
    optimizer = optim.SGD(scores, lr=0.1, momentum=0.9)
    return optimizer, optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def _refuse_unseen(scores: Mapping[str, nn.Parameter]) -> None:
    for name, score in scores.items():
        if score.grad is None:
            raise ValueError(f"weight {name!r} (got no gradient: the loss is without it), expected one it depends on")
