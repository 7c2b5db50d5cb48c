"""Link prediction: training edges against pairs drawn anew each step; the network is `models.links.LinkPredictor`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.graph.edges import Edges
from gebt.graph.graph import Graph
from gebt.graph.links import HELD, LinkGraph
from gebt.graph.metrics import link_measure
from gebt.sparse.precision import forward
from gebt.train.loop import NodeTask

# Real pairs that a step learns from: all of them up to here, beyond it so many drawn anew, as in OGB's examples.
MOST_TARGETS = 1 << 16


class LinkTask(NodeTask):
    """Link prediction on one graph, seen through the given edges (the training edges, or those a ticket keeps).

    Every training edge of the graph stays a target, also one that a ticket has pruned: pruned edges carry no message,
    but are known to be real. A target that is kept carries its message too, as in OGB's examples. The `logits` of this
    task are scores of pairs [n]: in training of the targets, real ones first, then as many drawn; in evaluation of the
    pairs held out, which a graph that is only trained on (a batch) need not have (`LinkGraph.eval_pairs`).
    Raises `ValueError` for soft labels or a term of class logits (`extra_loss`).
    """

    classifies = False

    def __init__(self, graph: Graph, edges: Edges | None = None, **options: Any) -> None:
        if given := [name for name in ("soft", "extra_loss") if options.get(name) is not None]:
            raise ValueError(f"link prediction (got {given[0]!r}), expected no loss on opinions of classes")
        super().__init__(graph, edges, **options)

    def targets(self) -> Tensor:
        """The pairs [2, 2n] of a step: n training edges, then n pairs of two different nodes, drawn by torch's seed.

        n: all training edges, or `MOST_TARGETS` of them drawn with replacement. A drawn pair may happen to be an edge:
        in a sparse graph next to none are, and whether a pair is one in the parts held out must not be told.
        """
        real = self.graph.pairs
        if real.shape[1] > MOST_TARGETS:
            real = real[:, torch.randint(real.shape[1], (MOST_TARGETS,), device=real.device)]
        return torch.cat((real, _two_nodes(self.graph.num_nodes, real.shape[1], real.device)), 1)

    @property
    def num_labels(self) -> int:
        """How many real pairs a step learns from."""
        return min(self.graph.num_pairs, MOST_TARGETS)

    @property
    def _held(self) -> LinkGraph:
        """The graph with the pairs held out of it."""
        assert isinstance(self.graph, LinkGraph)
        return self.graph

    def logits(self, model: nn.Module, gates: Tensor | None = None) -> Tensor:
        """Scores of this step's targets [2n] while the model trains, of the pairs held out [H] otherwise."""
        return self._run(model, gates, self.targets() if model.training else self._held.eval_pairs)

    def predict_proba(self, model: nn.Module) -> Tensor:
        """Embeddings [N, d] of all nodes: what the network says of them here."""
        return self._run(model, None, None)

    def _run(self, model: nn.Module, gates: Tensor | None, pairs: Tensor | None) -> Tensor:
        known = self.aggregated if gates is None and getattr(model, "starts_from_aggregated", False) else None
        device = self.edges.pattern.col.device
        return forward(device, model, self.graph.features, self.edges, gates, known, pairs)

    def loss(self, logits: Tensor) -> Tensor:
        """Mean of -log sigmoid(s) over the real pairs and of -log(1 - sigmoid(s)) over as many drawn; s [2n]."""
        return _cross_entropy(*logits.chunk(2))

    def measures(self, model: nn.Module) -> Tensor:
        """The graph's metric on the validation edges, the loss on them (both sides weigh the same), the metric on test.

        [3] on the model's device, in evaluation mode.
        """
        val, val_loss, test = self.metrics(model, self.graph.metric)
        return torch.stack((val, val_loss, test))

    def metrics(self, model: nn.Module, metric: Any) -> tuple[Tensor, Tensor, Tensor]:
        """`measures` by another metric of links."""
        model.eval()
        with torch.no_grad():
            sizes = [getattr(self._held, part).shape[1] for part in HELD]
            val, val_others, test, test_others = self.logits(model).split(sizes)
            val_loss = _cross_entropy(val, val_others)
            return link_measure(metric, val, val_others), val_loss, link_measure(metric, test, test_others)


def _cross_entropy(real: Tensor, drawn: Tensor) -> Tensor:
    return (F.softplus(-real).mean() + F.softplus(drawn).mean()) / 2


def _two_nodes(nodes: int, count: int, device: torch.device) -> Tensor:
    """`count` ordered pairs of two different nodes, all alike, [2, count]."""
    u = torch.randint(nodes, (count,), device=device)
    # The smallest batch is one node: it has no pair, and none is drawn.
    return torch.stack((u, (u + torch.randint(1, max(2, nodes), (count,), device=device)) % nodes))
