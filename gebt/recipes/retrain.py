"""Training a ticket: its edges and its weights alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import nn

from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.models.compact import CompactedModel, compact_model
from gebt.models.gnn import GCN
from gebt.models.links import LinkPredictor
from gebt.models.registry import Network
from gebt.prune.enforce import enforce_mask
from gebt.prune.mask import Mask
from gebt.ticket import StartWeights, Ticket, TicketError
from gebt.train.loop import History, NodeTask, SoftLabels, TrainingSettings, adam, fit
from gebt.train.result import REINIT_SEED
from gebt.train.stacked import Member, StackedSettings, each, fit_stacked
from gebt.train.tasks import task_for


@dataclass(frozen=True)
class RetrainSettings:
    """How a ticket is trained; the values of the presets and why are in docs/method.md.

    Attributes:
        training: epochs, learning rate and weight decay.
        start: the start weights, "inherit" (at the draw), "rewind" (the initial ones) or "reinit".
        compaction: train one of our networks as the smaller network that the masks leave (`models.compact`).
        distill: weight of the loss to the ticket's soft labels, where it has some (`train.loop.SoftLabels`).

    Raises:
        ValueError: a negative `distill`.

    Example:
        >>> RetrainSettings().training.epochs, RetrainSettings(start="rewind").start
        (100, 'rewind')
    """

    training: TrainingSettings = field(default_factory=lambda: TrainingSettings(epochs=100, learning_rate=0.04))
    start: StartWeights = "inherit"
    compaction: bool = True
    distill: float = 30.0

    def __post_init__(self) -> None:
        if self.distill < 0:
            raise ValueError(f"distill (got {self.distill}), expected at least 0")


@dataclass(frozen=True)
class RetrainResult:
    """A trained ticket, evaluated on the pruned graph.

    Attributes:
        history: losses and accuracies, epoch by epoch.
        edges: the kept edges.
        compacted: the smaller network that was trained; None: the full one was.
        edge_sparsity: share of the pairs pruned.
        weight_sparsity: share of the weights pruned.
    """

    history: History
    edges: Edges
    compacted: CompactedModel | None
    edge_sparsity: float
    weight_sparsity: float

    @property
    def test_accuracy(self) -> float:
        """Test accuracy in [0, 1] at the best validation epoch, evaluated on the pruned graph."""
        return self.history.accuracy

    @property
    def best_epoch(self) -> int:
        """Epoch (from 1) of the best validation accuracy."""
        return self.history.best_epoch


def run(
    ticket: Ticket,
    model: nn.Module,
    graph: Graph,
    settings: RetrainSettings | None = None,
    *,
    seed: int = 0,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> RetrainResult:
    """Trains the ticket: pruned edges do not exist, pruned weights stay zero throughout.

    With `settings.compaction` one of our networks is trained as the smaller network that the masks leave
    (`models.compact`): the same in law, not bit for bit, since dropout then draws fewer numbers.

    Args:
        ticket: of this graph and network.
        model: receives the ticket's start weights and ends in the state of its best validation epoch.
        graph: the full graph.
        settings: how to train; default: those of the preset "best".
        seed: of dropout.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the training.

    Returns:
        The trained ticket's history, edges and sparsities.

    Raises:
        TicketError: the ticket belongs to another graph or model.
        RuntimeError: the trained weights do not have the ticket's sparsity.
    """
    settings = settings or RetrainSettings()
    ticket.check(model, graph)
    ticket.start(model, settings.start, seed + REINIT_SEED)
    edges = ticket.edges(graph)
    soft, small = _soft_labels(ticket, model, graph, settings), None
    if not (settings.compaction and isinstance(model, Network | LinkPredictor)):
        history = _train(model, ticket.weight_mask, task_for(graph, edges, soft=soft), settings, seed, on_epoch)
    else:
        small = compact_model(model, ticket.weight_mask, graph)
        history = _train(small.model, small.mask, task_for(small.graph, edges, soft=soft), settings, seed, on_epoch)
        small.restore(model)
    _check_pruned(model, ticket)
    return RetrainResult(history, edges, small, ticket.edge_sparsity, ticket.weight_sparsity)


def run_stacked(
    tickets: Sequence[Ticket],
    models: Sequence[GCN],
    graphs: Graph | Sequence[Graph],
    settings: RetrainSettings | None = None,
    *,
    seeds: Sequence[int],
    on_epoch: Callable[[int, int, History], bool] | None = None,
) -> list[RetrainResult]:
    """What many calls of `run` return, one a ticket, all networks trained together (`train.stacked`).

    Each equals that of its own call up to rounding, if that one keeps its features sparse: products are not measured
    here. When it is worth while: `worth_stacking`.

    Args:
        tickets: without soft labels that would be distilled, and without edge weights.
        models: one GCN a ticket; each ends in the state of its best validation epoch.
        graphs: one for all, or one a ticket.
        settings: how to train; default: those of the preset "best".
        seeds: of dropout, one a ticket.
        on_epoch: called with the number of the network, the epoch and its history; returning True ends its training.

    Returns:
        One result a ticket.

    Raises:
        TicketError: as `run`.
        ValueError: tickets that need more than a stack computes, and as `fit_stacked`.
    """
    settings, graphs = settings or RetrainSettings(), each("graphs", graphs, len(tickets))
    if settings.distill and any(ticket.soft_labels is not None for ticket in tickets):
        raise ValueError(f"distill (got {settings.distill}), expected 0 to train together; train them one by one")
    if any(ticket.edge_weights is not None for ticket in tickets):
        raise ValueError("edge weights of a ticket (got some), expected none to train together; train them one by one")
    rows = list(zip(tickets, models, graphs, seeds, strict=True))
    for ticket, model, graph, seed in rows:
        ticket.check(model, graph)
        ticket.start(model, settings.start, seed + REINIT_SEED)
    members, smalls = [], []
    for ticket, model, graph, seed in rows:
        pairs = graph.pairs[:, ticket.edge_mask[EDGES].to(graph.pairs.device)]
        small = compact_model(model, ticket.weight_mask, graph, choose=False) if settings.compaction else None
        parts = (model, graph, ticket.weight_mask) if small is None else (small.model, small.graph, small.mask)
        members.append(Member(cast(GCN, parts[0]), parts[1], seed, pairs, parts[2]))
        smalls.append(small)
    fit_stacked(members, StackedSettings(settings.training), on_epoch=on_epoch)
    results = []
    for ticket, model, member, small in zip(tickets, models, members, smalls, strict=True):
        if small is not None:
            small.restore(model)
        _check_pruned(model, ticket)
        edges = Edges.from_pairs(member.seen, member.graph.num_nodes)
        results.append(RetrainResult(member.history, edges, small, ticket.edge_sparsity, ticket.weight_sparsity))
    return results


def _train(
    model: nn.Module,
    mask: Mask | None,
    task: NodeTask,
    settings: RetrainSettings,
    seed: int,
    on_epoch: Callable[[int, History], bool] | None,
) -> History:
    optimizer = adam(model, settings.training)
    handle = enforce_mask(model, mask, optimizer) if mask is not None else None
    try:
        return fit(model, task, [optimizer], settings.training.epochs, seed=seed, on_epoch=on_epoch)
    finally:
        if handle is not None:
            handle.remove()


def _soft_labels(ticket: Ticket, model: nn.Module, graph: Graph, settings: RetrainSettings) -> SoftLabels | None:
    if not settings.distill or ticket.soft_labels is None:
        return None
    if ticket.provenance["fingerprint"] != graph.fingerprint:
        labeled = ticket.provenance["graph"]
        raise TicketError(
            f"distill (got {settings.distill}), expected 0 on {graph.name!r}: the ticket's labels are of {labeled!r}"
        )
    return SoftLabels(ticket.soft_labels.to(next(model.parameters())), settings.distill)


def _check_pruned(model: nn.Module, ticket: Ticket) -> None:
    parameters = dict(model.named_parameters())
    for name, kept in ticket.weight_mask.items():
        if bool(parameters[name][~kept.to(parameters[name].device)].any()):
            raise RuntimeError(f"pruned entries of {name!r} (got non-zero after retraining), expected zero")
