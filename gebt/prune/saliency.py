"""Gradient-based scores: how much the loss on data changes when an entry is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gebt.prune.scores import prunable_weights

# loss(model, batch) -> a number, the mean over the batch; a batch is whatever the iterable holds.
Loss = Callable[[nn.Module, Any], Tensor]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of `model(inputs)`.

    Args:
        model: gives logits [B, C].
        batch: (inputs, labels [B]).

    Returns:
        A scalar.
    """
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def snip(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss = cross_entropy,
    weights: Mapping[str, nn.Parameter] | None = None,
) -> dict[str, Tensor]:
    """SNIP: how the loss moves with a gate of 1 on entry i.

    s_i = |w_i sum_b dL_b/dw_i| / their sum. Gradients are summed over the batches before the absolute value. State,
    gradients and mode of the model are afterwards what they were.

    Args:
        model: the network, usually at initialization.
        batches: one or more.
        loss: `loss(model, batch)`, the mean over the batch.
        weights: what is scored, by name; default: `prunable_weights`.

    Returns:
        Scores of the weights' names and shapes.

    Raises:
        ValueError: for no batch and for a weight that the loss does not depend on.

    Source:
        Lee et al. 2019, eq. 5.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
        >>> scores = snip(layer, [torch.ones(1, 2)], loss=lambda model, x: model(x).mean())
        >>> [[round(s, 3) for s in row] for row in scores["weight"].tolist()]
        [[0.333, 0.667], [0.0, 0.0]]
    """
    chosen = _chosen(model, weights)
    summed = _summed_gradients(model, batches, loss, chosen)
    saliency = {name: (weight.detach() * summed[name]).abs() for name, weight in chosen.items()}
    total = torch.stack([score.sum() for score in saliency.values()]).sum()
    return {name: score / total for name, score in saliency.items()} if bool(total > 0) else saliency


def taylor(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss = cross_entropy,
    weights: Mapping[str, nn.Parameter] | None = None,
) -> dict[str, Tensor]:
    """Taylor: the squared first-order change of the loss, s_i = mean over batches of (w_i dL_b/dw_i)^2.

    Args:
        model: as in `snip`.
        batches: as in `snip`.
        loss: as in `snip`.
        weights: as in `snip`.

    Returns:
        Scores of the weights' names and shapes.

    Raises:
        ValueError: as `snip`.

    Source:
        Molchanov et al. 2019.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
        >>> taylor(layer, [torch.ones(1, 2)], loss=lambda model, x: model(x).sum())["weight"].tolist()
        [[1.0, 4.0]]
    """
    chosen, count = _chosen(model, weights), 0
    squares = {name: torch.zeros_like(weight) for name, weight in chosen.items()}
    with _restored(model):
        for batch in batches:
            count += 1
            for name, gradient in _gradients(model, batch, loss, chosen).items():
                squares[name] += (chosen[name].detach() * gradient).square()
    _refuse_no_batch(count)
    return {name: total / count for name, total in squares.items()}


def grasp(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    temperature: float = 200.0,
    loss: Callable[[nn.Module, Any, float], Tensor] | None = None,
    weights: Mapping[str, nn.Parameter] | None = None,
) -> dict[str, Tensor]:
    """GraSP: entries stay whose removal would lower the norm of the gradient most.

    s_i = w_i (H g)_i / |their sum|, g the gradient and H the Hessian of the mean loss of `model(x) / temperature`.
    Signed: no absolute value is taken. The paper's sign is turned, so that larger stays.

    Args:
        model: as in `snip`.
        batches: as in `snip`; all are in memory together, since they are gone through twice.
        temperature: divides the logits.
        loss: `loss(model, batch, temperature)`; default: cross-entropy of (inputs, labels).
        weights: as in `snip`.

    Returns:
        Scores of the weights' names and shapes.

    Raises:
        ValueError: as `snip`.

    Source:
        Wang et al. 2020, eq. 8.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = layer.weight.data.fill_(3.0)
        >>> grasp(layer, [torch.ones(1, 1)], loss=lambda model, x, temperature: model(x).square().sum())
        {'weight': tensor([[1.]])}
    """
    chosen, tempered = _chosen(model, weights), loss or _cross_entropy_at
    batches = batches if isinstance(batches, list | tuple) else list(batches)
    _refuse_no_batch(len(batches))
    plain: Loss = lambda network, batch: tempered(network, batch, temperature)  # noqa: E731
    first = {name: total / len(batches) for name, total in _summed_gradients(model, batches, plain, chosen).items()}
    product = {name: torch.zeros_like(weight) for name, weight in chosen.items()}
    # Fused attention has no second derivative.
    with _restored(model), sdpa_kernel(SDPBackend.MATH):
        for batch in batches:
            gradients = _gradients(model, batch, plain, chosen, create_graph=True)
            dot = torch.stack([(first[name] * gradients[name]).sum() for name in chosen]).sum()
            for name, second in zip(chosen, torch.autograd.grad(dot, list(chosen.values())), strict=True):
                product[name] += second / len(batches)
    scores = {name: weight.detach() * product[name] for name, weight in chosen.items()}
    total = torch.stack([score.sum() for score in scores.values()]).sum().abs()
    return {name: score / (total + 1e-10) for name, score in scores.items()}


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Parameters' gradients, buffers and modes of the model are afterwards what they were before."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        for module, training in modes.items():
            module.training = training
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _chosen(model: nn.Module, weights: Mapping[str, nn.Parameter] | None) -> dict[str, nn.Parameter]:
    return dict(weights) if weights is not None else prunable_weights(model)


def _cross_entropy_at(model: nn.Module, batch: Any, temperature: float) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs) / temperature, labels)


def _summed_gradients(
    model: nn.Module, batches: Iterable[Any], loss: Loss, weights: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    count, summed = 0, {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with _restored(model):
        for batch in batches:
            count += 1
            for name, gradient in _gradients(model, batch, loss, weights).items():
                summed[name] += gradient
    _refuse_no_batch(count)
    return summed


def _gradients(
    model: nn.Module, batch: Any, loss: Loss, weights: Mapping[str, nn.Parameter], *, create_graph: bool = False
) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        loss(model, batch), list(weights.values()), create_graph=create_graph, allow_unused=True
    )
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            raise ValueError(
                f"weight {name!r} (got no gradient: the loss does not depend on it), expected one that it does"
            )
    return dict(zip(weights, gradients, strict=True))


def _refuse_no_batch(count: int) -> None:
    if not count:
        raise ValueError("batches (got none), expected at least one to score by")
