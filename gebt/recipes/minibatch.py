"""Minibatch training, search and retraining (`train.minibatch`), each resumed from its last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gebt.graph.adjacency import adjacency_of, runs_of_pairs
from gebt.graph.edge_scores import LocalDegreeInParts
from gebt.prune.drawing import Drawing
from gebt.prune.enforce import enforce_mask
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.prune.selection import check_no_layer_empty
from gebt.prune.tie_breaking import TieBreaker
from gebt.ticket import StartWeights, Ticket, make_ticket
from gebt.train.checkpoints import Checkpoints
from gebt.train.consistency import check_same_on_all_ranks, digest
from gebt.train.edge_values import NAMES, RUN, EdgeValueStore, MappedArray
from gebt.train.loop import History, TrainingSettings, adam, copy_state
from gebt.train.minibatch import Batched, BatchedFit
from gebt.train.result import REINIT_SEED
from gebt.train.search_settings import SearchSettings
from gebt.train.shards import Shards

OnEpoch = Callable[[int, History], bool]


def train(
    model: nn.Module,
    batched: Batched,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    mask: Mask | None = None,
    evaluate_every: int = 1,
    checkpoints: Checkpoints | None = None,
    every: int = 5,
    on_epoch: OnEpoch | None = None,
) -> History:
    """Trains a network, dense or under a weight mask, batch by batch.

    Args:
        model: ends in the state of its best validation epoch.
        batched: the graph, its batches, and which of its pairs they keep.
        settings: epochs, learning rate and weight decay.
        seed: of dropout and of the order of the batches.
        mask: over the weights; pruned ones stay zero. None: a dense network.
        evaluate_every: epochs between evaluations.
        checkpoints: where to resume from and to save to; None: nothing is saved.
        every: epochs between checkpoints.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the training.

    Returns:
        Losses and accuracies, epoch by epoch.
    """
    optimizer = adam(model, settings)
    handle = enforce_mask(model, mask, optimizer) if mask is not None else None
    fit = BatchedFit(model, batched, optimizer, seed=seed, evaluate_every=evaluate_every)
    if checkpoints is not None and (checkpoint := checkpoints.load()) is not None:
        fit.load_state_dict(checkpoint[1]["fit"])

    def after_epoch(epoch: int, history: History) -> bool:
        if checkpoints is not None and epoch % every == 0:
            checkpoints.save(epoch, {"fit": fit.state_dict()})
        return on_epoch is not None and on_epoch(epoch, history)

    try:
        return fit.run(settings.epochs, after_epoch)
    finally:
        if handle is not None:
            handle.remove()


def retrain(
    ticket: Ticket,
    model: nn.Module,
    batched: Batched,
    settings: TrainingSettings,
    *,
    start: StartWeights = "inherit",
    seed: int = 0,
    **options: Any,
) -> History:
    """Trains a ticket batch by batch: pruned pairs are in no batch, pruned weights stay zero.

    Args:
        ticket: of this graph and network.
        model: receives the ticket's start weights and ends in the state of its best validation epoch.
        batched: the graph and its batches.
        settings: epochs, learning rate and weight decay.
        start: the start weights, "inherit" (at the draw), "rewind" (the initial ones) or "reinit".
        seed: of dropout and of the order of the batches.
        **options: evaluation, checkpoints and `on_epoch`, as of `train`.

    Returns:
        Losses and accuracies, epoch by epoch.

    Raises:
        TicketError: the ticket belongs to another graph or model.
    """
    ticket.check(model, batched.source)  # type: ignore[arg-type]
    ticket.start(model, start, seed + REINIT_SEED)
    return train(model, batched.seen_by(ticket), settings, seed=seed, mask=ticket.weight_mask, **options)


def joint(
    model: nn.Module,
    batched: Batched,
    *,
    edge_ratio: float,
    weight_ratio: float,
    settings: SearchSettings,
    seed: int = 0,
    values_in: Path | None = None,
    checkpoints: Checkpoints | None = None,
    every: int = 5,
    on_draw: Callable[[int, Mask, Mask], None] | None = None,
    on_epoch: OnEpoch | None = None,
) -> Ticket:
    """`recipes.search.joint` batch by batch, with each pair's value, gradient and moments in the process that owns it.

    Every process draws the same masks, and has the same detector: after each epoch they compare their masks.

    Args:
        model: the network to search in; it stays as the search has trained it.
        batched: the graph whose P pairs are to be pruned, and its batches.
        edge_ratio: share of the pairs to prune, in [0, 1).
        weight_ratio: share of the weights to prune, in [0, 1).
        settings: with trained edge values, single weights and a draw by the detector.
        seed: of dropout, of the order of the batches and of ties.
        values_in: a folder in which the pair values are mapped; None: they are in memory.
        checkpoints: where to resume from and to save to; None: nothing is saved.
        every: epochs between checkpoints.
        on_draw: called with the epoch, the weight mask and the edge mask of every draw.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the search.

    Returns:
        The ticket of the last draw.

    Raises:
        ValueError: other settings, and as `search.joint`.
    """
    _check(settings)
    search = _Search(model, batched, (edge_ratio, weight_ratio), settings, seed, values_in)
    return search.run(checkpoints, every, on_draw, on_epoch)


def _check(settings: SearchSettings) -> None:
    plain = settings.edge_score in ("magnitude", "local_degree") and settings.edge_weights == "one"
    by_detector = settings.draw_at == "detector" and settings.weight_structure == "entry"
    if not plain or not by_detector or settings.soft_labels:
        edges, soft = (settings.edge_score, settings.edge_weights), settings.soft_labels
        got = (*edges, settings.draw_at, soft, settings.weight_structure)
        raise ValueError(
            f"edge score, edge weights, draw at, soft labels, weight structure (got {got}), expected 'local_degree' or "
            "'magnitude', 'one', 'detector', False, 'entry' to search in batches; take preset 'early-bird' or 'paper'"
        )


class _Search:
    """One search: the draws and the detector around `BatchedFit`."""

    def __init__(
        self,
        model: nn.Module,
        batched: Batched,
        ratios: tuple[float, float],
        settings: SearchSettings,
        seed: int,
        values_in: Path | None,
    ) -> None:
        self.model, self.batched, self.settings, self.seed = model, batched, settings, seed
        self.ratios = {"edge_ratio": ratios[0], "weight_ratio": ratios[1]}
        self.initial, self.detector = copy_state(model), settings.detector()
        ties = torch.Generator().manual_seed(seed)
        self.graph = adjacency_of(batched.schedule.sampler.edges)
        self.edge_tie_break, weight_tie_break = TieBreaker.from_generator(ties), TieBreaker.from_generator(ties)
        self.weights = prunable_weights(model)
        self.weight_drawing = Drawing(self.weights, ratio=ratios[1], scope=settings.scope, tie_break=weight_tie_break)
        self.values = EdgeValueStore(
            batched.source.num_pairs,
            learning_rate=settings.edge_learning_rate,
            l1=settings.edge_l1,
            dtype=next(model.parameters()).dtype,
            folder=values_in,
            shards=self._shards(),
        )
        self.weight = self._local_degree(values_in) if settings.edge_score == "local_degree" else None
        self.fit = BatchedFit(model, batched, adam(model, settings.training()), seed=seed, values=self.values,
                              evaluate=False)  # fmt: skip
        self.drawn: tuple[Mask, Mask] | None = None

    def run(
        self,
        checkpoints: Checkpoints | None,
        every: int,
        on_draw: Callable[[int, Mask, Mask], None] | None,
        on_epoch: OnEpoch | None,
    ) -> Ticket:
        if checkpoints is not None and (checkpoint := checkpoints.load()) is not None:
            self._load(*checkpoint[1:])
            if on_draw is not None and self.drawn is not None:
                on_draw(checkpoint[0], *self.drawn)

        def after_epoch(epoch: int, history: History) -> bool:
            stop = self._draw(epoch, on_draw)
            if checkpoints is not None and (epoch % every == 0 or stop):
                checkpoints.save(epoch, *self._state())
            return (on_epoch is not None and on_epoch(epoch, history)) or stop

        if not self.detector.fired:
            self.fit.run(self.settings.max_epochs, after_epoch)
        return self._ticket()

    def _draw(self, epoch: int, on_draw: Callable[[int, Mask, Mask], None] | None) -> bool:
        edge_mask = self.values.draw(self.ratios["edge_ratio"], self.edge_tie_break, self.weight)
        self.drawn = (self.weight_drawing.draw(self.weights), edge_mask)
        stop = self.detector.update(*self.drawn)
        drawn = digest(*self.drawn, self.detector.trajectory)
        check_same_on_all_ranks(f"masks and detector of epoch {epoch}", drawn)
        if on_draw is not None:
            on_draw(epoch, *self.drawn)
        return stop

    def _shards(self) -> Shards | None:
        """A pair belongs to the process of its smaller end's cluster; without clusters nodes go by their numbers."""
        processes, source, schedule = self.batched.processes, self.batched.source, self.batched.schedule
        if processes.count == 1:
            return None
        parts = schedule.clusters if schedule.settings.strategy == "cluster" else torch.arange(source.num_nodes)
        runs = runs_of_pairs(self.graph, RUN)
        return Shards.by_smaller_end(runs, source.num_pairs, parts, rank=processes.rank, world=processes.count)

    def _local_degree(self, folder: Path | None) -> Callable[[Tensor], Tensor]:
        """w of `LocalDegree` by the numbers of pairs; the same in every draw, and stored where the values are."""
        degrees = self.graph.degrees(torch.arange(self.graph.num_nodes))
        local_degree = LocalDegreeInParts(lambda: runs_of_pairs(self.graph, RUN), degrees, self.edge_tie_break)
        weight = MappedArray(self.graph.num_pairs, torch.float32, folder)
        for numbers, pairs in runs_of_pairs(self.graph, RUN):
            first, end = int(numbers[0]), int(numbers[-1]) + 1
            weight.tensor[first:end] = local_degree.of(numbers, pairs)
            weight.drop(first, end)

        def of(numbers: Tensor) -> Tensor:
            chosen = weight.tensor[numbers]
            if numbers.numel():
                weight.drop(int(numbers[0]), int(numbers[-1]) + 1)
            return chosen

        return of

    def _state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.drawn is not None
        values = self.values.state_dict()
        arrays = {name: values.pop(name) for name in NAMES}
        state = {
            "fit": self.fit.state_dict(),
            "values": values,
            "detector": self.detector.state_dict(),
            "drawn": [mask.state() for mask in self.drawn],
        }
        return state, arrays

    def _load(self, state: dict[str, Any], arrays: dict[str, Tensor]) -> None:
        self.fit.load_state_dict(state["fit"])
        self.values.load_state_dict(state["values"] | arrays)
        self.detector.load_state_dict(state["detector"])
        weights, edges = (Mask.of_state(mask) for mask in state["drawn"])
        self.drawn = weights, edges

    def _ticket(self) -> Ticket:
        assert self.drawn is not None
        weight_mask, edge_mask = self.drawn
        check_no_layer_empty(weight_mask, self.ratios["weight_ratio"])
        epochs = len(self.fit.history.losses)
        provenance = {
            "method": "gebt",
            **self.ratios,
            "seed": self.seed,
            "epoch_drawn": epochs,
            "epochs": epochs,
            "fired": self.detector.fired,
            "settings": dataclasses.asdict(self.settings),
            "batches": dataclasses.asdict(self.batched.schedule.settings),
            "trajectory": [{kind: round(d, 6) for kind, d in row.items()} for row in self.detector.trajectory],
        }
        source: Any = self.batched.source
        return make_ticket(self.model, source, edge_mask, weight_mask, self.initial, provenance)
