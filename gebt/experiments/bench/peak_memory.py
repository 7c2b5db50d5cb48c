"""Peak memory of one variant, to be run in a fresh process, so that nothing else adds to the peak."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch

from gebt.data.surrogate import SurrogateSpec, generate
from gebt.experiments.bench.variants import PHASES, Workbench
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, graph_for, model_for
from gebt.measure.cost import peak_memory
from gebt.models.registry import Network
from gebt.recipes import retrain
from gebt.sparse import backends
from gebt.sparse.precision import using
from gebt.ticket import Ticket

# Epochs in which a peak is looked for: by the third the best state has been replaced once; later ones hold the same.
EPOCHS = 3
# A graph too small to be seen in a peak.
TINY = SurrogateSpec(nodes=64, pairs=128, features=8, classes=2)


def peaks(options: dict[str, Any], ticket: str, variant: str, threads: int) -> dict[str, dict[str, Any]]:
    """`PeakMemory` of a variant: "inference", "epoch" (steps), "search", "training", and "run" (both of them).

    In the first two parts a compacted ticket is alone with the smaller graph, as in deployment.

    Args:
        options: resolved, as JSON.
        ticket: path of its file.
        variant: name.
        threads: CPU threads.

    Returns:
        Plain JSON. `before`: what the process holds without any data, that is interpreter, libraries, and everything
        that is compiled on first use.
    """
    torch.set_num_threads(threads)
    resolved = RunOptions(**options)
    backends.use(resolved.backend)
    with using(resolved.precision, resolved.device):
        return _peaks(resolved, ticket, variant)


def _peaks(resolved: RunOptions, ticket: str, variant: str) -> dict[str, dict[str, Any]]:
    before = _libraries(resolved, variant)
    bench = _loaded(resolved, ticket)
    network: Any = bench.network(variant)
    if variant == "compacted":
        del bench
    parts = {"inference": _peak(network.infer, resolved.device), "epoch": _peak(network.step, resolved.device)}
    if variant == "pyg":
        parts["training"] = _peak(network.epoch, resolved.device)
    else:
        del network
        loaded = _loaded(resolved, ticket) if variant == "compacted" else bench
        for name in PHASES[variant]:
            if name != "search" or loaded.searched:
                part = "search" if name == "search" else "training"
                parts[part] = _peak(partial(loaded.phase, name, EPOCHS), resolved.device, times=1)
    parts["run"] = max(
        (parts[part] for part in ("search", "training") if part in parts), key=lambda peak: peak["bytes"]
    )
    return {part: {**peak, "before": before} for part, peak in parts.items()}


def _libraries(options: RunOptions, variant: str) -> int:
    """Bytes in use once a tiny ticket has been found and trained (for PyG: a tiny network trained)."""
    graph = generate(TINY)
    options = dataclasses.replace(
        options,
        hidden=options.heads,  # few, and what any number of heads divides
        edge_ratio=0.1,
        weight_ratio=0.1,
        feature_ratio=None,
        max_epochs=2,
        retrain_epochs=2,
        epochs=2,
    )
    model = cast(Network, model_for(options, graph, 0))
    if variant == "pyg":
        from gebt.experiments.bench.pyg import PygTraining

        PygTraining(graph, model, options.training()).epoch()
    else:
        retrain.run(find_ticket(options, graph, model, 0), model_for(options, graph, 0), graph, options.retraining())
    with peak_memory(options.device) as idle:
        pass
    return idle.before


def _peak(work: Callable[[], object], device: str, times: int = EPOCHS) -> dict[str, Any]:
    with peak_memory(device) as peak:
        for _ in range(times):
            work()
    return vars(peak)


def _loaded(options: RunOptions, ticket: str) -> Workbench:
    loaded = Ticket.load(ticket)
    return Workbench(options, loaded, graph_for(options, int(loaded.provenance["seed"])))
