"""Training many networks together: the loop of `train.loop`, every step taken for all of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from gebt.graph.edges import Edges
from gebt.graph.graph import Graph, check_classes
from gebt.models.gnn import GCN
from gebt.models.stacked_gcn import StackedGCN, StackedInput, kind
from gebt.prune.enforce import enforce_mask
from gebt.prune.mask import Mask
from gebt.sparse.pattern import SparseMatrix
from gebt.sparse.precision import forward
from gebt.train.cuda_graph import Replay, replays
from gebt.train.loop import History, TrainingSettings, adam, copy_state
from gebt.train.optimizers import adam_of

T = TypeVar("T")

# Multiply-adds of a network's sparse products up to which it is trained faster together with others. Ten networks on
# one thread, apart over together: 2.8 at 1.1 million (Cora), 2.2 at 18 (PubMed), 0.65 at 85 (Coauthor CS). With nearly
# all nodes in the training set: 2.5, 0.95, less. A small network costs its calls, which together are made once; a large
# one its products, and alone it stays in the cache.
MOST_WORK = 20_000_000


def worth_stacking(graph: Graph, model: nn.Module, count: int) -> bool:
    """Whether `count` networks like this one can be trained together, and faster than one after another.

    They can be GCNs without norm, on sparse features, measured by accuracy. The rule for small enough is `MOST_WORK` on
    the CPU; on a CUDA device an epoch of all must be worth recording (`train.cuda_graph`), as it is bound by launches.
    """
    if count < 2 or not isinstance(model, GCN) or model.norms is not None:
        return False
    if not isinstance(graph.features, SparseMatrix) or graph.metric != "accuracy":
        return False
    widths, entries = model.widths, 2 * graph.num_pairs + graph.num_nodes
    if graph.pairs.device.type != "cpu":
        return replays(graph.pairs.device, count * entries)
    return graph.features.values.numel() * widths[1] + entries * sum(widths[1:]) <= MOST_WORK


@dataclass(eq=False)
class Member:
    """One of many networks to train: its model, graph and seed, the `pairs` [2, P] it sees (default: the graph's).

    `mask`: pruned weights, held at zero. `gates` [P]: soft values of the pairs, trained beside the weights.
    """

    model: GCN
    graph: Graph
    seed: int = 0
    pairs: Tensor | None = None
    mask: Mask | None = None
    gates: Tensor | None = None
    history: History = field(init=False, default_factory=History)
    best: tuple[float, float] = field(init=False, default=(-1.0, 0.0))

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    @property
    def seen(self) -> Tensor:
        """The pairs that the network sees."""
        return self.graph.pairs if self.pairs is None else self.pairs

    def dropout_seeds(self, epochs: int, count: int) -> Tensor:
        """The numbers that `count` dropouts of every epoch begin with when the network is trained alone on the CPU.

        Returns [epochs, count] int64, on the CPU.
        """
        return torch.empty(epochs, count, dtype=torch.int64).random_(-(2**63), None, generator=self.generator)

    def note(self, epoch: int, loss: float, evaluation: Sequence[float]) -> None:
        """Takes the numbers of an epoch into the history, by the rules of `train.loop.fit`."""
        if not all(map(math.isfinite, (loss, *evaluation))):
            broken = [name for name, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())]
            where = f"{loss}; first in {f'weights {broken[0]!r}' if broken else 'the loss alone'}; seed {self.seed}"
            raise ValueError(f"training loss (got {where}), expected finite numbers; use a lower learning rate")
        history = self.history
        history.losses.append(loss)
        if not evaluation:
            return
        val_accuracy, val_loss, test_accuracy = evaluation
        history.val_accuracy.append(val_accuracy)
        history.test_accuracy.append(test_accuracy)
        if (val_accuracy, -val_loss) > self.best:
            self.best = (val_accuracy, -val_loss)
            history.best_epoch, history.best_state = epoch, copy_state(self.model)


def each(what: str, given: T | Sequence[T], count: int) -> list[T]:
    """One value for each of `count` networks: the one given, or those given; raises `ValueError` for another number."""
    values = list(given) if isinstance(given, Sequence) else [given] * count
    if len(values) != count:
        raise ValueError(f"{what} (got {len(values)}), expected one, or {count}: one a network")
    return values


@dataclass(frozen=True)
class StackedSettings:
    """How many networks are trained: the settings of the weights, and of the gates where there are any."""

    training: TrainingSettings
    gate_learning_rate: float = 1e-3
    gate_l1: float = 0.0


def fit_stacked(
    members: Sequence[Member],
    settings: StackedSettings,
    *,
    evaluate: bool = True,
    on_epoch: Callable[[int, int, History], bool] | None = None,
) -> list[History]:
    """Trains S networks as S calls of `train.loop.fit` would, one step of all of them an epoch.

    On a CUDA device a network alone takes its dropout from torch's generator, here from the sequences of the CPU.

    `on_epoch(number, epoch, history)` is called for every network; returning True ends the fit of that one. Models and
    gates end with tensors of their own, with `evaluate` in the state of the best validation epoch. Networks of
    different kinds (`models.stacked_gcn.kind`) are trained kind by kind. Raises `ValueError` as `fit`, `StackedGCN` and
    `StackedTask`.
    """
    kinds: dict[tuple[float, ...], list[Member]] = {}
    for member in members:
        kinds.setdefault(kind(member.model), []).append(member)

    def ended(member: Member, epoch: int) -> bool:
        return on_epoch is not None and on_epoch(members.index(member), epoch, member.history)

    for group in kinds.values():
        _fit_group(group, settings, evaluate, ended)
    return [member.history for member in members]


def _fit_group(
    members: Sequence[Member], settings: StackedSettings, evaluate: bool, ended: Callable[[Member, int], bool]
) -> None:
    batch, going = _Batch(members, settings, evaluate), list(members)
    for epoch in range(1, settings.training.epochs + 1):
        # The only time an epoch waits for a device.
        measured = batch.epoch().t().tolist()
        for member, (loss, *evaluation) in zip(batch.members, measured, strict=True):
            if member not in going:
                continue
            member.note(epoch, loss, evaluation)
            if ended(member, epoch):
                going.remove(member)
                batch.release(member)
        if not going:
            break
        # A step costs what its networks cost: once half of them are done, a smaller batch pays for being built.
        if 2 * len(going) <= len(batch.members):
            batch = batch.narrowed(going)
    for member in going:
        batch.release(member)
    for member in members if evaluate else ():
        member.model.load_state_dict(member.history.best_state)


class StackedTask:
    """Node classification by S networks on graphs that stand side by side as one, each with its own edges and split.

    Raises `ValueError` for graphs or splits of different sizes, dense features, and labels that are no classes.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        graphs = [member.graph for member in members]
        for graph in graphs:
            check_classes(graph, "networks trained together")
        nodes, self.count = graphs[0].num_nodes, len(graphs)
        features = [graph.features for graph in graphs if isinstance(graph.features, SparseMatrix)]
        if len(features) < self.count:
            raise ValueError("features of graphs together (got dense ones), expected sparse; train the networks apart")
        if any(graph.num_nodes != nodes for graph in graphs):
            raise ValueError(f"graphs together (got {[g.num_nodes for g in graphs]} nodes), expected equal numbers")
        together = torch.cat([member.seen + number * nodes for number, member in enumerate(members)], 1)
        self.edges = Edges.from_pairs(together, self.count * nodes)
        train, val, test = (_part(graphs, name) for name in ("train_mask", "val_mask", "test_mask"))
        labels = torch.stack([graph.labels for graph in graphs])
        firsts = torch.arange(self.count, device=labels.device)[:, None] * nodes
        self._train_labels, self._val_labels = labels.gather(1, train), labels.gather(1, val)
        self._test_labels = labels.gather(1, test)
        self._read = partial(StackedInput.of, features, self.edges, layers=len(members[0].model.layers))
        self._train_nodes = (train + firsts).flatten()
        self._other_nodes = (torch.cat((val, test), 1) + firsts).flatten()

    @cached_property
    def _trained(self) -> StackedInput:
        return self._read(nodes=self._train_nodes)

    @cached_property
    def _evaluated(self) -> StackedInput:
        return self._read(nodes=self._other_nodes)

    def losses(self, model: StackedGCN, gates: Tensor | None, seeds: Tensor) -> Tensor:
        """Each network's mean cross-entropy over its training nodes, [S]; gates and seeds as in `StackedGCN`."""
        return _losses(self._logits(model, self._trained, gates, seeds), self._train_labels)

    def _logits(self, model: StackedGCN, reading: StackedInput, *more: Tensor | None) -> Tensor:
        return forward(self.edges.pattern.col.device, model, reading, self.edges, *more)

    def measures(self, model: StackedGCN) -> Tensor:
        """Validation accuracies, validation losses and test accuracies in evaluation mode, [3, S]."""
        model.eval()
        with torch.no_grad():
            logits = self._logits(model, self._evaluated)
            val, test = logits.split((self._val_labels.shape[1], self._test_labels.shape[1]), 1)
            val_hits, test_hits = _hits(val, self._val_labels), _hits(test, self._test_labels)
            return torch.stack((val_hits, _losses(val, self._val_labels), test_hits))


def _part(graphs: Sequence[Graph], name: str) -> Tensor:
    """The nodes of one part of every graph's split, [S, T]."""
    parts = [getattr(graph, name).nonzero().squeeze(1) for graph in graphs]
    if len(sizes := {part.numel() for part in parts}) > 1:
        raise ValueError(f"{name} of graphs together (got {sorted(sizes)} nodes), expected equal numbers")
    return torch.stack(parts)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    # Classes before nodes: torch's softmax over a short last dimension takes ten times as long.
    return F.cross_entropy(logits.transpose(1, 2).contiguous(), labels, reduction="none").mean(1)


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(2) == labels).float().mean(1)


class _Batch:
    """Members that are stepped together. Their models' parameters and gates are views of stacked ones meanwhile."""

    def __init__(
        self, members: Sequence[Member], settings: StackedSettings, evaluate: bool, seeds: Tensor | None = None
    ) -> None:
        self.members, self.settings, self.evaluate = tuple(members), settings, evaluate
        self.task, self.model = StackedTask(members), StackedGCN([member.model for member in members])
        self.optimizers: list[optim.Optimizer] = [adam(self.model, settings.training)]
        own = [member.gates for member in members if member.gates is not None]
        self.gates = nn.Parameter(torch.cat([gates.detach() for gates in own])) if own else None
        if self.gates is not None:
            self.optimizers.append(adam_of([self.gates], settings.gate_learning_rate))
            for gates, part in zip(own, self.gates.data.split([gates.numel() for gates in own]), strict=True):
                gates.data = part
        if any(member.mask is not None for member in members):
            enforce_mask(self.model, self.model.stacked([member.mask for member in members]), self.optimizers[0])
        pattern = self.task.edges.pattern
        if seeds is None:
            drawn = [member.dropout_seeds(settings.training.epochs, self.model.draws) for member in members]
            seeds = torch.stack(drawn, 2).to(pattern.col.device)
        # All of them lie on the device from the start, and so does their number: a recorded step takes the next.
        self.seeds, self.steps = seeds, torch.zeros(1, dtype=torch.long, device=seeds.device)
        recorded = replays(pattern.col.device, pattern.nnz)
        self.epoch = Replay(self._epoch, self.optimizers) if recorded else self._epoch

    def _epoch(self) -> Tensor:
        """One step of all: the losses before it and, with `evaluate`, the measures after it, [1 or 4, S]."""
        measured = self._step().unsqueeze(0)
        return torch.cat((measured, self.task.measures(self.model))) if self.evaluate else measured

    def release(self, member: Member) -> None:
        """Gives a member's model and gates tensors of their own, as they are now."""
        self.model.release(self.members.index(member))
        if member.gates is not None:
            member.gates.data = member.gates.data.clone()

    def narrowed(self, going: Sequence[Member]) -> _Batch:
        """A batch of these members alone, which goes on where this one is."""
        numbers = [self.members.index(member) for member in going]
        smaller = _Batch(going, self.settings, self.evaluate, self.seeds[:, :, numbers].contiguous())
        smaller.steps.copy_(self.steps)
        rows = {layer.weight: layer.rows for layer in self.model.layers}
        if self.gates is not None:
            rows[self.gates] = [member.gates.numel() for member in self.members if member.gates is not None]
        for old, new in zip(self.optimizers, smaller.optimizers, strict=True):
            before, after = ([p for group in o.param_groups for p in group["params"]] for o in (old, new))
            for source, target in zip(before, after, strict=True):
                sizes = rows.get(source, [1] * len(self.members))
                new.state[target] = {
                    name: torch.cat([value.split(sizes)[number] for number in numbers]) if value.dim() else value
                    for name, value in old.state[source].items()
                }
        return smaller

    def _step(self) -> Tensor:
        self.model.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        seeds = self.seeds.index_select(0, self.steps)[0]
        self.steps += 1
        losses = self.task.losses(self.model, self.gates, seeds)
        total = losses.sum()
        if self.gates is not None and self.settings.gate_l1:
            total = total + self.settings.gate_l1 * self.gates.abs().sum()
        total.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return losses.detach()
