"""Baselines of a ticket: the dense network, DropEdge, and random pruning at equal sparsity."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import nn

from gebt.graph.edge_scorer import keep_of_each_graph
from gebt.graph.edges import EDGES
from gebt.graph.graph import Graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.models.gnn import GCN
from gebt.prune.mask import Mask
from gebt.prune.n_m_sparsity import two_of_four
from gebt.prune.scores import prunable_weights, random
from gebt.prune.selection import make_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.sparse.structure import WeightStructure, entry_mask, features_share, groups_of, select_units
from gebt.ticket import Ticket, make_ticket
from gebt.train.loop import History, TrainingSettings, adam, copy_state, fit
from gebt.train.stacked import Member, StackedSettings, each, fit_stacked
from gebt.train.tasks import task_for


def dense(
    model: nn.Module,
    graph: Graph,
    settings: TrainingSettings | None = None,
    *,
    seed: int = 0,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> History:
    """Trains the dense network on the full graph.

    Args:
        model: ends in the state of its best validation epoch.
        graph: the graph to train on.
        settings: epochs, learning rate and weight decay.
        seed: of dropout.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the training.

    Returns:
        Losses and accuracies, epoch by epoch.

    Example:
        >>> import gebt
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes, seed=0)
        >>> history = dense(model, graph, TrainingSettings(epochs=2))
        >>> len(history.losses), history.losses[1] < history.losses[0]
        (2, True)
    """
    settings = settings or TrainingSettings()
    return fit(model, task_for(graph), [adam(model, settings)], settings.epochs, seed=seed, on_epoch=on_epoch)


def drop_edge(
    model: nn.Module,
    graph: Graph,
    settings: TrainingSettings | None = None,
    *,
    rate: float,
    seed: int = 0,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> History:
    """`dense`, but every epoch sees the graph without floor(rate P) pairs, drawn anew; evaluated on the full graph.

    What removing edges does for training alone, when none is saved.

    Args:
        model: ends in the state of its best validation epoch.
        graph: the graph to train on.
        settings: epochs, learning rate and weight decay.
        rate: share of the pairs that an epoch does not see, in [0, 1).
        seed: of dropout and of the pairs drawn.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the training.

    Returns:
        Losses and accuracies, epoch by epoch.

    Source:
        Rong et al., DropEdge, ICLR 2020.
    """
    settings, generator = settings or TrainingSettings(), torch.Generator().manual_seed(seed)
    # A value of zero is an edge that does not exist, in every network here.
    gates = torch.empty(graph.num_pairs, device=graph.pairs.device)

    def draw() -> None:
        gates.copy_(_random_edges(graph, rate, generator)[EDGES])

    def after_epoch(epoch: int, history: History) -> bool:
        draw()
        return on_epoch is not None and on_epoch(epoch, history)

    draw()
    task, optimizers = task_for(graph), [adam(model, settings)]
    return fit(model, task, optimizers, settings.epochs, seed=seed, gates=gates, on_epoch=after_epoch)


def dense_stacked(
    models: Sequence[GCN],
    graphs: Graph | Sequence[Graph],
    settings: TrainingSettings | None = None,
    *,
    seeds: Sequence[int],
    on_epoch: Callable[[int, int, History], bool] | None = None,
) -> list[History]:
    """What many calls of `dense` return, up to rounding: all networks trained together (`train.stacked`).

    Args:
        models: one GCN a seed, of equal sizes; each ends in the state of its best validation epoch.
        graphs: one for all, or one a seed.
        settings: epochs, learning rate and weight decay.
        seeds: of dropout.
        on_epoch: called with the number of the network, the epoch and its history; returning True ends its training.

    Returns:
        One history a seed.
    """
    rows = zip(models, each("graphs", graphs, len(seeds)), seeds, strict=True)
    members = [Member(model, graph, seed) for model, graph, seed in rows]
    return fit_stacked(members, StackedSettings(settings or TrainingSettings()), on_epoch=on_epoch)


def random_ticket(
    model: nn.Module,
    graph: Graph,
    *,
    edge_ratio: float,
    weight_ratio: float,
    feature_ratio: float | None = None,
    weight_structure: WeightStructure = "entry",
    seed: int = 0,
) -> Ticket:
    """A ticket of random edges and weights (or units), as many as a search would prune.

    Args:
        model: whose present weights are the start weights.
        graph: the graph whose pairs are pruned.
        edge_ratio: share of the pairs to prune, in [0, 1).
        weight_ratio: share of the weights (or units) to prune, in [0, 1).
        feature_ratio: share of the input features, where whole features are pruned; default: `weight_ratio`.
        weight_structure: "entry" or "2:4" for single weights, "unit", "feature" or "joint" for units.
        seed: of the masks.

    Returns:
        The ticket.

    Example:
        >>> import gebt
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes, seed=0)
        >>> ticket = random_ticket(model, graph, edge_ratio=0.2, weight_ratio=0.5)
        >>> (graph.num_pairs, ticket.edge_mask.kept), (ticket.weight_mask.size, ticket.weight_mask.kept)
        ((9929, 7944), (592, 296))
    """
    generator = torch.Generator().manual_seed(seed)
    edge_mask = _random_edges(graph, edge_ratio, generator)
    feature_ratio = features_share(weight_structure, weight_ratio, feature_ratio)
    if weight_structure == "entry":
        weight_mask = make_mask(random(prunable_weights(model), generator), ratio=weight_ratio)
    elif weight_structure == "2:4":
        weight_mask = two_of_four(random(prunable_weights(model), generator))
    else:
        groups = groups_of(model, weight_structure)
        state = model.state_dict()
        scores = random({group.name: torch.empty(group.size(state)) for group in groups}, generator)
        units = select_units(groups, scores, ratio=weight_ratio, feature_ratio=feature_ratio, seed=seed)
        weight_mask = entry_mask(groups, units, model)
    provenance = {
        "method": "random",
        "edge_ratio": edge_ratio,
        "weight_ratio": weight_ratio,
        "weight_structure": weight_structure,
        "seed": seed,
        "epoch_drawn": 0,
        "fired": False,
    }
    return make_ticket(model, graph, edge_mask, weight_mask, copy_state(model), provenance)


def random_edges(ticket: Ticket, graph: Graph, *, seed: int = 0) -> Ticket:
    """The same weights with as many edges, drawn at random: the strong control of an edge score.

    Args:
        ticket: whose weight mask and start weights are taken over.
        graph: the ticket's graph.
        seed: of the edge mask.

    Returns:
        A ticket with another edge mask, whose edges count 1.

    Example:
        >>> import gebt
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes, seed=0)
        >>> ticket = random_ticket(model, graph, edge_ratio=0.2, weight_ratio=0.5)
        >>> control = random_edges(ticket, graph, seed=1)
        >>> control.edge_mask.kept == ticket.edge_mask.kept, control.weight_mask is ticket.weight_mask
        (True, True)
    """
    edge_ratio = float(ticket.provenance["edge_ratio"])
    edge_mask = _random_edges(graph, edge_ratio, torch.Generator().manual_seed(seed))
    provenance = {**ticket.provenance, "method": "random_edges_control"}
    return dataclasses.replace(ticket, edge_mask=edge_mask, provenance=provenance, edge_weights=None, edge_scorer=None)


def _random_edges(graph: Graph, edge_ratio: float, generator: torch.Generator) -> Mask:
    scores = random({EDGES: torch.empty(graph.num_pairs, device=graph.train_mask.device)}, generator)
    if isinstance(graph, GraphClassificationFold):
        # As many of each graph as an edge scorer takes.
        return Mask({EDGES: keep_of_each_graph(graph, scores[EDGES], edge_ratio, TieBreaker.from_generator(generator))})
    return make_mask(scores, ratio=edge_ratio)
