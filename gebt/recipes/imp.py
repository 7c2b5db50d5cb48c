"""Iterative magnitude pruning (Frankle & Carbin 2019) of weights and edges: in one shot or level after level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn, optim

from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.prune.enforce import enforce_mask
from gebt.prune.mask import Mask
from gebt.prune.schedule import geometric
from gebt.prune.scores import prunable_weights
from gebt.prune.selection import check_no_layer_empty, pruned_count, thinned
from gebt.prune.tie_breaking import TieBreaker
from gebt.ticket import make_ticket
from gebt.train.loop import History, TrainingSettings, adam, copy_state, fit
from gebt.train.optimizers import adam_of
from gebt.train.result import MethodResult, Phase
from gebt.train.tasks import task_for


@dataclass(frozen=True)
class LotterySettings:
    """How many levels are trained and pruned, and where weights rewind to.

    A level trains for the epochs of `training` that follow the rewind point, with a fresh optimizer.

    Attributes:
        levels: of pruning; 1: one shot.
        rewind_epoch: weights rewind to those after so many epochs; 0: the initial ones.
        edge_learning_rate: of the edge values.
        training: epochs, learning rate and weight decay.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> LotterySettings(levels=3, rewind_epoch=5).training.epochs
        200
        >>> LotterySettings(levels=0)
        Traceback (most recent call last):
        ValueError: levels (got 0), expected at least 1
    """

    levels: int = 10
    rewind_epoch: int = 0
    edge_learning_rate: float = 1e-3
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels (got {self.levels}), expected at least 1")
        if not 0 <= self.rewind_epoch < self.training.epochs:
            got, most = self.rewind_epoch, self.training.epochs - 1
            raise ValueError(f"rewind epoch (got {got}), expected 0 to {most}, before the training's last")
        if not self.edge_learning_rate > 0:
            raise ValueError(f"edge learning rate (got {self.edge_learning_rate}), expected > 0")


def run(
    model: nn.Module,
    graph: Graph,
    *,
    edge_ratio: float,
    weight_ratio: float,
    settings: LotterySettings | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> list[MethodResult]:
    """Trains, prunes, rewinds, and again, from the dense network (level 0) to the last level.

    After level l = 1..L of training, n - floor((1 - (1 - ratio)^(l/L)) n) of the n weights stay: those of largest
    magnitude, all layers together, among the weights not pruned before; so the last level has exactly the ratios.
    Magnitudes are of the best validation epoch. Where edges are pruned, values a [P] of the pairs (1 at the start of a
    level) train with the weights and are pruned by |a| alike; the last level trains on the hard graph alone. Pruned
    weights stay zero, pruned edges do not exist.

    Args:
        model: ends as the last level trained it.
        graph: the graph whose pairs are to be pruned.
        edge_ratio: share of the pairs to prune, in [0, 1).
        weight_ratio: share of the weights to prune, in [0, 1).
        settings: levels, rewind point and training.
        seed: of dropout, and of the random order that settles ties.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the level.

    Returns:
        The ticket and the history of every level, level 0 first.

    Raises:
        ValueError: a ratio outside [0, 1) or one that would empty a layer.

    Source:
        Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019.
    """
    settings = settings or LotterySettings()
    for ratio in (edge_ratio, weight_ratio):
        pruned_count(1, ratio)
    return _Levels(model, graph, (edge_ratio, weight_ratio), settings, seed, on_epoch).run()


class _Levels:
    """The masks so far, and one level after the other."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        ratios: tuple[float, float],
        settings: LotterySettings,
        seed: int,
        on_epoch: Callable[[int, History], bool] | None,
    ) -> None:
        self.model, self.graph, self.ratios = model, graph, ratios
        self.settings, self.seed, self.on_epoch = settings, seed, on_epoch
        generator = torch.Generator().manual_seed(seed)
        self.edge_tie_break, self.weight_tie_break = (
            TieBreaker.from_generator(generator),
            TieBreaker.from_generator(generator),
        )
        self.pairs = torch.ones(graph.num_pairs, dtype=torch.bool, device=graph.pairs.device)
        self.kept = Mask.ones(prunable_weights(model))
        self.initial = copy_state(model)
        self.phases: list[Phase] = []

    def run(self) -> list[MethodResult]:
        rewound = self._rewind_point()
        results: list[MethodResult] = []
        for level in range(self.settings.levels + 1):
            self.model.load_state_dict(rewound)
            results.append(self._level(level, rewound))
        return results

    def _rewind_point(self) -> dict[str, Tensor]:
        if epochs := self.settings.rewind_epoch:
            self._note(epochs)
            # Not evaluated, so that the network ends as the last of these epochs leaves it, not as the best does.
            fit(self.model, task_for(self.graph), [self._adam()], epochs, seed=self.seed, evaluate=False)
        return copy_state(self.model)

    def _level(self, level: int, rewound: dict[str, Tensor]) -> MethodResult:
        """Trains with the masks so far; then, unless it is the last level, prunes for the next one."""
        last = level == self.settings.levels
        edges = Edges.from_pairs(self.graph.pairs[:, self.pairs], self.graph.num_nodes)
        kept, provenance = (self.pairs.clone(), self.kept), self._provenance(level)
        optimizers: list[optim.Optimizer] = [self._adam()]
        gates = None
        if self.ratios[0] and not last:
            gates = torch.ones(edges.num_pairs, device=self.pairs.device, requires_grad=True)
            optimizers.append(adam_of([gates], self.settings.edge_learning_rate))
        epochs = self.settings.training.epochs - self.settings.rewind_epoch
        self._note(epochs, gated=gates is not None)
        handle = enforce_mask(self.model, self.kept, optimizers[0])
        task, seed = task_for(self.graph, edges), self.seed + level
        try:
            history = fit(self.model, task, optimizers, epochs, seed=seed, gates=gates, on_epoch=self.on_epoch)
        finally:
            handle.remove()
        ticket = make_ticket(self.model, self.graph, Mask({EDGES: kept[0]}), kept[1], rewound, provenance)
        if not last:
            self._prune(level + 1, history.best_gates)
        return MethodResult(ticket, history, edges, tuple(self.phases))

    def _prune(self, level: int, gates: Tensor | None) -> None:
        edge_ratio, weight_ratio = (geometric(ratio, self.settings.levels)[level - 1] for ratio in self.ratios)
        if gates is not None:
            values = torch.zeros_like(self.pairs, dtype=gates.dtype)
            values[self.pairs] = gates.abs()
            self.pairs = self._thinned(values, self.pairs, edge_ratio, self.edge_tie_break)
        weights = prunable_weights(self.model)
        flat = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
        kept = self._thinned(flat, self.kept.flat(), weight_ratio, self.weight_tie_break)
        parts = kept.split([weight.numel() for weight in weights.values()])
        self.kept = Mask({n: part.view(weights[n].shape) for n, part in zip(weights, parts, strict=True)})
        check_no_layer_empty(self.kept, weight_ratio)

    @staticmethod
    def _thinned(values: Tensor, kept: Tensor, ratio: float, tie_break: TieBreaker) -> Tensor:
        pruned = kept.numel() - int(kept.sum())
        return thinned(values, kept, max(0, pruned_count(kept.numel(), ratio) - pruned), tie_break)

    def _adam(self) -> optim.Adam:
        return adam(self.model, self.settings.training)

    def _note(self, epochs: int, gated: bool = False) -> None:
        self.phases.append(Phase(epochs, int(self.pairs.sum()), self.kept.kept, gated))

    def _provenance(self, level: int) -> dict[str, object]:
        epochs = sum(phase.epochs for phase in self.phases)
        return {
            "method": "imp",
            "edge_ratio": self.ratios[0],
            "weight_ratio": self.ratios[1],
            "seed": self.seed,
            "level": level,
            "epoch_drawn": epochs,
            "epochs": epochs,
            "fired": False,
        }
