"""The search for a ticket: train, draw masks every epoch, stop when they no longer move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from gebt.graph.graph import Graph
from gebt.models.gnn import GCN
from gebt.prune.mask import Mask
from gebt.recipes._search import DrawObserver as DrawObserver
from gebt.recipes._search import _Search
from gebt.ticket import Ticket
from gebt.train.loop import History
from gebt.train.search_settings import SearchSettings as SearchSettings
from gebt.train.search_settings import search_preset as search_preset
from gebt.train.stacked import Member, StackedSettings, each, fit_stacked


def joint(
    model: nn.Module,
    graph: Graph,
    *,
    edge_ratio: float,
    weight_ratio: float,
    feature_ratio: float | None = None,
    settings: SearchSettings | str = "early-bird",
    seed: int = 0,
    on_draw: DrawObserver | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """GEBT, Algorithm 2: trains weights and edge values together and draws both masks every epoch.

    Each epoch: one step on the weights W and one on the pair values a [P] from the same loss
    CE(GCN(A(a), X; W)) + edge_l1 * sum|a|; then m = select(s(a), edge_ratio) and n = select(|W|, weight_ratio), and
    the detector takes d(m, m_before) and d(n, n_before). The ticket is drawn in the epoch the detector fires, or in
    the last one (`ticket.fired` is then False). The score s follows `settings.edge_score`:

    - "magnitude", the paper's: |a|;
    - "local_degree": `LocalDegree` of a;
    - "similarity", "reliance": `Similarity` of the network's predictions, without values a;
    - "reliance+magnitude": the same with values a;
    - "learned": an `EdgeScorer` trains instead of values, a = 2 sigmoid(s), and goes into the ticket; of a set of
      graphs nothing that is held out is read.

    Args:
        model: the network to search in; it stays as the search has trained it.
        graph: the graph whose P pairs are to be pruned.
        edge_ratio: share of the pairs to prune, in [0, 1).
        weight_ratio: share of the weights to prune, in [0, 1).
        feature_ratio: share of the input features, where whole features are pruned; default: `weight_ratio`.
        settings: a `SearchSettings` or the name of a preset.
        seed: of dropout and of ties.
        on_draw: called with the epoch, the weight mask and the edge mask of every draw.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the search.

    Returns:
        The ticket of the last draw.

    Raises:
        ValueError: a ratio outside [0, 1) or one that would empty a layer (named), or an edge score that the graph
            cannot have.
        GraphError: scores or soft labels that need classes, where the graph's labels are none.

    Source:
        You et al., Early-Bird GCNs, AAAI 2022, Algorithm 2.

    Example:
        >>> import gebt
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes, seed=0)
        >>> ticket = joint(model, graph, edge_ratio=0.2, weight_ratio=0.5, settings=SearchSettings(max_epochs=2))
        >>> graph.num_pairs, ticket.edge_mask.kept, ticket.fired
        (9929, 7944, False)
    """
    ratios = (edge_ratio, weight_ratio, feature_ratio)
    return _Search(model, graph, ratios, _resolved(settings), seed).run(on_draw, on_epoch)


def joint_stacked(
    models: Sequence[GCN],
    graphs: Graph | Sequence[Graph],
    *,
    edge_ratio: float | Sequence[float],
    weight_ratio: float | Sequence[float],
    settings: SearchSettings | str = "early-bird",
    seeds: Sequence[int],
    on_draw: Callable[[int, int, Mask, Mask], None] | None = None,
    on_epoch: Callable[[int, int, History], bool] | None = None,
) -> list[Ticket]:
    """The tickets of many calls of `joint`, one a seed, all networks trained together (`train.stacked`).

    Each equals that of its own call up to rounding. When it is worth while: `worth_stacking`.

    Args:
        models: one GCN a seed, of equal sizes.
        graphs: one for all, or one a seed; of equal nodes: one data set, whatever its splits.
        edge_ratio: share of the pairs to prune, in [0, 1): one for all, or one a seed.
        weight_ratio: share of the weights to prune, in [0, 1): one for all, or one a seed.
        settings: a `SearchSettings` that `can_stack` takes, or the name of a preset.
        seeds: of dropout and of ties.
        on_draw: called with the number of the network, and then as in `joint`.
        on_epoch: called with the number of the network, and then as in `joint`; returning True ends its search.

    Returns:
        One ticket a seed.

    Raises:
        ValueError: as `joint` and `fit_stacked`, and for settings that `can_stack` does not take.
    """
    chosen, count = _resolved(settings), len(seeds)
    if not can_stack(chosen):
        got = (chosen.weight_structure, chosen.edge_score, chosen.edge_weights, chosen.draw_at, chosen.soft_labels)
        raise ValueError(
            f"weight structure, edge score, edge weights, draw at, soft labels (got {got}), expected 'entry', "
            "'magnitude' or 'local_degree', 'one', 'detector' and False, to search together"
        )
    graphs, edge_ratios = each("graphs", graphs, count), each("edge ratios", edge_ratio, count)
    rows = zip(models, graphs, edge_ratios, each("weight ratios", weight_ratio, count), seeds, strict=True)
    searches = [_Search(model, graph, (edges, weights, None), chosen, s) for model, graph, edges, weights, s in rows]
    for search in searches:
        search.begin()

    def after_epoch(number: int, epoch: int, history: History) -> bool:
        stop = searches[number].update(epoch, None if on_draw is None else partial(on_draw, number))
        return (on_epoch is not None and on_epoch(number, epoch, history)) or stop

    members = [Member(model, s.graph, s.seed, gates=s.values) for model, s in zip(models, searches, strict=True)]
    together = StackedSettings(chosen.training(), chosen.edge_learning_rate, chosen.edge_l1)
    histories = fit_stacked(members, together, evaluate=False, on_epoch=after_epoch)
    return [search.ticket(history) for search, history in zip(searches, histories, strict=True)]


def can_stack(settings: SearchSettings) -> bool:
    """Whether `joint_stacked` can search with these settings.

    Args:
        settings: of a search.

    Returns:
        True for trained edge values, single weights, and masks drawn by the detector.

    Example:
        >>> can_stack(search_preset("early-bird")), can_stack(search_preset("best"))
        (True, False)
    """
    plain = settings.edge_score in ("magnitude", "local_degree") and settings.edge_weights == "one"
    by_detector = plain and settings.draw_at == "detector" and not settings.soft_labels
    return by_detector and settings.weight_structure == "entry"


def graph_only(
    model: nn.Module,
    graph: Graph,
    *,
    edge_ratio: float,
    settings: SearchSettings | str = "early-bird",
    seed: int = 0,
    on_draw: DrawObserver | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """GEBT, Algorithm 1: edge masks alone, from a pretrained network whose weights are frozen.

    Args:
        model: the pretrained network.
        graph: the graph whose P pairs are to be pruned.
        edge_ratio: share of the pairs to prune, in [0, 1).
        settings: a `SearchSettings` that trains edge values, or the name of a preset.
        seed: of dropout and of ties.
        on_draw: called with the epoch, the weight mask and the edge mask of every draw.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the search.

    Returns:
        The ticket; no weight is pruned.

    Raises:
        ValueError: an edge score that trains no edge values, and as `joint`.

    Source:
        You et al., Early-Bird GCNs, AAAI 2022, Algorithm 1.

    Example:
        >>> import gebt
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes, seed=0)
        >>> ticket = graph_only(model, graph, edge_ratio=0.25, settings=SearchSettings(max_epochs=2))
        >>> round(ticket.edge_sparsity, 3), ticket.weight_sparsity
        (0.25, 0.0)
    """
    chosen = dataclasses.replace(_resolved(settings), criterion="edges", weight_structure="entry")
    if not chosen.trains_edges:
        got = chosen.edge_score
        raise ValueError(f"edge score (got {got!r}), expected one that trains edge values: the weights are frozen")
    return _Search(model, graph, (edge_ratio, 0.0, None), chosen, seed, train_weights=False).run(on_draw, on_epoch)


def weights_only(
    model: nn.Module,
    graph: Graph,
    *,
    weight_ratio: float,
    feature_ratio: float | None = None,
    settings: SearchSettings | str = "early-bird",
    seed: int = 0,
    on_draw: DrawObserver | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """Weight masks alone, on the full graph: the early-bird ticket of an ordinary network.

    Args:
        model: the network to search in; it stays as the search has trained it.
        graph: the graph to train on.
        weight_ratio: share of the weights to prune, in [0, 1).
        feature_ratio: share of the input features, where whole features are pruned; default: `weight_ratio`.
        settings: a `SearchSettings` or the name of a preset.
        seed: of dropout and of ties.
        on_draw: called with the epoch, the weight mask and the edge mask of every draw.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the search.

    Returns:
        The ticket; no edge is pruned.

    Example:
        >>> import gebt
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes, seed=0)
        >>> ticket = weights_only(model, graph, weight_ratio=0.5, settings=SearchSettings(max_epochs=2))
        >>> ticket.edge_sparsity, ticket.weight_sparsity
        (0.0, 0.5)
    """
    chosen = dataclasses.replace(_resolved(settings), criterion="weights")
    ratios = (0.0, weight_ratio, feature_ratio)
    return _Search(model, graph, ratios, chosen, seed, train_edges=False).run(on_draw, on_epoch)


def _resolved(settings: SearchSettings | str) -> SearchSettings:
    return search_preset(settings) if isinstance(settings, str) else settings
