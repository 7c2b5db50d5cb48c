"""Graph classification: whole graphs have labels, and those that are held out are not seen in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.graph.edges import Edges
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.graph.metrics import measure
from gebt.sparse.precision import forward
from gebt.train.loop import NodeTask, SoftLabels

# Graphs of a step: few enough for many steps an epoch, enough for the statistics of batch normalization.
BATCH = 64


class Part(NamedTuple):
    """Some graphs of a set and the edges they are seen through."""

    graph: GraphClassificationFold
    edges: Edges


class GraphsTask(NodeTask):
    """Classification of the graphs of a fold, seen through the given edges (their own, or a ticket's); as `NodeTask`.

    A network in training sees the training graphs and no other: norms, gates and soft labels are of those alone. An
    epoch is a step for each batch of about `BATCH` of them.
    """

    graph: GraphClassificationFold
    one_step = False

    def __init__(
        self,
        graph: GraphClassificationFold,
        edges: Edges | None = None,
        *,
        soft: SoftLabels | None = None,
        extra_loss: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(graph, edges, keep_aggregated=False, soft=soft, extra_loss=extra_loss)

    @cached_property
    def seen(self) -> Part:
        """The training graphs."""
        return self._part(self.graph.train_mask)

    @cached_property
    def held_out(self) -> Part:
        """The validation and test graphs."""
        return self._part(self.graph.val_mask | self.graph.test_mask)

    @cached_property
    def _batches(self) -> tuple[NodeTask, ...]:
        """The training graphs in batches of about equal size, drawn once: their patterns are then kept."""
        graphs = self._train[0]
        drawn = graphs[torch.randperm(len(graphs)).to(graphs.device)].chunk(math.ceil(len(graphs) / BATCH))
        return tuple(self._batch(torch.zeros_like(self.graph.train_mask).index_fill(0, own, True)) for own in drawn)

    def _batch(self, chosen: Tensor) -> _Batch:
        said = None if self.soft is None else replace(self.soft, log_probabilities=self.soft.log_probabilities[chosen])
        return _Batch(*self._part(chosen), soft=said, extra_loss=self.extra_loss)

    def steps(self) -> Sequence[NodeTask]:
        """The batches of the training graphs, in an order drawn anew."""
        return [self._batches[number] for number in torch.randperm(len(self._batches)).tolist()]

    def _part(self, chosen: Tensor) -> Part:
        whole = replace(self.graph, pairs=self.edges.pairs)
        part, fixed = whole.part(chosen), self.edges.fixed
        values = None if fixed is None else fixed[chosen[whole.graph_of_pair]]
        return Part(part, Edges.from_pairs(part.pairs, part.num_nodes, values))

    def logits(self, model: nn.Module, gates: Tensor | None = None) -> Tensor:
        """Logits [G, C] of a model in evaluation mode; of the training graphs alone, in their order, in training."""
        return _logits(model, self.seen if model.training else Part(self.graph, self.edges), gates)

    def loss(self, logits: Tensor) -> Tensor:
        """Mean cross-entropy of the training graphs' logits; with soft labels q, + weight * mean of KL(q || p)."""
        graphs, labels = self._train
        hard = F.cross_entropy(logits, labels)
        if self.extra_loss is not None:
            hard = hard + self.extra_loss(logits)
        if self.soft is None:
            return hard
        said = self.soft.log_probabilities[graphs]
        return hard + self.soft.weight * F.kl_div(logits.log_softmax(1), said, log_target=True, reduction="batchmean")

    def measures(self, model: nn.Module) -> Tensor:
        """Validation accuracy, validation loss and test accuracy of the model in evaluation mode, [3]."""
        model.eval()
        held = self.held_out
        with torch.no_grad():
            logits = _logits(model, held)
            (val, val_labels), (test, test_labels) = (
                (logits[mask], held.graph.labels[mask]) for mask in (held.graph.val_mask, held.graph.test_mask)
            )
            metric = self.graph.metric
            val_score, test_score = measure(metric, val, val_labels), measure(metric, test, test_labels)
            return torch.stack((val_score, F.cross_entropy(val, val_labels), test_score))


class _Batch(GraphsTask):
    """Training graphs and no others."""

    @cached_property
    def seen(self) -> Part:
        return Part(self.graph, self.edges)


def _logits(model: nn.Module, part: Part, gates: Tensor | None = None) -> Tensor:
    graph, edges = part
    of_graphs = {"graph_of": graph.graph_of, "num_graphs": graph.num_graphs}
    return forward(edges.pattern.col.device, model, graph.features, edges, gates, **of_graphs)
