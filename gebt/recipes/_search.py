"""One search for a ticket: training, a draw of both masks after every epoch, and the detector that ends it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn, optim

from gebt.graph.edge_scores import LocalDegree, Similarity, degree_correction, neighbor_reliance
from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.graph.label_propagation import propagate_labels
from gebt.prune.drawing import Drawing
from gebt.prune.mask import Mask, read_at_once
from gebt.prune.n_m_sparsity import two_of_four
from gebt.prune.scores import magnitude, prunable_weights
from gebt.prune.selection import check_no_layer_empty, make_unread_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.sparse.structure import OF_ENTRIES, entry_mask, features_share, groups_of, select_units, unit_scores
from gebt.ticket import Ticket, make_ticket
from gebt.train.edge_scorer import TrainedEdgeScorer, check_edge_score
from gebt.train.loop import Gates, History, NodeTask, adam, copy_state, fit
from gebt.train.optimizers import adam_of
from gebt.train.search_settings import SearchSettings
from gebt.train.tasks import task_for

# Called with the epoch, the weight mask and the edge mask of every draw.
DrawObserver = Callable[[int, Mask, Mask], None]
# A probability that has underflowed, before its logarithm.
_LEAST = 1e-30


def _check_without_classes(settings: SearchSettings) -> None:
    got = (settings.edge_score, settings.soft_labels, settings.label_propagation, settings.prediction_ema)
    if got[0] in ("reliance", "reliance+magnitude") or any(got[1:]):
        raise ValueError(
            f"edge score, soft labels, label propagation, prediction EMA of a search for links (got {got}), expected "
            "'magnitude', 'local_degree' or 'similarity', False, 0 and 0: the others need probabilities of classes"
        )


class _Search:
    """One search: the draws and the detector around `fit`.

    Args:
        model: the network, which the search trains.
        graph: P pairs.
        ratios: shares of edges, weights and (None: as the weights) input features to prune, each in [0, 1).
        settings: how to search.
        seed: of dropout and of ties.
        train_weights: False freezes the weights (Algorithm 1).
        train_edges: False searches for weights alone, on the full graph.

    Raises:
        ValueError: a ratio, or settings, that the model or the graph cannot have.
        GraphError: settings that need classes, on a graph whose labels are none.
    """

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
        by_similarity = settings.edge_score in ("similarity", "reliance", "reliance+magnitude")
        settings.check(graph)
        self.train_weights, self.train_edges = train_weights, train_edges and settings.trains_edges
        self.smoothed: Tensor | None = None
        self.best_smoothed: Tensor | None = None
        self.weights, self.task = prunable_weights(model), task_for(graph)
        if not self.task.classifies:
            _check_without_classes(settings)
        scored = train_edges and settings.edge_score == "learned"
        self.edge_scorer = TrainedEdgeScorer(self.task, edge_ratio, seed) if scored else None
        self.values = torch.ones(graph.num_pairs, device=graph.pairs.device, requires_grad=self.train_edges)
        ties = torch.Generator().manual_seed(seed)
        # One order for all draws of the search: ties settled anew each epoch would look like moving masks.
        self.edge_tie_break, self.weight_tie_break = TieBreaker.from_generator(ties), TieBreaker.from_generator(ties)
        place = (graph.pairs, graph.num_nodes, self.edge_tie_break)
        self.similarity = Similarity(*place) if by_similarity and edge_ratio else None
        weight = LocalDegree(*place).weight if settings.edge_score == "local_degree" else None
        self.edge_drawing = Drawing(
            {EDGES: self.values}, ratio=edge_ratio, tie_break=self.edge_tie_break, weight=weight
        )
        self.weight_drawing = Drawing(
            self.weights, ratio=weight_ratio, scope=settings.scope, tie_break=self.weight_tie_break
        )

    def draw(self) -> tuple[Mask, Mask]:
        """The mask over weights (or over units) and the edge mask of the present weights and edge values."""
        if self.edge_scorer is not None:
            edge_mask = Mask({EDGES: self.edge_scorer.mask()})
        elif self.similarity is None:
            edge_mask = self.edge_drawing.draw({EDGES: self.values})
        else:
            scores = {EDGES: self.edge_scores(self.similarity)}
            edge_mask = make_unread_mask(scores, ratio=self.ratios["edge_ratio"], tie_break=self.edge_tie_break)
        return self.draw_weights(), edge_mask

    def draw_weights(self) -> Mask:
        """The mask over weights (or over units) of the present weights."""
        if self.structured:
            return self.draw_units()
        if self.settings.weight_structure == "2:4":
            return two_of_four(magnitude(self.weights), self.weight_tie_break)
        return self.weight_drawing.draw(self.weights)

    def edge_scores(self, similarity: Similarity) -> Tensor:
        """Scores [P] from the model's predictions for the nodes, with and without their neighbors."""
        probabilities, kind = self.probabilities(), self.settings.edge_score
        if kind == "similarity":
            return similarity(probabilities)
        reliance = neighbor_reliance(probabilities, self.predict_proba(self.without_edges))
        return similarity(probabilities, reliance, self.values if kind == "reliance+magnitude" else None)

    @cached_property
    def without_edges(self) -> NodeTask:
        """The task on the graph without its edges."""
        none = Edges.from_pairs(self.graph.pairs[:, :0], self.graph.num_nodes)
        return task_for(self.graph, none, keep_aggregated=False)

    def predict_proba(self, task: NodeTask | None = None) -> Tensor:
        """Present probabilities [N, C] (`NodeTask.predict_proba`), on the full graph or in another task."""
        self.model.eval()
        with torch.no_grad():
            return (task or self.task).predict_proba(self.model)

    def probabilities(self) -> Tensor:
        """Predicted probabilities [N, C], propagated over the graph unless that lowers the validation accuracy.

        Of links: embeddings [N, d].
        """
        predicted = self.predict_proba() if self.best_smoothed is None else self.best_smoothed
        if not self.task.classifies:
            return predicted
        propagated = propagate_labels(predicted, self.task.edges, self.settings.label_propagation)
        better = self.task.val_accuracy(propagated) >= self.task.val_accuracy(predicted)
        return torch.where(better, propagated, predicted)  # without waiting for a device

    def draw_units(self) -> Mask:
        """The mask over the model's units at present."""
        scores = unit_scores(self.groups, self.model, self.settings.unit_score)
        ratio, feature_ratio = self.ratios["weight_ratio"], self.feature_ratio
        return select_units(self.groups, scores, ratio=ratio, feature_ratio=feature_ratio, seed=self.seed)

    def begin(self) -> None:
        """Notes the initial state; refuses bad ratios before any training."""
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
        read_at_once(self.drawn)
        weight_mask, edge_mask = self.drawn
        if self.edge_scorer is not None:
            edge_mask = Mask({EDGES: self.edge_scorer.mask(self.graph)})
        if self.structured:
            weight_mask = entry_mask(self.groups, weight_mask, self.model)
        check_no_layer_empty(weight_mask, self.ratios["weight_ratio"])
        soft_labels = self.probabilities().clamp(min=_LEAST).log() if self.settings.soft_labels else None
        provenance = self._provenance(history)
        args = (self.model, self.graph, edge_mask, weight_mask, self.initial, provenance, soft_labels)
        ticket = make_ticket(*args, edge_weights=self._edge_weights(edge_mask[EDGES]))
        if self.edge_scorer is None:
            return ticket
        return dataclasses.replace(ticket, edge_scorer=copy.deepcopy(self.edge_scorer.edge_scorer))

    def _edge_weights(self, kept: Tensor) -> Tensor | None:
        """The weights of the pairs in the ticket, [P]; None: 1 each."""
        if self.settings.edge_weights == "degree_corrected":
            return degree_correction(self.graph.pairs, kept, self.graph.num_nodes)
        return self.values if self.settings.edge_weights == "trained" else None

    def run(self, on_draw: DrawObserver | None, on_epoch: Callable[[int, History], bool] | None) -> Ticket:
        """Trains, draws after every epoch (or at the best one) and returns the ticket; `on_epoch` may end it."""
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
        """Puts back the edge values, or the edge scorer, of the best epoch, as `fit` did the weights."""
        if self.edge_scorer is not None:
            self.edge_scorer.restore()
        self.values = self.values if history.best_gates is None else history.best_gates

    def gates(self) -> Gates:
        """The soft edge values that training sees."""
        if self.edge_scorer is not None:
            return self.edge_scorer.gates
        return self.values if self.train_edges else None

    def _smooth(self, best: bool) -> None:
        now = self.predict_proba()
        self.smoothed = now if self.smoothed is None else torch.lerp(now, self.smoothed, self.settings.prediction_ema)
        self.best_smoothed = self.smoothed if best else self.best_smoothed

    def _optimizers(self) -> list[optim.Optimizer]:
        optimizers: list[optim.Optimizer] = []
        if self.train_weights:
            optimizers.append(adam(self.model, self.settings.training()))
        if self.edge_scorer is not None:
            optimizers.append(self.edge_scorer.optimizer(self.settings.edge_learning_rate))
        if self.train_edges:
            optimizers.append(adam_of([self.values], self.settings.edge_learning_rate))
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
