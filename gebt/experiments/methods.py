"""Baselines that find a ticket, by name: the same graph, network, training and ratios for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args

import torch
from torch import nn

from gebt.experiments.options import OtherMethod, RunOptions
from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.prune.mask import Mask
from gebt.prune.schedule import levels_at
from gebt.prune.scores import prunable_weights
from gebt.recipes import baselines, gebt_released_code, imp, sgcn, teddy, ugs
from gebt.ticket import make_ticket
from gebt.train.loop import History, TrainingSettings, copy_state
from gebt.train.result import MethodResult, Phase

OTHER_METHODS: tuple[OtherMethod, ...] = get_args(OtherMethod)

# UGS prunes a fifth of the weights a round; as many rounds lead to the weight ratio, and the edges are brought along.
WEIGHT_RATE = 0.2
# The L1 of the release is for 512 hidden units; these were best on validation for 16 on Cora, of 0, 1e-5, ..., 1e-2.
L1 = {"ugs": 1e-4, "wd-glt": 1e-5}

OnEpoch = Callable[[int, History], bool]


def run_method(
    name: OtherMethod, options: RunOptions, graph: Graph, model: nn.Module, seed: int, on_epoch: OnEpoch | None = None
) -> MethodResult:
    """Finds and trains the ticket of one method.

    "ugs", "wd-glt": rounds that each prune about a fifth of the weights, up to the weight ratio. "imp": magnitudes in
    as many levels; "one-shot": in one. "dropedge": dense training on a graph without a share of its edges, drawn anew
    every epoch; nothing is pruned. "released": what the published scripts of GEBT do, which end with a dense network on
    the pruned graph. All train as the dense network does.

    Args:
        name: of the method.
        options: resolved; training and ratios are taken from them.
        graph: to prune.
        model: ends as trained.
        seed: of everything random.
        on_epoch: called after every epoch.

    Returns:
        Ticket, history, edges and phases.

    Raises:
        ValueError: for another name, and as the recipes.
    """
    if name not in OTHER_METHODS:
        raise ValueError(f"method (got {name!r}), expected one of {OTHER_METHODS}")
    training = options.training()
    common: dict[str, Any] = {"seed": seed, "on_epoch": on_epoch}
    ratios: dict[str, Any] = {"edge_ratio": options.edge_ratio, "weight_ratio": options.weight_ratio}
    if name in ("ugs", "wd-glt"):
        settings = ugs.UgsSettings() if name == "ugs" else ugs.WD_GLT
        settings = dataclasses.replace(settings, edge_l1=L1[name], weight_l1=L1[name])
        return _rounds(model, graph, settings, training, ratios, common)
    if name in ("imp", "one-shot"):
        levels = levels_at(WEIGHT_RATE, options.weight_ratio) if name == "imp" else 1
        chosen = imp.LotterySettings(levels, training=training, edge_learning_rate=options.edge_learning_rate or 1e-3)
        return imp.run(model, graph, **ratios, settings=chosen, **common)[-1]
    if name == "dropedge":
        return _drop_edge(model, graph, training, options.edge_ratio, common)
    if name == "released":
        return gebt_released_code.run(model, graph, **ratios, training=training, **common)
    run: Callable[..., MethodResult] = sgcn.run if name == "sgcn" else teddy.run
    of_method = sgcn.SgcnSettings(training=training) if name == "sgcn" else teddy.TeddySettings(training)
    return run(model, graph, **ratios, settings=of_method, **common)


def method_epochs(name: OtherMethod, options: RunOptions) -> int:
    """The most epochs that `run_method` trains.

    Args:
        name: of the method.
        options: resolved.

    Returns:
        The number, of all trainings together.

    Example:
        >>> options = RunOptions(dataset="cora", weight_ratio=0.9).resolved()
        >>> method_epochs("dropedge", options), method_epochs("one-shot", options), method_epochs("imp", options)
        (200, 400, 2200)
    """
    if name == "released":
        return gebt_released_code.EPOCHS + gebt_released_code.RETRAIN_EPOCHS
    rounds, admm = levels_at(WEIGHT_RATE, options.weight_ratio), sgcn.SgcnSettings()
    trainings = {"ugs": 2 * rounds, "wd-glt": 2 * rounds, "imp": rounds + 1, "dropedge": 1}.get(name, 2)
    return trainings * options.training().epochs + (admm.outer * admm.inner if name == "sgcn" else 0)


def _rounds(
    model: nn.Module,
    graph: Graph,
    settings: ugs.UgsSettings,
    training: TrainingSettings,
    ratios: dict[str, float],
    common: dict[str, Any],
) -> MethodResult:
    rounds = levels_at(WEIGHT_RATE, ratios["weight_ratio"])
    edge_rate, weight_rate = (1 - (1 - ratio) ** (1 / rounds) for ratio in ratios.values())
    rates = {"edge_rate": edge_rate, "weight_rate": weight_rate}
    settings = dataclasses.replace(settings, **rates, masked=training, fixed=training)
    return ugs.run(model, graph, rounds=rounds, settings=settings, **common)[-1]


def _drop_edge(
    model: nn.Module, graph: Graph, training: TrainingSettings, rate: float, common: dict[str, Any]
) -> MethodResult:
    initial = copy_state(model)
    history = baselines.drop_edge(model, graph, training, rate=rate, **common)
    edge_mask = Mask.ones({EDGES: torch.empty(graph.num_pairs)})
    weight_mask = Mask.ones(prunable_weights(model))
    provenance = {
        "method": "dropedge",
        "edge_ratio": 0.0,
        "weight_ratio": 0.0,
        "rate": rate,
        "seed": common["seed"],
        "epoch_drawn": 0,
        "fired": False,
    }
    ticket = make_ticket(model, graph, edge_mask, weight_mask, initial, provenance)
    phase = Phase(training.epochs, graph.num_pairs, weight_mask.size)
    return MethodResult(ticket, history, Edges.from_pairs(graph.pairs, graph.num_nodes), (phase,))
