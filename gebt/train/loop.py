"""The training loop for node classification. It knows nothing of pruning: features come in as callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from gebt.graph.edges import Edges
from gebt.graph.graph import Graph, check_classes
from gebt.graph.metrics import label_loss, measure
from gebt.sparse.memory import check_room
from gebt.sparse.precision import forward, without_autocast
from gebt.train.cuda_graph import Replay, replays
from gebt.train.optimizers import TrainingSettings as TrainingSettings
from gebt.train.optimizers import adam as adam


@dataclass
class History:
    """What a fit did: one entry an epoch, and the state at the best validation epoch.

    Accuracies are shares in [0, 1], or what the graph's metric says (`graph.metrics`). `best_epoch` counts from 1:
    highest validation accuracy, ties to the lower validation loss, then to the earlier epoch; 0 when the fit did not
    evaluate.
    `best_gates`: the soft edge values of that epoch, where the fit was given some.
    """

    losses: list[float] = field(default_factory=list)
    val_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    best_epoch: int = 0
    best_state: dict[str, Tensor] = field(default_factory=dict, repr=False)
    best_gates: Tensor | None = field(default=None, repr=False)

    @property
    def accuracy(self) -> float:
        """Test accuracy at the best validation epoch."""
        return self.test_accuracy[self.best_epoch - 1]


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """What a teacher says of every node: `log_probabilities` [N, C]; `weight` of their part in the loss."""

    log_probabilities: Tensor
    weight: float


class NodeTask:
    """Node classification or regression on one graph, seen through some edges (the graph's, or a ticket's).

    `keep_aggregated`: A_hat X of dense features is computed once and kept, for models that can start from it.
    `soft`: labels of all nodes to learn from beside those of the training nodes (distillation), where a label is one
    class, else `GraphError`. `extra_loss`: a further term of the loss, from the logits of all nodes. `classifies`: the
    logits are scores of classes, one row a node.
    """

    classifies = True

    def __init__(
        self,
        graph: Graph,
        edges: Edges | None = None,
        *,
        keep_aggregated: bool = True,
        soft: SoftLabels | None = None,
        extra_loss: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if soft is not None:
            check_classes(graph, "soft labels")
        self.graph, self.keep_aggregated, self.soft, self.extra_loss = graph, keep_aggregated, soft, extra_loss
        self.edges = edges if edges is not None else Edges.from_pairs(graph.pairs, graph.num_nodes)
        self._train, self._val, self._test = (
            (nodes, graph.labels[nodes])
            for nodes in (mask.nonzero().squeeze(1) for mask in (graph.train_mask, graph.val_mask, graph.test_mask))
        )

    @cached_property
    def aggregated(self) -> Tensor | None:
        """A_hat X [N, F] for dense features, constant since neither trains; None for sparse X: A_hat X is less so."""
        features = self.graph.features
        if not self.keep_aggregated or not isinstance(features, Tensor):
            return None
        # It is kept, so no autocast may round it.
        with torch.no_grad(), without_autocast(features):
            weights = self.edges.unit_weights.to(torch.promote_types(features.dtype, torch.float32))
            return self.edges.propagate(weights, features)

    def logits(self, model: nn.Module, gates: Tensor | None = None) -> Tensor:
        """Logits [N, `num_classes`] of the model on this graph."""
        inputs = (self.edges.pattern.col.device, model, self.graph.features, self.edges, gates)
        if gates is None and getattr(model, "starts_from_aggregated", False):
            return forward(*inputs, self.aggregated)
        return forward(*inputs)

    def predict_proba(self, model: nn.Module) -> Tensor:
        """What the model says of every node: probabilities [N, C]."""
        return self.logits(model).softmax(1)

    def loss(self, logits: Tensor) -> Tensor:
        """`label_loss` of the training nodes; with soft labels q, + weight * mean over all nodes of KL(q || p).

        Hinton et al. 2015, temperature 1.
        """
        nodes, labels = self._train
        hard = label_loss(self.graph.target, logits[nodes], labels)
        if self.extra_loss is not None:
            hard = hard + self.extra_loss(logits)
        if self.soft is None:
            return hard
        said = self.soft.log_probabilities
        return hard + self.soft.weight * F.kl_div(logits.log_softmax(1), said, log_target=True, reduction="batchmean")

    @property
    def num_labels(self) -> int:
        """How many labels the mean of the loss is over: one a training node, or the known entries of tasks."""
        labels = self._train[1]
        return int((labels >= 0).sum()) if labels.dim() == 2 else labels.shape[0]

    one_step = True

    def steps(self) -> Sequence[NodeTask]:
        """The tasks of an epoch's steps, in turn: this one alone."""
        return (self,)

    def val_accuracy(self, probabilities: Tensor) -> Tensor:
        """What `measures` would say of the validation nodes for opinions [N, C]; [], not waited for."""
        nodes, labels = self._val
        return measure(self.graph.metric, probabilities[nodes], labels)

    def measures(self, model: nn.Module) -> Tensor:
        """Validation accuracy, validation loss and test accuracy of the model in evaluation mode, [3] on its device.

        Where the graph's metric is another, that takes the place of the accuracy.
        """
        model.eval()
        with torch.no_grad():
            logits = self.logits(model)
            (val, val_labels), (test, test_labels) = self._val, self._test
            return self.scored(logits[val], val_labels, logits[test], test_labels)

    def scored(self, val_logits: Tensor, val_labels: Tensor, test_logits: Tensor, test_labels: Tensor) -> Tensor:
        """The `measures` [3] of logits of validation and test nodes."""
        metric = self.graph.metric
        val_score, test_score = measure(metric, val_logits, val_labels), measure(metric, test_logits, test_labels)
        return torch.stack((val_score, label_loss(self.graph.target, val_logits, val_labels), test_score))

    def evaluate(self, model: nn.Module) -> tuple[float, float, float]:
        """The `measures` as numbers."""
        val_accuracy, val_loss, test_accuracy = self.measures(model).tolist()
        return val_accuracy, val_loss, test_accuracy


# Soft edge values [P] as they are, or as they are found anew for the task of each step.
Gates = Tensor | Callable[[NodeTask], Tensor] | None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Dropout inside draws from `seed`; the caller's random state is as it was afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def following(model: nn.Module) -> Iterator[None]:
    """Within it the running means and variances of batch normalization are those of the last pass in training.

    Where a step sees the whole graph they have no noise that a slow mean would have to take out: with one step an epoch
    it would only lag ten epochs behind the weights. Afterwards the rates are as before.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


def fit(
    model: nn.Module,
    task: NodeTask,
    optimizers: Sequence[optim.Optimizer],
    epochs: int,
    *,
    seed: int = 0,
    gates: Gates = None,
    penalty: Callable[[], Tensor] | None = None,
    evaluate: bool = True,
    on_epoch: Callable[[int, History], bool] | None = None,
    replay: bool | None = None,
) -> History:
    """Trains `model` on `task`: an epoch takes the task's `steps`, in each all optimizers from one backward pass.

    `gates` [P] are soft edge values for the training forward, or say what they are for the task of a step; `penalty` is
    added to the loss. With `evaluate` the model is evaluated after every epoch and ends in the state of its best
    validation epoch. `on_epoch` is called with the epoch (from 1) and the history so far; returning True ends the fit.
    `replay`: run epochs as a recorded CUDA graph; None: where that pays (`train.cuda_graph`). Results do not depend on
    it. Batch normalization is `following` where an epoch is one step. Raises `ValueError` when the loss is no longer a
    finite number, and `OutOfRoomError` before it allocates what the device has no room for.
    """

    def run_epoch() -> Tensor:
        losses = [_step(model, own, optimizers, gates, penalty) for own in task.steps()]
        loss = torch.stack(losses).mean().unsqueeze(0)
        return torch.cat((loss, task.measures(model))) if evaluate else loss

    pattern = task.edges.pattern
    if task.one_step and (widths := getattr(model, "widths", None)):
        # At the least the outputs of all layers and their gradients.
        needed, graph = 8 * task.graph.num_nodes * sum(widths[1:]), task.graph
        check_room(f"training {type(model).__name__} on {graph.name!r}", needed, pattern.col.device)
    # An order of steps that is drawn anew cannot be recorded.
    recorded = task.one_step and replays(pattern.col.device, pattern.nnz)
    if replay if replay is not None else recorded:
        run_epoch = Replay(run_epoch, optimizers)
    history, best = History(), (-math.inf, 0.0)
    with seeded(seed), following(model) if task.one_step else nullcontext():
        for epoch in range(1, epochs + 1):
            # The only time an epoch waits for a device.
            loss, *evaluation = run_epoch().tolist()
            if not all(map(math.isfinite, (loss, *evaluation))):
                which, value = ("validation", evaluation[1]) if math.isfinite(loss) else ("training", loss)
                raise ValueError(_not_finite(model, task, gates, f"{which} loss (got {value}"))
            history.losses.append(loss)
            if evaluate:
                val_accuracy, val_loss, test_accuracy = evaluation
                history.val_accuracy.append(val_accuracy)
                history.test_accuracy.append(test_accuracy)
                if (val_accuracy, -val_loss) > best:
                    best = (val_accuracy, -val_loss)
                    history.best_epoch, history.best_state = epoch, copy_state(model)
                    history.best_gates = gates.detach().clone() if isinstance(gates, Tensor) else None
            if on_epoch is not None and on_epoch(epoch, history):
                break
    if evaluate:
        model.load_state_dict(history.best_state)
    return history


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """A detached copy of the model's state dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _step(
    model: nn.Module,
    task: NodeTask,
    optimizers: Sequence[optim.Optimizer],
    gates: Gates,
    penalty: Callable[[], Tensor] | None,
) -> Tensor:
    """One step; returns the loss before it, still on its device."""
    model.train()
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = task.loss(task.logits(model, gates_of(gates, task)))
    total = loss if penalty is None else loss + penalty()
    total.backward()
    for optimizer in optimizers:
        optimizer.step()
    return loss.detach()


def gates_of(gates: Gates, task: NodeTask) -> Tensor | None:
    """The soft edge values of a step."""
    return gates(task) if callable(gates) else gates


def _not_finite(model: nn.Module, task: NodeTask, gates: Gates, loss: str) -> str:
    """What to tell when a loss is NaN or infinite: the first layer whose weights or output are."""
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(f"the output of layer {name!r}")

        return hook

    broken = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if not broken:
        handles = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if name]
        try:
            with torch.no_grad():
                task.logits(model, gates_of(gates, task))
        finally:
            for handle in handles:
                handle.remove()
    where = f"weights {broken[0]!r}" if broken else found[0] if found else "the loss alone"
    return f"{loss}; first in {where}), expected finite numbers; use a lower learning rate"
