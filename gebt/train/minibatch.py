"""Training batch by batch, in one process or many, of graphs in memory or on disk.

A step of the weights takes `accumulate_batches` batches, whose gradients are added up; processes share them. What is
random comes from (seed, epoch, batch) alone, so any number of processes does what one does, up to the rounding of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel

from gebt.graph.adjacency import adjacency_of
from gebt.graph.batch_schedule import BatchSchedule, stream_of
from gebt.graph.batches import Batch
from gebt.graph.edges import Edges
from gebt.graph.graph import Graph
from gebt.graph.links import LinkGraph
from gebt.graph.metrics import Metric, Target, label_loss, measure
from gebt.prune.mask import Mask
from gebt.sparse.pattern import SparseMatrix
from gebt.ticket import Ticket
from gebt.train.edge_values import EdgeValueStore
from gebt.train.layerwise import LayerByLayer, Layered
from gebt.train.links import LinkTask
from gebt.train.loop import History, NodeTask, copy_state, following, seeded
from gebt.train.processes import ALONE, Processes
from gebt.train.tasks import task_for

_HISTORY = ("losses", "val_accuracy", "test_accuracy", "best_epoch", "best_state")


class Source(Protocol):
    """A graph of which batches are read: in memory (`Graph`), or mapped."""

    @property
    def name(self) -> str: ...
    @property
    def num_nodes(self) -> int: ...
    @property
    def num_pairs(self) -> int: ...
    @property
    def num_features(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def metric(self) -> Metric: ...
    @property
    def target(self) -> Target: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def train_mask(self) -> Tensor: ...
    @property
    def val_mask(self) -> Tensor: ...
    @property
    def test_mask(self) -> Tensor: ...
    def features_of(self, nodes: Tensor) -> Tensor | SparseMatrix:
        """Their features [n, F]."""


@dataclass(eq=False)
class Batched:
    """A training batch by batch: what is read, how it is cut, and by whom.

    `edges`: the whole adjacency, or None where it is not in memory; then evaluation goes layer by layer. `kept`: the
    mask of the pairs that are there, None: all. `scratch`: a folder for what does not stay in memory either.
    """

    source: Source
    schedule: BatchSchedule
    processes: Processes = ALONE
    kept: Mask | None = None
    edges: Edges | None = None
    device: str = "cpu"
    scratch: Path | None = None

    def graph_of(self, batch: Batch) -> Graph:
        """A batch as a graph of its own; only its targets are in a part of the split."""
        own, nodes = self.source, batch.nodes
        counts = torch.zeros(nodes.numel(), dtype=torch.bool)
        counts[batch.targets] = True
        train, val, test = (mask[nodes] & counts for mask in (own.train_mask, own.val_mask, own.test_mask))
        given = (own.name, batch.pairs, own.features_of(nodes), own.labels[nodes])
        graph = Graph(*given, train, val, test, own.num_classes, metric=own.metric, target=own.target)
        return graph if self.device == "cpu" else graph.to(self.device)

    def task_of(self, batch: Batch) -> tuple[NodeTask, Tensor]:
        """What is learnt on a batch without its pruned pairs, and the numbers of the pairs that are left.

        Links: those of the batch are to be found, also pruned ones.
        """
        thin = self.thinned(batch)
        if isinstance(self.source, LinkGraph):
            return LinkTask(self.graph_of(batch), thin.edges.to(self.device), keep_aggregated=False), thin.pair_ids
        # A_hat X would be computed for one product.
        return task_for(self.graph_of(thin), keep_aggregated=False), thin.pair_ids

    def thinned(self, batch: Batch) -> Batch:
        """The batch without pruned pairs."""
        if self.kept is None:
            return batch
        stays = self.kept.at(batch.pair_ids)
        return Batch(batch.nodes, batch.pairs[:, stays], batch.pair_ids[stays], batch.targets)

    def release(self) -> None:
        """Lets go of what was read of a mapped graph."""
        adjacency_of(self.schedule.sampler.edges).release()

    def seen_by(self, ticket: Ticket) -> Batched:
        """The same without the pairs that the ticket prunes."""
        edges = ticket.edges(self.source) if isinstance(self.source, Graph) and self.edges is not None else None
        return replace(self, kept=ticket.edge_mask, edges=edges)

    def _whole(self) -> NodeTask:
        """The task of the whole graph, which is in memory."""
        assert isinstance(self.source, Graph)
        if self.device == "cpu":
            return task_for(self.source, self.edges)
        return task_for(self.source.to(self.device), self.edges.to(self.device) if self.edges else None)

    def infer(self, model: nn.Module) -> None:
        """One inference of all nodes by this process: at once where the graph is in memory, else layer by layer."""
        model.eval()
        with torch.no_grad():
            if isinstance(self.source, Graph) and self.edges is not None:
                self._whole().logits(model)
                return
            self._layers.logits(cast(Layered, model), torch.arange(self.source.num_nodes))

    def evaluate(self, model: nn.Module) -> tuple[float, float, float]:
        """Validation score, validation loss and test score: of the whole graph at once where it is in memory.

        Else layer by layer, shared by the processes: the same to rounding.
        """
        if isinstance(self.source, Graph) and self.edges is not None:
            return self._whole().evaluate(model)
        model.eval()
        own = self.source
        nodes = (own.val_mask | own.test_mask).nonzero().squeeze(1)
        with torch.no_grad():
            logits = self._layers.logits(cast(Layered, model), nodes, self.processes)
        labels = own.labels[nodes]
        val, test = own.val_mask[nodes], own.test_mask[nodes]
        loss = label_loss(own.target, logits[val], labels[val])
        return (
            float(measure(own.metric, logits[val], labels[val])),
            float(loss),
            float(measure(own.metric, logits[test], labels[test])),
        )

    @cached_property
    def _layers(self) -> LayerByLayer:
        """Inference of a graph that is not in memory."""
        return LayerByLayer(
            self.source, adjacency_of(self.schedule.sampler.edges), self.kept, scratch=self.scratch, device=self.device
        )


class BatchedFit:
    """`train.loop.fit` batch by batch: one network, its optimizer, and pair values that train beside it, if given.

    The loss of an epoch is the mean over the training labels that its batches have. Pair values take one step an epoch,
    from the gradients of all its batches together. Raises `ValueError` when the loss is no longer a finite number.
    """

    def __init__(
        self,
        model: nn.Module,
        batched: Batched,
        optimizer: optim.Optimizer,
        *,
        seed: int = 0,
        values: EdgeValueStore | None = None,
        evaluate: bool = True,
        evaluate_every: int = 1,
    ) -> None:
        self.model, self.batched, self.optimizer, self.seed, self.values = model, batched, optimizer, seed, values
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.history, self.best = History(), (-math.inf, 0.0)
        self._several = batched.processes.count > 1
        self._shared = DistributedDataParallel(model) if self._several else model
        # The means and variances of normalization; whole numbers only count steps.
        self._moving = [buffer for buffer in model.buffers() if buffer.is_floating_point()]

    def run(self, epochs: int, on_epoch: Callable[[int, History], bool] | None = None) -> History:
        """Trains up to epoch `epochs`; `on_epoch` as in `fit`. The model ends in the state of its best epoch."""
        schedule = self.batched.schedule
        with following(self.model) if len(schedule) <= schedule.settings.accumulate_batches else nullcontext():
            self._run(epochs, on_epoch)
        if self.evaluate:
            self.model.load_state_dict(self.history.best_state)
        return self.history

    def _run(self, epochs: int, on_epoch: Callable[[int, History], bool] | None) -> None:
        for epoch in range(len(self.history.losses) + 1, epochs + 1):
            loss = self._epoch(epoch)
            if not math.isfinite(loss):
                raise ValueError(f"training loss (got {loss} in epoch {epoch}), expected a finite number; "
                                 "use a lower learning rate")  # fmt: skip
            self.history.losses.append(loss)
            if self.evaluate and (epoch % self.evaluate_every == 0 or epoch == epochs):
                self._judge(epoch)
            if on_epoch is not None and on_epoch(epoch, self.history):
                break

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs, but for the pair values."""
        history = {name: getattr(self.history, name) for name in _HISTORY}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": history,
            "best": list(self.best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.best = History(**state["history"]), (state["best"][0], state["best"][1])

    def _judge(self, epoch: int) -> None:
        val, val_loss, test = self.batched.evaluate(self.model)
        history = self.history
        # Epochs that were not judged stand as the last one that was.
        missing = epoch - len(history.val_accuracy) - 1
        for scores, score in ((history.val_accuracy, val), (history.test_accuracy, test)):
            scores.extend([scores[-1] if scores else 0.0] * missing)
            scores.append(score)
        if (val, -val_loss) > self.best:
            self.best, history.best_epoch, history.best_state = (val, -val_loss), epoch, copy_state(self.model)

    def _epoch(self, epoch: int) -> float:
        schedule, told = self.batched.schedule, torch.zeros(2, dtype=torch.float64)
        accumulate_batches = schedule.settings.accumulate_batches
        self.model.train()
        for first in range(0, len(schedule), accumulate_batches):
            self._step(epoch, range(first, min(first + accumulate_batches, len(schedule))), told)
        total, num_labels = self.batched.processes.sum_(told).tolist()
        if self.values is not None:
            # Of the mean over all that the epoch's batches have learnt from.
            self.values.step(1 / max(1.0, num_labels))
        return total / max(1.0, num_labels)

    def _step(self, epoch: int, group: range, told: Tensor) -> None:
        """One step of the weights from the batches of a group; every process takes as many turns."""
        processes = self.batched.processes
        mine = list(processes.part_of(group))
        tasks = [self._task(epoch, number) for number in mine]
        own = [task.num_labels for task, _ in tasks]
        num_labels = int(processes.sum_(torch.tensor(sum(own))))
        if not num_labels:
            return
        turns = -(-len(group) // processes.count)
        before = [buffer.clone() for buffer in self._moving]
        moved = [torch.zeros_like(buffer) for buffer in before]
        self.optimizer.zero_grad()
        for turn in range(turns):
            # Whoever has no batch left repeats one at no weight: all must be there when gradients are added up.
            idle = turn >= len(mine)
            number = group[0] if idle else mine[turn]
            task, ids = self._task(epoch, number) if idle else tasks[turn]
            weight = 0 if idle else own[turn]
            for buffer, start in zip(self._moving, before, strict=True):
                buffer.copy_(start)
            last = turn == turns - 1
            sync = nullcontext() if last or not self._several else self._shared.no_sync()  # type: ignore[operator]
            with seeded(stream_of(self.seed, epoch, number, 1)), sync:
                loss = self._backward(task, ids[:0] if idle else ids, weight, num_labels, idle)
            told += torch.tensor([loss * weight, weight], dtype=torch.float64)
            if not idle:
                for total, buffer in zip(moved, self._moving, strict=True):
                    total += buffer
        for total, buffer in zip(moved, self._moving, strict=True):
            buffer.copy_(processes.sum_(total) / len(group))
        self.optimizer.step()
        self.batched.release()
        if self.values is not None:
            self.values.release()

    def _task(self, epoch: int, number: int) -> tuple[NodeTask, Tensor]:
        return self.batched.task_of(self.batched.schedule.batch(epoch, number))

    def _backward(self, task: NodeTask, ids: Tensor, weight: int, num_labels: int, idle: bool) -> float:
        """Adds the gradients of one batch, of `weight` among the `num_labels` of its group; returns its mean loss."""
        leaf = None
        if self.values is not None:
            read = self.values.read(ids)
            leaf = (read if not idle else read.new_ones(task.edges.num_pairs)).to(self.batched.device)
            leaf.requires_grad_(not idle)
        logits = task.logits(self._shared, leaf)
        loss = task.loss(logits) if weight else logits.sum() * 0
        # DistributedDataParallel takes the mean over processes.
        (loss * (weight / num_labels * self.batched.processes.count)).backward()
        if self.values is not None:
            assert leaf is not None
            gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(read)
            # Of the sum over the group, and not the mean over the processes.
            self.values.add_gradient(ids, gradient * (num_labels / self.batched.processes.count))
        return float(loss.detach())
