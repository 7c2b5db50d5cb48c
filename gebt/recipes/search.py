"""The search for a ticket: train, draw masks every epoch, stop when they no longer move."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, optim

from gebt.graph.edge_scores import LocalDegree, Similarity, degree_correction, neighbor_reliance
from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.graph.label_propagation import propagate_labels
from gebt.models.gnn import GCN
from gebt.prune.drawing import Drawing
from gebt.prune.mask import Mask
from gebt.prune.n_m_sparsity import two_of_four
from gebt.prune.scores import magnitude, prunable_weights
from gebt.prune.selection import check_no_layer_empty, make_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.sparse.structure import (
    OF_ENTRIES,
    entry_mask,
    features_share,
    groups_of,
    select_units,
    unit_scores,
)
from gebt.ticket import Ticket, make_ticket
from gebt.train.edge_scorer import TrainedEdgeScorer, check_edge_score
from gebt.train.loop import Gates, History, NodeTask, adam, copy_state, fit
from gebt.train.search_settings import SearchSettings as SearchSettings
from gebt.train.search_settings import search_preset as search_preset
from gebt.train.stacked import Member, StackedSettings, each, fit_stacked
from gebt.train.tasks import task_for

DrawObserver = Callable[[int, Mask, Mask], None]
# A probability that has underflowed, before its logarithm.
LEAST = 1e-30


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
    CE(GCN(A(a), X; W)) + edge_l1 * sum|a|; then m = select(s(a), edge_ratio), n = select(|W|, weight_ratio), with
    s(a) = |a| (edge_score "magnitude", the paper's), `LocalDegree` ("local_degree") or `Similarity` of what the network
    says ("similarity" and "reliance" without values a, "reliance+magnitude" with), or an `EdgeScorer` ("learned": it trains instead of values,
    a = 2 sigmoid(s), and goes into the ticket; of a set of graphs nothing that is held out is read), and the detector
    takes d(m, m_before) and d(n, n_before). The ticket is drawn in the epoch the detector fires, or in the last one
    (`ticket.fired` is then False). `model` is left as trained. `settings`: a `SearchSettings` or the name of a preset.
    `on_draw(epoch, weight_mask, edge_mask)` watches. Raises `ValueError` for a ratio outside [0, 1) or one that would
    empty a layer (named), and for edge scores that the graph has not; `GraphError` for scores and soft labels that need
    classes where the graph's labels are none.
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
    """The tickets of many calls of `joint`, one a seed, all networks trained together (`train.stacked`; when: `worth_stacking`).

    Each equals that of its own call up to rounding. Graphs (of equal nodes: one data set, whatever its splits) and
    ratios: one for all, or one a seed. `on_draw` and `on_epoch` are told the number of the network first.
    Raises `ValueError` as `joint`, `fit_stacked` and for settings that `can_stack` does not take.
    """
    chosen, count = _resolved(settings), len(seeds)
    if not can_stack(chosen):
        got = (chosen.weight_structure, chosen.edge_score, chosen.edge_weights, chosen.draw_at, chosen.soft_labels)
        raise ValueError(
            f"weight structure, edge score, edge weights, draw at, soft labels (got {got}), expected 'entry', 'magnitude' "
            "or 'local_degree', 'one', 'detector' and False, to search together"
        )
    graphs, edge_ratios = each("graphs", graphs, count), each("edge ratios", edge_ratio, count)
    given = zip(models, graphs, edge_ratios, each("weight ratios", weight_ratio, count), seeds, strict=True)
    searches = [_Search(model, graph, (edges, weights, None), chosen, s) for model, graph, edges, weights, s in given]
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
    """Whether `joint_stacked` can search with these settings."""
    plain = settings.edge_score in ("magnitude", "local_degree") and settings.edge_weights == "one"
    trained = plain and settings.draw_at == "detector" and not settings.soft_labels
    return trained and settings.weight_structure == "entry"


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
    """GEBT, Algorithm 1: edge masks alone, from a pretrained `model` whose weights stay as they are."""
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
    """Weight masks alone, on the full graph: the early-bird ticket of an ordinary network."""
    chosen = dataclasses.replace(_resolved(settings), criterion="weights")
    ratios = (0.0, weight_ratio, feature_ratio)
    return _Search(model, graph, ratios, chosen, seed, train_edges=False).run(on_draw, on_epoch)


def _resolved(settings: SearchSettings | str) -> SearchSettings:
    return search_preset(settings) if isinstance(settings, str) else settings


def _check_without_classes(settings: SearchSettings) -> None:
    got = (settings.edge_score, settings.soft_labels, settings.label_propagation, settings.prediction_ema)
    if got[0] in ("reliance", "reliance+magnitude") or any(got[1:]):
        raise ValueError(
            f"edge score, soft labels, label propagation, prediction EMA of a search for links (got {got}), expected 'magnitude', "
            "'local_degree' or 'similarity', False, 0 and 0: the others need opinions on classes"
        )


class _Search:
    """One search: the drawing and the detector around `fit`."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        ratios: tuple[float, float, float | None],
        settings: SearchSettings,
        seed: int,
        *,
        train_weights: bool = True,
        train_edges: bool = True,
    ) -> None:
        if train_edges:
            check_edge_score(settings, graph)
        self.model, self.graph, self.settings, self.seed = model, graph, settings, seed
        edge_ratio, weight_ratio, feature_ratio = ratios
        self.ratios = {"edge_ratio": edge_ratio, "weight_ratio": weight_ratio}
        self.structured = settings.weight_structure not in OF_ENTRIES
        if settings.weight_structure == "2:4" and weight_ratio != 0.5:
            raise ValueError(f"weight ratio (got {weight_ratio}), expected 0.5 for weight_structure='2:4'")
        self.feature_ratio = features_share(settings.weight_structure, weight_ratio, feature_ratio)
        if self.feature_ratio is not None:
            self.ratios["feature_ratio"] = self.feature_ratio
        if self.structured:
            self.groups = groups_of(model, settings.weight_structure)
        agreement = settings.edge_score in ("similarity", "reliance", "reliance+magnitude")
        settings.check(graph)
        self.train_weights, self.train_edges = train_weights, train_edges and settings.trains_edges
        self.smoothed: Tensor | None = None
        self.best_smoothed: Tensor | None = None
        self.weights, self.task = prunable_weights(model), task_for(graph)
        if not self.task.classifies:
            _check_without_classes(settings)
        ruled = train_edges and settings.edge_score == "learned"
        self.edge_scorer = TrainedEdgeScorer(self.task, edge_ratio, seed) if ruled else None
        self.values = torch.ones(graph.num_pairs, device=graph.pairs.device, requires_grad=self.train_edges)
        ties = torch.Generator().manual_seed(seed)
        # One order for the whole search: ties that were settled anew each epoch would look like moving masks.
        self.edge_order, self.weight_order = TieBreaker.drawn(ties), TieBreaker.drawn(ties)
        place = (graph.pairs, graph.num_nodes, self.edge_order)
        self.agreement = Similarity(*place) if agreement and edge_ratio else None
        weight = LocalDegree(*place).weight if settings.edge_score == "local_degree" else None
        self.edge_drawing = Drawing({EDGES: self.values}, ratio=edge_ratio, tie_break=self.edge_order, weight=weight)
        self.weight_drawing = Drawing(
            self.weights, ratio=weight_ratio, scope=settings.scope, tie_break=self.weight_order
        )

    def draw(self) -> tuple[Mask, Mask]:
        """The mask over weights (or over units) and the edge mask of the present weights and edge values."""
        if self.edge_scorer is not None:
            edge_mask = Mask({EDGES: self.edge_scorer.mask()})
        elif self.agreement is None:
            edge_mask = self.edge_drawing.draw({EDGES: self.values})
        else:
            scores = {EDGES: self.edge_scores(self.agreement)}
            edge_mask = make_mask(scores, ratio=self.ratios["edge_ratio"], tie_break=self.edge_order, allow_empty=True)
        return self.draw_weights(), edge_mask

    def draw_weights(self) -> Mask:
        """The mask over weights (or over units) of the present weights."""
        if self.structured:
            return self.draw_units()
        if self.settings.weight_structure == "2:4":
            return two_of_four(magnitude(self.weights), self.weight_order)
        return self.weight_drawing.draw(self.weights)

    def edge_scores(self, agreement: Similarity) -> Tensor:
        """Scores [P] from what the model says of the nodes, with and without their neighbors."""
        probabilities, kind = self.probabilities(), self.settings.edge_score
        if kind == "similarity":
            return agreement(probabilities)
        none = Edges.from_pairs(self.graph.pairs[:, :0], self.graph.num_nodes)
        need = neighbor_reliance(probabilities, self.said(task_for(self.graph, none)))
        return agreement(probabilities, need, self.values if kind == "reliance+magnitude" else None)

    def said(self, task: NodeTask | None = None) -> Tensor:
        """What the model says of every node at present (`NodeTask.predict_proba`), on the whole graph or in another task."""
        self.model.eval()
        with torch.no_grad():
            return (task or self.task).predict_proba(self.model)

    def probabilities(self) -> Tensor:
        """Probabilities [N, C]: the model's own, or those spread over the graph if that serves the validation nodes.

        Of links: embeddings [N, d].
        """
        own = self.said() if self.best_smoothed is None else self.best_smoothed
        if not self.task.classifies:
            return own
        spread_out = propagate_labels(own, self.task.edges, self.settings.label_propagation)
        return spread_out if self.task.val_accuracy(spread_out) >= self.task.val_accuracy(own) else own

    def draw_units(self) -> Mask:
        """The mask over the model's units at present."""
        scores = unit_scores(self.groups, self.model, self.settings.unit_score)
        ratio, feature_ratio = self.ratios["weight_ratio"], self.feature_ratio
        return select_units(self.groups, scores, ratio=ratio, feature_ratio=feature_ratio, seed=self.seed)

    def begin(self) -> None:
        """Notes where the model stands; refuses bad ratios before any training."""
        self.initial, self.detector = copy_state(self.model), self.settings.detector()
        self.drawn = self.draw()

    def update(self, epoch: int, on_draw: DrawObserver | None) -> bool:
        """Draws after an epoch; True when the search may stop."""
        self.drawn = self.draw()
        if on_draw is not None:
            on_draw(epoch, *self.drawn)
        return self.detector.update(*self.drawn)

    def ticket(self, history: History) -> Ticket:
        """The ticket of the last draw."""
        weight_mask, edge_mask = self.drawn
        if self.edge_scorer is not None:
            edge_mask = Mask({EDGES: self.edge_scorer.mask(self.graph)})
        if self.structured:
            weight_mask = entry_mask(self.groups, weight_mask, self.model)
        check_no_layer_empty(weight_mask, self.ratios["weight_ratio"])
        soft_labels = self.probabilities().clamp(min=LEAST).log() if self.settings.soft_labels else None
        provenance = self._provenance(history)
        given = (self.model, self.graph, edge_mask, weight_mask, self.initial, provenance, soft_labels)
        found = make_ticket(*given, edge_weights=self._edge_values(edge_mask[EDGES]))
        return (
            found
            if self.edge_scorer is None
            else dataclasses.replace(found, edge_scorer=copy.deepcopy(self.edge_scorer.edge_scorer))
        )

    def _edge_values(self, kept: Tensor) -> Tensor | None:
        """What the pairs count in the ticket, [P]; None: 1 each."""
        if self.settings.edge_weights == "degree_corrected":
            return degree_correction(self.graph.pairs, kept, self.graph.num_nodes)
        return self.values if self.settings.edge_weights == "trained" else None

    def run(self, on_draw: DrawObserver | None, on_epoch: Callable[[int, History], bool] | None) -> Ticket:
        settings, by_validation = self.settings, self.settings.draw_at == "validation"
        self.begin()

        def after_epoch(epoch: int, history: History) -> bool:
            if self.edge_scorer is not None and history.best_epoch == epoch:
                self.edge_scorer.note_best()
            if settings.prediction_ema:
                self._smooth(history.best_epoch == epoch)
            stop = not by_validation and self.update(epoch, on_draw)
            return (on_epoch is not None and on_epoch(epoch, history)) or stop

        frozen = [p for p in self.model.parameters() if p.requires_grad and not self.train_weights]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            history = fit(
                self.model,
                self.task,
                self._optimizers(),
                settings.max_epochs,
                seed=self.seed,
                gates=self.gates(),
                penalty=self._penalty if self.train_edges and settings.edge_l1 else None,
                evaluate=by_validation,
                on_epoch=after_epoch,
            )
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        if by_validation:
            self.restore(history)
            self.drawn = self.draw()
            if on_draw is not None:
                on_draw(history.best_epoch, *self.drawn)
        return self.ticket(history)

    def restore(self, history: History) -> None:
        """Puts back the edge values, or the rule, of the best epoch, as `fit` did the weights."""
        if self.edge_scorer is not None:
            self.edge_scorer.restore()
        self.values = self.values if history.best_gates is None else history.best_gates

    def gates(self) -> Gates:
        """The soft edge values that training sees."""
        if self.edge_scorer is not None:
            return self.edge_scorer.gates
        return self.values if self.train_edges else None

    def _smooth(self, best: bool) -> None:
        now = self.said()
        self.smoothed = now if self.smoothed is None else torch.lerp(now, self.smoothed, self.settings.prediction_ema)
        self.best_smoothed = self.smoothed if best else self.best_smoothed

    def _optimizers(self) -> list[optim.Optimizer]:
        optimizers: list[optim.Optimizer] = []
        if self.train_weights:
            optimizers.append(adam(self.model, self.settings.training()))
        if self.edge_scorer is not None:
            optimizers.append(self.edge_scorer.optimizer(self.settings.edge_learning_rate))
        if self.train_edges:
            optimizers.append(
                optim.Adam(
                    [self.values],
                    lr=self.settings.edge_learning_rate,
                    fused=True,
                    capturable=self.values.device.type == "cuda",
                )
            )
        return optimizers

    def _penalty(self) -> Tensor:
        return self.settings.edge_l1 * self.values.abs().sum()

    def _provenance(self, history: History) -> dict[str, Any]:
        detector = self.detector
        return {
            "method": "gebt",
            **self.ratios,
            "seed": self.seed,
            "epoch_drawn": history.best_epoch or len(history.losses),
            "epochs": len(history.losses),
            "fired": detector.fired,
            "settings": dataclasses.asdict(self.settings),
            # A millionth is more than a mask of any length moves in a meaningful way, and the file holds every epoch.
            "trajectory": [{kind: round(d, 6) for kind, d in row.items()} for row in detector.trajectory],
        }
