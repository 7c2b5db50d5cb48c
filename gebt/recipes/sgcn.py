"""SGCN (Li et al., PAKDD 2020): edges chosen by ADMM on a pretrained network, then pruned weights retrained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.prune.enforce import enforce_mask
from gebt.prune.mask import Mask
from gebt.prune.scores import magnitude, prunable_weights
from gebt.prune.selection import make_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.ticket import make_ticket
from gebt.train.loop import History, NodeTask, TrainingSettings, adam, copy_state, fit
from gebt.train.optimizers import adam_of
from gebt.train.result import MethodResult, Phase
from gebt.train.tasks import task_for


@dataclass(frozen=True)
class SgcnSettings:
    """How long ADMM solves for the edge values, and how networks train; GEBT's release: 4 x 25.

    Attributes:
        outer: ADMM updates.
        inner: Adam epochs on the edge values before each update.
        rho: coefficient of the penalty.
        edge_learning_rate: of the edge values.
        training: epochs, learning rate and weight decay of the pretraining and of the retraining.

    Raises:
        ValueError: numbers out of range.
    """

    outer: int = 4
    inner: int = 25
    rho: float = 1e-3
    edge_learning_rate: float = 1e-3
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if min(self.outer, self.inner) < 1:
            raise ValueError(f"outer, inner (got {(self.outer, self.inner)}), expected at least 1")
        if not (self.rho >= 0 and self.edge_learning_rate > 0):
            got = (self.rho, self.edge_learning_rate)
            raise ValueError(f"rho, edge learning rate (got {got}), expected >= 0 and > 0")


class Admm:
    """Pair values a [P] that are to have few non-zeros: a copy z that has, and the scaled dual u of a = z.

    penalty(a) = 2 rho sum (a - z + u)^2, the released sum over both directions of both layers' copies; `update`: z is
    the projection of a + u on the vectors of P - floor(ratio P) non-zeros, then u += a - z. z and u are constants for
    a: the released code of GEBT leaves u attached, which multiplies its pull by the number of updates.

    Args:
        pairs: P.
        ratio: share of the pairs to prune, in [0, 1).
        rho: coefficient of the penalty.
        tie_break: settles ties.
        device: of the values.

    Example:
        >>> admm = Admm(pairs=4, ratio=0.5, rho=0.5, tie_break=TieBreaker(0))
        >>> admm.update(torch.tensor([3.0, 1.0, 0.5, 2.0]))
        >>> admm.z.tolist(), admm.u.tolist()
        ([3.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.5, 0.0])
    """

    def __init__(
        self, pairs: int, ratio: float, rho: float, tie_break: TieBreaker, device: torch.device | str = "cpu"
    ) -> None:
        self.ratio, self.rho, self.tie_break = ratio, rho, tie_break
        self.z, self.u = torch.zeros(pairs, device=device), torch.zeros(pairs, device=device)

    def penalty(self, values: Tensor) -> Tensor:
        """The term of the loss.

        Args:
            values: a [P].

        Returns:
            A number.
        """
        return 2 * self.rho * (values - self.z + self.u).square().sum()

    def update(self, values: Tensor) -> None:
        """The steps of z and u.

        Args:
            values: a [P].
        """
        wanted = values.detach() + self.u
        # In place: a recorded penalty reads this memory.
        self.z.copy_(wanted * self.mask(wanted))
        self.u.copy_(wanted - self.z)

    def mask(self, values: Tensor) -> Tensor:
        """Keeps the values of largest magnitude.

        Args:
            values: [P].

        Returns:
            True for the kept pairs, [P] boolean.
        """
        scores = {EDGES: values.detach().abs()}
        return make_mask(scores, ratio=self.ratio, tie_break=self.tie_break, allow_empty=True)[EDGES]


def run(
    model: nn.Module,
    graph: Graph,
    *,
    edge_ratio: float,
    weight_ratio: float,
    settings: SgcnSettings | None = None,
    seed: int = 0,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> MethodResult:
    """Pretrains, solves for the edge values with the weights frozen, prunes both, rewinds the weights and trains.

    Edge values minimize CE(A(a), W) + `Admm.penalty` with W fixed; the pairs of largest |a| stay. Weights: the largest
    of the pretrained network, in one shot, rewound to their initial values (as UGS evaluates SGCN). Differences from
    the release: values of pairs, no weight decay on them, edges of the ticket count 1, selection by validation (the
    release's driver selects by test accuracy).

    Args:
        model: ends in the state of the best validation epoch of the last training.
        graph: the graph whose pairs are to be pruned.
        edge_ratio: share of the pairs to prune, in [0, 1).
        weight_ratio: share of the weights to prune, in [0, 1).
        settings: of ADMM and of the trainings.
        seed: of dropout, and of the random orders that settle ties.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the training under way.

    Returns:
        The ticket, and the history of its training.

    Raises:
        ValueError: a ratio outside [0, 1) or one that would empty a layer.

    Source:
        Li et al., SGCN, PAKDD 2020.
    """
    settings = settings or SgcnSettings()
    generator = torch.Generator().manual_seed(seed)
    edge_tie_break, weight_tie_break = TieBreaker.from_generator(generator), TieBreaker.from_generator(generator)
    initial, weights = copy_state(model), prunable_weights(model)
    device = graph.pairs.device
    blank = {EDGES: torch.zeros(graph.num_pairs, device=device)}
    # So that a bad ratio is refused before any training.
    make_mask(blank, ratio=edge_ratio, tie_break=edge_tie_break, allow_empty=True)
    make_mask(magnitude(weights), ratio=weight_ratio, tie_break=weight_tie_break)
    full_task, epochs = task_for(graph), settings.training.epochs
    fit(model, full_task, [adam(model, settings.training)], epochs, seed=seed, on_epoch=on_epoch)
    admm = Admm(graph.num_pairs, edge_ratio, settings.rho, edge_tie_break, device)
    edge_mask = Mask({EDGES: admm.mask(_edge_values(model, full_task, admm, settings, seed, on_epoch))})
    weight_mask = make_mask(magnitude(weights), ratio=weight_ratio, tie_break=weight_tie_break)
    model.load_state_dict(initial)
    edges = Edges.from_pairs(graph.pairs[:, edge_mask[EDGES]], graph.num_nodes)
    optimizer = adam(model, settings.training)
    handle = enforce_mask(model, weight_mask, optimizer)
    try:
        history = fit(model, task_for(graph, edges), [optimizer], epochs, seed=seed, on_epoch=on_epoch)
    finally:
        handle.remove()
    searched = settings.outer * settings.inner
    provenance = {
        "method": "sgcn",
        "edge_ratio": edge_ratio,
        "weight_ratio": weight_ratio,
        "seed": seed,
        "epoch_drawn": epochs + searched,
        "epochs": epochs + searched,
        "fired": False,
    }
    ticket = make_ticket(model, graph, edge_mask, weight_mask, initial, provenance)
    pretrained = Phase(epochs, graph.num_pairs, weight_mask.size)
    solved = Phase(searched, graph.num_pairs, weight_mask.size, gated=True)
    retrained = Phase(epochs, edges.num_pairs, weight_mask.kept)
    return MethodResult(ticket, history, edges, (pretrained, solved, retrained))


def _edge_values(
    model: nn.Module,
    task: NodeTask,
    admm: Admm,
    settings: SgcnSettings,
    seed: int,
    on_epoch: Callable[[int, History], bool] | None,
) -> Tensor:
    """The values of the pairs after all ADMM updates, W as it was; [P]."""
    values = torch.ones(task.graph.num_pairs, device=task.graph.pairs.device, requires_grad=True)
    optimizer = adam_of([values], settings.edge_learning_rate)

    def after_epoch(epoch: int, history: History) -> bool:
        if epoch % settings.inner == 0:
            admm.update(values)
        return on_epoch is not None and on_epoch(epoch, history)

    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        fit(
            model,
            task,
            [optimizer],
            settings.outer * settings.inner,
            seed=seed,
            gates=values,
            penalty=lambda: admm.penalty(values),
            evaluate=False,
            on_epoch=after_epoch,
        )
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return values.detach()
