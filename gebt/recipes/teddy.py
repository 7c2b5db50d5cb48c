"""TEDDY (Seo et al., ICLR 2024): edges by degree in one shot, weights projected after every step, a dense teacher."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph, check_classes
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.prune.selection import keep_highest, make_mask, pruned_count
from gebt.prune.tie_breaking import TieBreaker
from gebt.ticket import make_ticket
from gebt.train.loop import History, SoftLabels, TrainingSettings, adam, copy_state, fit
from gebt.train.result import MethodResult, Phase
from gebt.train.tasks import task_for


@dataclass(frozen=True)
class TeddySettings:
    """Training of teacher and student.

    Attributes:
        training: epochs, learning rate and weight decay of both.
        distill: weight of the loss to the teacher's predictions; the release's example for GIN is 10.
    """

    training: TrainingSettings = field(default_factory=TrainingSettings)
    distill: float = 10.0


def degree_score(pairs: Tensor, num_nodes: int) -> Tensor:
    """TEDDY's score of edges, highest between nodes of low degree.

    s_uv = g_u g_v with g_v = (1 / d_v^2) sum over the neighbors u of v of d_u^-1/2, d the degrees.

    Args:
        pairs: [2, P].
        num_nodes: N.

    Returns:
        s [P] float64.

    Source:
        Seo et al., TEDDY, ICLR 2024, eq. 5, and the code released with it.

    Example:
        A path of four nodes: its ends rank above its middle.

        >>> [round(score, 3) for score in degree_score(torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4).tolist()]
        [0.302, 0.182, 0.302]
    """
    u, v = pairs
    degree = torch.bincount(pairs.flatten(), minlength=num_nodes).double()
    inverse_root = torch.where(degree == 0, 0.0, degree.rsqrt())
    gathered = torch.zeros_like(degree).index_add_(0, u, inverse_root[v]).index_add_(0, v, inverse_root[u])
    g = torch.where(degree == 0, 0.0, gathered / degree.square())
    return g[u] * g[v]


def run(
    model: nn.Module,
    graph: Graph,
    *,
    edge_ratio: float,
    weight_ratio: float,
    settings: TeddySettings | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> MethodResult:
    """Trains a dense teacher, removes the edges of lowest `degree_score`, and trains the student once.

    After every step of the student the ceil(weight_ratio n) entries of smallest magnitude among all n parameters,
    biases too, are set to zero; they may come back at the next step.

    Args:
        model: ends as the student of its best validation epoch; a copy of it is the teacher.
        graph: the graph whose pairs are to be pruned.
        edge_ratio: share of the pairs to prune, in [0, 1).
        weight_ratio: share of the parameters to prune, in [0, 1).
        settings: of the trainings.
        seed: of dropout, and of the random order that settles ties of edges and of weights.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the training under way.

    Returns:
        The ticket, and the student's history.

    Raises:
        ValueError: as `gebt.make_mask`.
        GraphError: a label is not one class.

    Source:
        Seo et al., TEDDY, ICLR 2024.
    """
    settings = settings or TeddySettings()
    check_classes(graph, "TEDDY's distillation")
    pruned_count(1, weight_ratio)
    tie_break = TieBreaker.from_generator(torch.Generator().manual_seed(seed))
    scores = {EDGES: degree_score(graph.pairs, graph.num_nodes)}
    edge_mask = make_mask(scores, ratio=edge_ratio, tie_break=tie_break, allow_empty=True)
    initial = copy_state(model)
    teacher, full_task = copy.deepcopy(model), task_for(graph)
    optimizer, epochs = adam(teacher, settings.training), settings.training.epochs
    fit(teacher, full_task, [optimizer], epochs, seed=seed, on_epoch=on_epoch)
    teacher.eval()
    with torch.no_grad():
        taught = full_task.logits(teacher).log_softmax(1)
    edges = Edges.from_pairs(graph.pairs[:, edge_mask[EDGES]], graph.num_nodes)
    task = task_for(graph, edges, soft=SoftLabels(taught, settings.distill))
    optimizer = adam(model, settings.training)
    handle = optimizer.register_step_post_hook(_Projection(model, weight_ratio, tie_break))
    try:
        history = fit(model, task, [optimizer], epochs, seed=seed, on_epoch=on_epoch)
    finally:
        handle.remove()
    weight_mask = Mask({name: weight.detach() != 0 for name, weight in prunable_weights(model).items()})
    provenance = {
        "method": "teddy",
        "edge_ratio": edge_ratio,
        "weight_ratio": weight_ratio,
        "seed": seed,
        "epoch_drawn": history.best_epoch,
        "epochs": epochs,
        "fired": False,
    }
    ticket = make_ticket(model, graph, edge_mask, weight_mask, initial, provenance)
    # The student's weights are dense between its steps; those it multiplies with are projected.
    phases = (Phase(epochs, graph.num_pairs, weight_mask.size), Phase(epochs, edges.num_pairs, weight_mask.kept))
    return MethodResult(ticket, history, edges, phases)


class _Projection:
    """Zeroes the smallest parameters: the projection on the vectors with at most floor((1 - ratio) n) entries."""

    def __init__(self, model: nn.Module, ratio: float, tie_break: TieBreaker) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.tie_break, self.count = tie_break, math.ceil(ratio * sum(p.numel() for p in self.parameters))

    def __call__(self, *_: Any) -> None:
        if not self.count:
            return
        with torch.no_grad():
            together = torch.cat([p.detach().abs().flatten() for p in self.parameters])
            kept = keep_highest(together, self.count, self.tie_break.of)[0]
            sizes = [p.numel() for p in self.parameters]
            for parameter, part in zip(self.parameters, kept.split(sizes), strict=True):
                parameter.mul_(part.view(parameter.shape))
