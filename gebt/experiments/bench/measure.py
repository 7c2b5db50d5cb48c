"""The measurements of a benchmark: equal logits first, then seconds, flops, peak memory, joules, and full runs."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gebt.experiments.bench.checks import check_equal, check_search
from gebt.experiments.bench.variants import PARTS, PHASES, VARIANTS, GebtTraining, Network, Workbench
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import graph_for
from gebt.graph.graph import Graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.graph.links import LinkGraph
from gebt.measure.cost import Seconds, flops_executed, in_fresh_process, measure_in_turn, stored_bytes
from gebt.measure.energy import energy_meter
from gebt.sparse.memory import OutOfRoomError
from gebt.sparse.precision import using
from gebt.ticket import Ticket
from gebt.train.cuda_graph import Replay, replays
from gebt.train.loop import seeded

NOT_MEASURED = "not measured"
# Inference and steps: rounds, and seconds after which three rounds are enough.
REPEATS, BUDGET_S = 20, 60.0
# Steps before anything is compared: a fresh network has zero biases, which would hide one that is missing.
FIRST_STEPS = 3
# Epochs of PyG's training from which its full run is extrapolated.
PYG_EPOCHS = 3
# Meters tick slowly: what is shorter than this is called as often as fills it.
METERED_S = 1.0

Progress = Callable[[str], object]


def bench(
    options: RunOptions, path: Path, repeats: int = 3, progress: Progress = lambda what: None
) -> tuple[dict[str, Any], Graph]:
    """Measures a ticket, compared with the dense network and PyG.

    Args:
        options: resolved.
        path: of the ticket.
        repeats: rounds of full runs.
        progress: called with what is measured next.

    Returns:
        The cells of the table, and the graph.

    Raises:
        ValueError: before anything is timed, when logits differ that must be equal, naming them and the difference; and
            when the repeated search of the ticket draws other masks.
    """
    if repeats < 1:
        raise ValueError(f"--repeats (got {repeats}), expected at least 1")
    ticket = Ticket.load(path)
    graph = graph_for(options, int(ticket.provenance["seed"]))
    if isinstance(graph, LinkGraph | GraphClassificationFold):
        got = f"{options.dataset!r}, {'links to predict' if isinstance(graph, LinkGraph) else 'a set of graphs'}"
        raise ValueError(f"data set to bench (got {got}), expected nodes of one graph; 'gebt run' measures others")
    bench = Workbench(options, ticket, graph)
    with seeded(bench.seed), using(options.precision, options.device):
        return _Measurement(bench, path, progress).run(repeats), bench.graph


@dataclasses.dataclass
class _Samples:
    """Timings of one phase, round by round; `scale`: epochs of the run an epoch measured."""

    work: Callable[[], Any]
    scale: float = 1.0
    seconds: list[float] = dataclasses.field(default_factory=list)
    joules: list[float | None] = dataclasses.field(default_factory=list)

    def take(self, device: str) -> Any:
        """Adds a timing, and returns the result of the work."""
        with energy_meter(device) as meter:
            start = time.perf_counter()
            result = self.work()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        self.seconds.append(self.scale * seconds)
        # The meter of a device counts in steps of up to 0.1 s.
        measured = meter.joules is not None and (device == "cpu" or seconds >= METERED_S)
        self.joules.append(self.scale * meter.joules if measured and meter.joules is not None else None)
        return result


class _Measurement:
    """All cells of one table."""

    def __init__(self, bench: Workbench, path: Path, progress: Progress) -> None:
        self.bench, self.path, self.progress = bench, path, progress
        self.variants: dict[str, dict[str, Any]] = {variant: {part: {} for part in PARTS} for variant in VARIANTS}
        self.notes: dict[str, str] = {}
        self.device = bench.options.device
        with energy_meter(self.device) as probe:
            pass
        self.notes["joules"], self.metered = probe.what, probe.joules is not None

    def run(self, repeats: int) -> dict[str, Any]:
        """Fills the cells; those that could not be measured say so."""
        networks = self._networks()
        self.progress("comparing logits")
        with using("float32", self.device):  # roundings of 16 bits would hide what differs
            equal = check_equal(networks)
        self._time(networks)
        self._count(networks)
        present = list(networks)
        del networks
        for variant in present:
            self.progress(f"peak memory, {variant}")
            self._peaks(variant)
        search = self._runs(present, repeats)
        for variant in VARIANTS:
            self.variants[variant].setdefault("accuracy", NOT_MEASURED)
            for part in PARTS:
                for measure in ("flops_executed", "seconds", "peak_bytes", "own_bytes", "joules"):
                    self.variants[variant][part].setdefault(measure, NOT_MEASURED)
        epochs = {"dense": self.bench.options.epochs, "retrain": self.bench.options.retrain_epochs}
        return {"variants": self.variants, "equal": equal, "search": search, "epochs": epochs, "notes": self.notes}

    def _networks(self) -> dict[str, dict[str, Network]]:
        """For every variant the network that infers and the one that trains: the same, except compacted ones."""
        dense: Any = self.bench.network("dense")
        for _ in range(FIRST_STEPS):
            dense.step()
        masked, small = self.bench.network("masked"), self.bench.network("compacted")
        networks = {"dense": (dense, dense), "masked": (masked, masked)}
        networks["compacted"] = self.bench.network("compacted", training=False), small
        try:
            pyg = self.bench.network("pyg", model=dense.model)
            networks["pyg"] = pyg, pyg
        except OutOfRoomError as error:
            self.notes["PyG"] = str(error)
        return {variant: {"inference": infers, "epoch": trains} for variant, (infers, trains) in networks.items()}

    def _time(self, networks: dict[str, dict[str, Network]]) -> None:
        warmup = 5 if self.device == "cuda" else 2  # a replayed step is recorded in its fourth call
        for part in ("inference", "epoch"):
            self.progress(f"timing {part}")
            works: dict[str, Callable[[], object]] = {}
            for variant, parts in networks.items():
                works[variant] = parts[part].infer if part == "inference" else _as_trained(parts[part])
            for variant, seconds in measure_in_turn(works, repeats=REPEATS, warmup=warmup, budget_s=BUDGET_S).items():
                self.variants[variant][part]["seconds"] = dataclasses.asdict(seconds)
                if self.metered:
                    self.variants[variant][part]["joules"] = self._joules(works[variant], seconds.median)

    def _joules(self, work: Callable[[], object], seconds: float) -> float | str:
        calls = max(1, math.ceil(METERED_S / seconds))
        with energy_meter(self.device) as meter:
            for _ in range(calls):
                work()
        return NOT_MEASURED if meter.joules is None else meter.joules / calls

    def _count(self, networks: dict[str, dict[str, Network]]) -> None:
        """Multiply-adds, flops and bytes on disk of every variant."""
        bench, options = self.bench, self.bench.options
        epochs, retrained, trained = (
            int(options.epochs or 0),
            int(options.retrain_epochs or 0),
            bench.ticket.epochs_searched,
        )
        pretrained = epochs if options.algorithm == "graph" and bench.searched else 0
        dense, pruned = bench.macs(None), bench.macs(bench.ticket)
        ticket_file, plain = self.path.stat().st_size, stored_bytes(bench.model(), bench.graph.num_pairs)
        for variant in VARIANTS:
            unpruned = variant in ("dense", "pyg")
            one = dense if unpruned else pruned
            run = epochs * one if unpruned else retrained * one + (trained + pretrained) * dense
            for part, macs in zip(PARTS, (one, 3 * one, 3 * run), strict=True):
                self.variants[variant][part]["macs_paper"] = macs
            self.variants[variant]["file_bytes"] = plain if unpruned else ticket_file
        step_flops = bench.search_step_flops() if trained else 0
        searched = trained * step_flops + pretrained * _flops(networks["dense"]["epoch"], "epoch")
        for variant, parts in networks.items():
            infer, step = (_flops(parts[part], part) for part in ("inference", "epoch"))
            run = epochs * step if variant in ("dense", "pyg") else retrained * step + searched
            for part, flops in zip(PARTS, (infer, step, run), strict=True):
                self.variants[variant][part]["flops_executed"] = flops

    def _peaks(self, variant: str) -> None:
        options, threads = json.loads(self.bench.options.to_json()), torch.get_num_threads()
        what = {"options": options, "ticket": str(self.path.resolve()), "variant": variant, "threads": threads}
        try:
            peaks = in_fresh_process("gebt.experiments.bench.peak_memory:peaks", **what)
        except RuntimeError as error:
            self.notes[f"peak memory, {variant}"] = f"not measured: {error}"
            return
        for part in PARTS:
            peak = peaks[part]
            self.variants[variant][part] |= {"peak_bytes": peak["bytes"], "own_bytes": peak["bytes"] - peak["before"]}
            self.notes["peak memory"] = f"{peak['what']}, each variant in a fresh process"

    def _runs(self, present: list[str], repeats: int) -> dict[str, Any]:
        """Times full runs, phase after phase in every round; returns how the repeated search compares."""
        phases = self._phases(present)
        search: dict[str, Any] = {}
        for number in range(1, repeats + 1):
            for name, samples in phases.items():
                self.progress(f"full run {number} of {repeats}, {name}")
                result = samples.take(self.device)
                if name == "search" and not search:
                    search = check_search(self.bench.ticket, result)
                    before, now = search["devices"]
                    if before != now:
                        self.notes["search"] = f"found on {before!r}, repeated on {now!r}: dropout draws other numbers"
                if name in ("dense", "masked", "compacted"):
                    self.variants[name]["accuracy"] = result
        for variant in present:
            taken = {name: phases[name] for name in PHASES[variant] if name in phases}
            cell = self.variants[variant]["run"]
            rounds = list(map(sum, zip(*(samples.seconds for samples in taken.values()), strict=True)))
            cell["seconds"] = dataclasses.asdict(Seconds.of(rounds))
            cell["phases"] = {name: statistics.median(samples.seconds) for name, samples in taken.items()}
            joules = list(zip(*(samples.joules for samples in taken.values()), strict=True))
            if not any(None in round_ for round_ in joules):
                cell["joules"] = statistics.median(sum(filter(None, round_)) for round_ in joules)
        return search

    def _phases(self, present: list[str]) -> dict[str, _Samples]:
        bench, epochs = self.bench, int(self.bench.options.epochs or 0)
        names = ["dense", *(["search"] if bench.searched else []), "masked", "compacted"]
        phases = {name: _Samples(partial(bench.phase, name)) for name in names}
        if "pyg" in present:
            pyg: Any = bench.network("pyg")
            pyg.epoch()  # its normalized adjacency is made once, and not once in three epochs
            measured = min(PYG_EPOCHS, epochs)
            phases["pyg"] = _Samples(lambda: [pyg.epoch() for _ in range(measured)], epochs / measured)
            self.variants["pyg"]["run"]["scaled_from_epochs"] = measured
            self.notes["PyG, full run"] = f"{measured} epochs measured, scaled to {epochs}"
        return phases


def _as_trained(network: Network) -> Callable[[], object]:
    """The step as `fit` would run it: recorded and replayed where that is faster."""
    if isinstance(network, GebtTraining):
        pattern = network.task.edges.pattern
        if replays(pattern.col.device, pattern.nnz):
            return Replay(network.step)
    return network.step


def _flops(network: Network, part: str) -> int:
    flops = flops_executed(network.infer if part == "inference" else network.step)
    # Of PyG's products the counter sees the dense ones alone; a step passes through the edges twice.
    propagation = getattr(network, "propagation_flops", None)
    passes = 1 if part == "inference" else 2
    return flops + (passes * propagation() if propagation is not None else 0)
