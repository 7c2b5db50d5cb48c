"""What the published scripts of GEBT really do, oddities included: a baseline, not to be used.

A re-implementation of `run_threshold_jointEB.py` with one value a pair (its two dense copies stay equal). Its ADMM
penalty is omitted: divided by N^2 its gradient is below the epsilon of Adam.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.prune.selection import pruned_count
from gebt.ticket import make_ticket
from gebt.train.loop import History, NodeTask, TrainingSettings, adam, copy_state, fit
from gebt.train.optimizers import adam_of
from gebt.train.result import MethodResult, Phase
from gebt.train.tasks import task_for

EPOCHS, RETRAIN_EPOCHS = 100, 99
_EDGE_RATE, _WINDOW, _FIRST_STOP = 1e-3, 3, 5


def run(
    model: nn.Module,
    graph: Graph,
    *,
    edge_ratio: float,
    weight_ratio: float,
    training: TrainingSettings | None = None,
    threshold: float = 0.1,
    seed: int = 0,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> MethodResult:
    """Searches as the release does, then retrains a fresh dense network on the pruned graph: only edges stay pruned.

    Each epoch: one Adam step on the weights; all but the largest are set to zero, and free to grow back; one Adam step
    on the edge values, their gradient multiplied by the values. Edges: the lowest |a| of the lower triangle go, ties in
    memory order. Stops when the mean of the two distances (largest to the last three masks, over the first that was not
    0) is below `threshold` after epoch 5. The retraining keeps the trained edge values, takes 99 steps, and reports its
    last epoch.

    Args:
        model: a network of `gebt.models`; ends as the retraining's last epoch leaves it.
        graph: the graph whose pairs are to be pruned.
        edge_ratio: share of the pairs to prune, in [0, 1).
        weight_ratio: share of the weights that the search sets to zero after each epoch, in [0, 1).
        training: learning rate and weight decay.
        threshold: of the stop rule; 0: never stop, the release's default.
        seed: of dropout and of the fresh network.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the search, or the retraining.

    Returns:
        The ticket, without pruned weights, and the history of its retraining.

    Raises:
        ValueError: a ratio outside [0, 1).

    Source:
        The code released with You et al., Early-Bird GCNs, AAAI 2022.
    """
    training = training or TrainingSettings()
    for ratio in (edge_ratio, weight_ratio):
        pruned_count(1, ratio)
    search = _Search(model, graph, edge_ratio, weight_ratio, threshold)
    initial, task = copy_state(model), task_for(graph)

    def after_epoch(epoch: int, history: History) -> bool:
        stop = search.update(epoch)
        return (on_epoch is not None and on_epoch(epoch, history)) or stop

    optimizers = [adam(model, training), search.optimizer]
    # Both gradients come from one backward pass here, the edges' from before the step on the weights.
    searched = fit(
        model, task, optimizers, EPOCHS, seed=seed, gates=search.values, evaluate=False, on_epoch=after_epoch
    )
    kept, values = search.kept, search.values.detach()
    edges = Edges.from_pairs(graph.pairs[:, kept], graph.num_nodes, values[kept].clamp(min=0))
    _fresh(model, seed)
    history = _retrain(model, task_for(graph, edges), training, seed, on_epoch)
    all_weights = Mask.ones(prunable_weights(model))
    provenance = {
        "method": "released",
        "edge_ratio": edge_ratio,
        "weight_ratio": weight_ratio,
        "seed": seed,
        "epoch_drawn": len(searched.losses),
        "epochs": len(searched.losses),
        "fired": search.fired,
    }
    values = values.clamp(min=0)
    ticket = make_ticket(model, graph, Mask({EDGES: kept}), all_weights, initial, provenance, edge_weights=values)
    before = Phase(len(searched.losses), graph.num_pairs, all_weights.size, gated=True)
    return MethodResult(ticket, history, edges, (before, Phase(RETRAIN_EPOCHS, edges.num_pairs, all_weights.size)))


class _Search:
    """Edge values, masks and the release's stop rule."""

    def __init__(
        self, model: nn.Module, graph: Graph, edge_ratio: float, weight_ratio: float, threshold: float
    ) -> None:
        self.weights, self.graph, self.threshold = prunable_weights(model), graph, threshold
        self.edge_ratio, self.weight_ratio = edge_ratio, weight_ratio
        device = graph.pairs.device
        self.values = torch.ones(graph.num_pairs, device=device, requires_grad=True)
        self.values.register_hook(lambda gradient: gradient * self.values.detach())
        self.optimizer = adam_of([self.values], _EDGE_RATE)
        self.kept = torch.ones(graph.num_pairs, dtype=torch.bool, device=device)
        self.fired = False
        self._before: list[tuple[Tensor, list[Tensor]]] = []
        self._first: list[float] = [0.0, 0.0]

    def update(self, epoch: int) -> bool:
        """Prunes after an epoch; True when the stop rule ends the search."""
        weights = self._prune_weights()
        self.kept = kept_by_position(self.values.detach().abs(), self.graph.pairs, self.edge_ratio)
        distances = self._distances(weights)
        self._before = [*self._before, (self.kept, weights)][-_WINDOW:]
        self.fired = epoch > _FIRST_STOP and sum(distances) / 2 < self.threshold
        return self.fired

    def _prune_weights(self) -> list[Tensor]:
        flat = torch.cat([weight.detach().abs().flatten() for weight in self.weights.values()])
        if not self.weight_ratio:
            return [torch.ones_like(weight, dtype=torch.bool) for weight in self.weights.values()]
        # One more than asked for: the entry at the threshold goes too.
        threshold = flat.sort().values[int(flat.numel() * self.weight_ratio)]
        masks = [weight.detach().abs() > threshold for weight in self.weights.values()]
        for weight, mask in zip(self.weights.values(), masks, strict=True):
            weight.data.mul_(mask)
        return masks

    def _distances(self, weights: list[Tensor]) -> list[float]:
        moved = [0.0, 0.0]
        if self._before:
            moved[0] = max(float((self.kept != kept).sum()) for kept, _ in self._before)
            for layer, mask in enumerate(weights):
                moved[1] += max(float((mask != before[layer]).sum()) for _, before in self._before)
        self._first = [first or now for first, now in zip(self._first, moved, strict=True)]
        # 0 / 0 there, too: until both masks have moved once no mean is below any threshold.
        return [now / first if first else math.nan for now, first in zip(moved, self._first, strict=True)]


def kept_by_position(score: Tensor, pairs: Tensor, ratio: float) -> Tensor:
    """The pairs without the int(ratio P) lowest scores; ties go in memory order of the lower triangle.

    That is by the larger end, then by the smaller: where node numbers follow the split, so do the pruned edges.

    Args:
        score: [P].
        pairs: [2, P].
        ratio: share of the pairs to prune.

    Returns:
        True for the kept pairs, [P] boolean.

    Example:
        >>> pairs = torch.tensor([[0, 0, 1], [1, 3, 2]])
        >>> kept_by_position(torch.ones(3), pairs, ratio=0.7).tolist()
        [False, True, False]
    """
    order = torch.argsort(pairs.amax(0) * (int(pairs.max()) + 1) + pairs.amin(0))
    lowest = order[score[order].argsort(stable=True)][: int(ratio * score.numel())]
    kept = torch.ones_like(score, dtype=torch.bool)
    kept[lowest] = False
    return kept


def _fresh(model: nn.Module, seed: int) -> None:
    # No caller of the release starts from the ticket's weights, and no seed is set there.
    model.reset(seed + 1_000_003)  # type: ignore[operator]


def _retrain(
    model: nn.Module,
    task: NodeTask,
    training: TrainingSettings,
    seed: int,
    on_epoch: Callable[[int, History], bool] | None,
) -> History:
    """A history whose `best_epoch` is the last one: the release resets its best one every epoch."""
    last: dict[str, Tensor] = {}

    def after_epoch(epoch: int, history: History) -> bool:
        if epoch == RETRAIN_EPOCHS:
            last.update(copy.deepcopy(copy_state(model)))
        return on_epoch is not None and on_epoch(epoch, history)

    history = fit(model, task, [adam(model, training)], RETRAIN_EPOCHS, seed=seed, on_epoch=after_epoch)
    model.load_state_dict(last)
    history.best_epoch, history.best_state = len(history.losses), last
    return history
