"""UGS (Chen et al., ICML 2021): real masks on edges and weights, trained, pruned and rewound round after round.

WD-GLT (Hui et al., ICLR 2023) is the same with one more term in the loss of the masked training: `WD_GLT`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn, optim
from torch.func import functional_call

from gebt.graph.directed import DirectedEdges
from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph, check_classes
from gebt.prune.enforce import enforce_mask
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.prune.selection import pruned_count, thinned
from gebt.prune.tie_breaking import TieBreaker
from gebt.ticket import make_ticket
from gebt.train.loop import History, TrainingSettings, copy_state, fit
from gebt.train.optimizers import adam_of
from gebt.train.result import MethodResult, Phase
from gebt.train.sinkhorn import Separation
from gebt.train.tasks import task_for


@dataclass(frozen=True)
class UgsSettings:
    """One round of UGS; the defaults are those of the release for Cora.

    Adam's weight decay acts on weights and masks alike, as in the release.

    Attributes:
        edge_rate: share of the remaining pairs that a round prunes, in [0, 1).
        weight_rate: share of the remaining weights that a round prunes, in [0, 1).
        edge_l1: coefficient of sum |m| over the edge masks.
        weight_l1: coefficient of sum |m| over the weight masks.
        noise: relative, of the initial masks.
        separation: weight of WD-GLT's term (`train.sinkhorn.Separation`).
        points: nodes a side that the term is computed from.
        at_most_one: masks stay in [0, 1].
        directed: the two directions of an edge have separate masks, as released (for a GCN; `graph.directed`).
        masked: training with masks.
        fixed: training of the ticket.

    Raises:
        ValueError: numbers out of range.
    """

    edge_rate: float = 0.05
    weight_rate: float = 0.2
    edge_l1: float = 1e-2
    weight_l1: float = 1e-2
    noise: float = 1e-5
    separation: float = 0.0
    points: int = 64
    at_most_one: bool = False
    directed: bool = False
    masked: TrainingSettings = field(default_factory=lambda: TrainingSettings(200, 8e-3, 8e-5))
    fixed: TrainingSettings = field(default_factory=lambda: TrainingSettings(200, 8e-3, 8e-5))

    def __post_init__(self) -> None:
        for rate in (self.edge_rate, self.weight_rate):
            pruned_count(1, rate)
        if min(self.edge_l1, self.weight_l1, self.noise, self.separation) < 0:
            got = (self.edge_l1, self.weight_l1, self.noise, self.separation)
            raise ValueError(f"edge L1, weight L1, noise, separation (got {got}), expected at least 0")


# Weight of the term and bounds of the masks as in the re-implementation that TEDDY's authors published.
WD_GLT = UgsSettings(separation=0.1, at_most_one=True)


class _Masked(nn.Module):
    """The network with weights W * m, where the real numbers m train with W.

    Args:
        model: the network.
        masks: initial m, by the name of the prunable weight.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.names = model, list(masks)
        self.masks = nn.ParameterList(nn.Parameter(mask) for mask in masks.values())

    def forward(self, *inputs: Any) -> Any:
        weights = dict(self.model.named_parameters())
        gated = {name: weights[name] * mask for name, mask in zip(self.names, self.masks, strict=True)}
        return functional_call(self.model, gated, inputs)


def run(
    model: nn.Module,
    graph: Graph,
    *,
    rounds: int = 20,
    settings: UgsSettings | None = None,
    seed: int = 0,
    on_round: Callable[[MethodResult], bool] | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> list[MethodResult]:
    """UGS on undirected pairs: every round trains real masks, prunes the lowest remaining ones, rewinds and trains.

    Per round: W and the masks m (1 with relative noise U(-1, 1) * `noise`) train jointly on CE + edge_l1 sum|m_g| +
    weight_l1 sum|m_w|; in the best validation epoch the floor(rate n) lowest |m| of the n remaining go, pairs and
    weights apart; W returns to its initial values and trains with hard masks. Pruned edges do not exist from then on,
    so rounds get cheaper. Departures from the release: pairs instead of directed entries (unless `directed`), masks of
    edges at least 0, exact counts, normalization of the kept graph (docs/method.md). With `directed` the ticket's edge
    mask has the pairs of which either direction remains, and "directed_sparsity" of its provenance is the share of the
    2P directions pruned.

    Args:
        model: ends as the last round trained it.
        graph: the graph whose pairs are to be pruned.
        rounds: of masked training, pruning and training.
        settings: of a round.
        seed: of dropout, of the noise, and of the random order that settles ties.
        on_round: called with each round's result; returning True ends early.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the training under way.

    Returns:
        The ticket and the history of every round.

    Raises:
        ValueError: no round.
        GraphError: a separation, where a label is not one class.

    Source:
        Chen et al., A Unified Lottery Ticket Hypothesis for Graph Neural Networks, ICML 2021.
    """
    settings = settings or UgsSettings()
    if rounds < 1:
        raise ValueError(f"rounds (got {rounds}), expected at least 1")
    if settings.separation:
        check_classes(graph, f"separation {settings.separation}")
    work = _Work(model, graph, settings, seed, on_epoch)
    results: list[MethodResult] = []
    for number in range(1, rounds + 1):
        results.append(work.round(number))
        if on_round is not None and on_round(results[-1]):
            break
    return results


class _Work:
    """The masks so far, and one round after the other."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        settings: UgsSettings,
        seed: int,
        on_epoch: Callable[[int, History], bool] | None,
    ) -> None:
        self.model, self.graph, self.settings, self.seed, self.on_epoch = model, graph, settings, seed, on_epoch
        self.generator = torch.Generator().manual_seed(seed)
        self.tie_break = TieBreaker.from_generator(self.generator)
        self.initial, self.weights = copy_state(model), prunable_weights(model)
        pairs = graph.pairs
        self.ends = torch.cat((pairs, pairs.flip(0)), 1) if settings.directed else pairs
        self.remaining = torch.ones(self.ends.shape[1], dtype=torch.bool, device=pairs.device)
        self.kept = Mask.ones(self.weights)
        self.phases: list[Phase] = []

    def round(self, number: int) -> MethodResult:
        """Searches once, prunes, rewinds and trains."""
        self._note(self.settings.masked, gated=True)
        edge_weights, weight_values = self._trained_masks()
        self.remaining = self._pruned(edge_weights, self.remaining, self.settings.edge_rate)
        flat = self._pruned(weight_values, self.kept.flat(), self.settings.weight_rate)
        sizes = [weight.numel() for weight in self.weights.values()]
        parts = zip(self.weights.items(), flat.split(sizes), strict=True)
        self.kept = Mask({name: part.view(weight.shape) for (name, weight), part in parts})
        self.model.load_state_dict(self.initial)
        self._note(self.settings.fixed)
        edges = self._edges()
        optimizer = self._adam(self.model, self.settings.fixed)
        handle = enforce_mask(self.model, self.kept, optimizer)
        try:
            task, epochs = task_for(self.graph, edges), self.settings.fixed.epochs
            history = fit(self.model, task, [optimizer], epochs, seed=self.seed, on_epoch=self.on_epoch)
        finally:
            handle.remove()
        pairs = self.remaining.view(-1, self.graph.num_pairs).any(0)
        provenance = {
            "method": "wd-glt" if self.settings.separation else "ugs",
            "round": number,
            "edge_ratio": 1 - float(pairs.float().mean()),
            "weight_ratio": self.kept.sparsity,
            "seed": self.seed,
            "epoch_drawn": history.best_epoch,
            "epochs": number * (self.settings.masked.epochs + self.settings.fixed.epochs),
            "fired": False,
        }
        if self.settings.directed:
            provenance["directed_sparsity"] = 1 - float(self.remaining.float().mean())
        edge_mask = Mask({EDGES: pairs})
        ticket = make_ticket(self.model, self.graph, edge_mask, self.kept, self.initial, provenance)
        return MethodResult(ticket, history, edges, tuple(self.phases))

    def _note(self, training: TrainingSettings, gated: bool = False) -> None:
        directions = self.remaining.numel() // self.graph.num_pairs
        self.phases.append(Phase(training.epochs, int(self.remaining.sum()) // directions, self.kept.kept, gated))

    def _edges(self) -> Edges:
        """The edges not pruned so far."""
        ends, nodes = self.ends[:, self.remaining], self.graph.num_nodes
        if self.settings.directed:
            # It has all that a GCN reads of edges.
            return cast(Edges, DirectedEdges.from_entries(ends, nodes))
        return Edges.from_pairs(ends, nodes)

    def _trained_masks(self) -> tuple[Tensor, Tensor]:
        """|m| of all edges and of all weights at the best validation epoch; 0 where pruned before."""
        settings = self.settings
        self.model.load_state_dict(self.initial)
        gates = self._noisy(torch.ones(int(self.remaining.sum()), device=self.ends.device)).requires_grad_()
        masks = {name: self._noisy(kept.float()) for name, kept in self.kept.items()}
        masked = _Masked(self.model, masks)
        edges = self._edges()
        optimizer = self._adam(masked, settings.masked, gates)
        more = Separation(settings.separation, settings.points, self.seed) if settings.separation else None

        def penalty() -> Tensor:
            weights = torch.stack([mask.abs().sum() for mask in masked.masks]).sum()
            return settings.edge_l1 * gates.abs().sum() + settings.weight_l1 * weights

        def bounded(*_: Any) -> None:
            gates.data.clamp_(0, 1 if settings.at_most_one else None)
            for mask in masked.masks if settings.at_most_one else ():
                mask.data.clamp_(0, 1)

        # Masks that were pruned stay zero under Adam and its weight decay.
        mask_of_masks = Mask({f"masks.{number}": kept for number, kept in enumerate(self.kept.values())})
        handle = enforce_mask(masked, mask_of_masks, optimizer)
        # Degrees are sums of masks: under L1 alone those of a large neighborhood would swing below zero.
        optimizer.register_step_post_hook(bounded)
        try:
            history = fit(
                masked,
                task_for(self.graph, edges, extra_loss=more),
                [optimizer],
                settings.masked.epochs,
                seed=self.seed,
                gates=gates,
                penalty=penalty,
                on_epoch=self.on_epoch,
            )
        finally:
            handle.remove()
        edge_values = torch.zeros(self.remaining.numel(), device=self.ends.device)
        edge_values[self.remaining] = cast(Tensor, history.best_gates)
        # `fit` leaves the network, masks included, in the state of the best validation epoch.
        return edge_values, torch.cat([mask.detach().abs().flatten() for mask in masked.masks])

    def _noisy(self, values: Tensor) -> Tensor:
        # Drawn on the CPU, so that a seed means the same noise on every device.
        drawn = (2 * torch.rand(values.shape, generator=self.generator) - 1).to(values.device)
        return values * (1 + self.settings.noise * drawn)

    def _pruned(self, values: Tensor, kept: Tensor, rate: float) -> Tensor:
        """`kept` without the floor(rate n) lowest of its n entries."""
        return thinned(values, kept, pruned_count(int(kept.sum()), rate), self.tie_break)

    @staticmethod
    def _adam(model: nn.Module, training: TrainingSettings, *more: Tensor) -> optim.Adam:
        parameters = [*model.parameters(), *more]
        return adam_of(parameters, training.learning_rate, training.weight_decay)
