"""One run batch by batch, in one process or many; every variant goes on from its last checkpoint."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gebt._files import write_atomically
from gebt._version import __version__
from gebt.experiments.options import RunOptions
from gebt.experiments.record import CHECKPOINTS, RunFolder
from gebt.experiments.setup import DrawLog, is_mapped, macs_for, model_for, opening, parameters_of, source_for
from gebt.experiments.summary import summarize
from gebt.graph.batch_schedule import BatchSchedule
from gebt.graph.batches import Sampler
from gebt.graph.edges import Edges
from gebt.graph.graph import Graph
from gebt.graph.links import LinkGraph
from gebt.measure.cost import flops_executed, measure_seconds, peak_memory, state_bytes
from gebt.recipes import baselines, minibatch
from gebt.sparse.precision import using
from gebt.ticket import Ticket
from gebt.train.checkpoints import Checkpoints
from gebt.train.consistency import check_same_on_all_ranks, digest
from gebt.train.loop import History, seeded
from gebt.train.minibatch import Batched
from gebt.train.processes import Processes

Progress = Callable[[str, int], object]
# Options that change how a run is done but not its results: they may differ where a run is resumed.
FREE = ("checkpoint_every", "data_root", "threads", "timeout")


def wanted(options: RunOptions) -> bool:
    """Whether a run is done batch by batch.

    Args:
        options: resolved.

    Returns:
        True with `batching`, for a mapped graph, and in several processes of torchrun.
    """
    return options.batching is not None or is_mapped(options) or int(os.environ.get("WORLD_SIZE", "1")) > 1


def resumes(resume: bool) -> bool:
    """Whether a run goes on from the files in its folder.

    Args:
        resume: whether the user asked for it.

    Returns:
        True also where torchrun has restarted the process.
    """
    return resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def open_folder(options: RunOptions, path: Path, ranks: Processes, force: bool, resume: bool) -> RunFolder:
    """The folder of the run, made by the first process.

    Args:
        options: resolved.
        path: of the folder.
        ranks: the processes.
        force: replace a run that it holds.
        resume: continue it.

    Returns:
        The folder.

    Raises:
        ValueError: as `RunFolder`, and for the folder of a run with other options.
    """
    config = json.loads(options.to_json())
    if ranks.first:
        folder = RunFolder(path, force=force, resume=resume)
        folder.refuse_another(config, FREE)
        folder.write_config(options.to_json())
    ranks.wait()
    return RunFolder(path, resume=True)


def run(options: RunOptions, folder: RunFolder, ranks: Processes, progress: Progress) -> dict[str, Any]:
    """Runs every variant for every seed; a variant that is done is not trained again.

    Args:
        options: resolved.
        folder: of the run.
        ranks: the processes; the first one writes the record.
        progress: called with variant and seed after every epoch.

    Returns:
        The record.

    Raises:
        ValueError: before any training, naming the processes that differ in code, data or options.
    """
    check_same_on_all_ranks("code", _code())
    config = {name: value for name, value in json.loads(options.to_json()).items() if name not in FREE}
    check_same_on_all_ranks("options", json.dumps(config, sort_keys=True))
    per_seed: list[dict[str, Any]] = []
    record: dict[str, Any] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        variants = _Variants(options, folder, ranks, seed, progress)
        with using(options.precision, options.device):
            per_seed.append(variants.row())
        record = {
            **opening(options, variants.source, complete=len(per_seed) == options.seeds),
            "processes": ranks.count,
            "summary": summarize(per_seed),
            "per_seed": per_seed,
            "pairwise": record.get("pairwise") or variants.ticket[1]["pairwise"],
        }
        if ranks.first:
            folder.write(record)
    Checkpoints(folder.path / CHECKPOINTS, ranks).clear()
    return record


class _Variants:
    """The variants of one seed."""

    def __init__(self, options: RunOptions, folder: RunFolder, ranks: Processes, seed: int, progress: Progress) -> None:
        self.options, self.folder, self.ranks, self.seed = options, folder, ranks, seed
        self.progress, self.at = progress, folder.path / CHECKPOINTS / f"seed-{seed}"
        source: Any = source_for(options, seed)
        check_same_on_all_ranks("data", source.fingerprint)
        edges = Edges.from_pairs(source.pairs, source.num_nodes) if isinstance(source, Graph) else None
        links = isinstance(source, LinkGraph)
        train = torch.arange(source.num_nodes) if links else source.train_mask.nonzero().squeeze(1)
        # In memory the edges give the rows.
        schedule = BatchSchedule(Sampler(edges or source), train, options.batch_settings(ranks.count), seed)
        if options.batching == "cluster":
            check_same_on_all_ranks("clusters of the graph", digest(schedule.clusters))
        self.source = source
        scratch = None if edges is not None else self.at / f"rows-{ranks.rank}"
        self.batched = Batched(source, schedule, ranks, edges=edges, device=options.device, scratch=scratch)

    def row(self) -> dict[str, Any]:
        """Everything measured of this seed."""
        row: dict[str, Any] = {"seed": self.seed, "fingerprint": self.source.fingerprint, "stacked": 1}
        row["dense"] = self._done("dense", self._dense)
        ticket, searched = self.ticket
        tickets = {
            "random": baselines.random_ticket(self._model(), self.source, seed=self.seed, **self._ratios),
            "random_edges_control": baselines.random_edges(ticket, self.source, seed=self.seed),
            "ticket": ticket,
        }
        for variant, masked in tickets.items():
            search = searched if variant != "random" else None
            row[variant] = self._done(variant, partial(self._retrained, variant, masked, search))
        path = self.folder.ticket(self.seed, self.options.seeds)
        row["ticket"] |= {"epoch_drawn": ticket.epoch_drawn, "fired": ticket.fired}
        row["ticket"] |= {
            "trajectory": ticket.provenance["trajectory"],
            "file": str(path.relative_to(self.folder.path)),
        }
        for variant in tickets:
            row[variant]["file_bytes"] = path.stat().st_size
        return row

    @cached_property
    def ticket(self) -> tuple[Ticket, dict[str, Any]]:
        """The ticket, from its file where the search is done, and the cost of the search."""
        path = self.folder.ticket(self.seed, self.options.seeds)
        searched = self._done("search", lambda: self._search(path))
        return Ticket.load(path), searched

    @property
    def _ratios(self) -> dict[str, Any]:
        return {"edge_ratio": self.options.edge_ratio, "weight_ratio": self.options.weight_ratio}

    def _done(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of `work`, of now or from before an interruption."""
        path = self.at / f"{name}.json"
        if not path.is_file():
            result = work()
            self.ranks.wait()
            if self.ranks.first:
                write_atomically(path, json.dumps(result))
            self.ranks.wait()
            Checkpoints(self.at / name, self.ranks).clear()
        return json.loads(path.read_text(encoding="utf-8"))

    def _search(self, path: Path) -> dict[str, Any]:
        model, timer, draws = self._model(), _Timer(self, "search"), DrawLog()
        values_in = None if self.batched.edges is not None else self.at / "search" / f"values-{self.ranks.rank}"
        ticket = minibatch.joint(
            model, self.batched, **self._ratios, settings=self.options.search(), seed=self.seed, values_in=values_in,
            checkpoints=Checkpoints(self.at / "search", self.ranks), every=self.options.checkpoint_every,
            on_draw=draws, on_epoch=timer,
        )  # fmt: skip
        if self.ranks.first:
            ticket.save(path)
        epochs = ticket.epochs_searched
        flops = epochs * self._epoch_flops(model, self.batched, searches=True)
        pairwise = draws.pairwise()  # of the epochs since the last start
        return {"epochs": epochs, "seconds": timer.seconds(epochs), "flops": flops, "pairwise": pairwise}

    def _dense(self) -> dict[str, Any]:
        return self._measured("dense", self._model(), None, None, lambda model, **more: minibatch.train(
            model, self.batched, self.options.training(), **more))  # fmt: skip

    def _retrained(self, variant: str, ticket: Ticket, searched: dict[str, Any] | None) -> dict[str, Any]:
        settings = self.options.retraining()
        return self._measured(variant, self._model(), ticket, searched, lambda model, **more: minibatch.retrain(
            ticket, model, self.batched, settings.training, start=settings.start, **more))  # fmt: skip

    def _measured(
        self, variant: str, model: nn.Module, ticket: Ticket | None, searched: dict[str, Any] | None,
        work: Callable[..., History],
    ) -> dict[str, Any]:  # fmt: skip
        timer = _Timer(self, variant)
        with peak_memory(self.options.device) as peak:
            history = work(
                model, seed=self.seed, evaluate_every=self.options.evaluate_every, on_epoch=timer,
                checkpoints=Checkpoints(self.at / variant, self.ranks), every=self.options.checkpoint_every,
            )  # fmt: skip
        seen = self.batched.seen_by(ticket) if ticket else self.batched
        dense, pruned = (macs_for(self.options, self.source, masked) for masked in (None, ticket))
        seconds, flops = self._inference(seen, model)
        epochs, search_epochs = len(history.losses), searched["epochs"] if searched else 0
        return {
            "accuracy": history.accuracy,
            "val_accuracy": history.val_accuracy[history.best_epoch - 1],
            "best_epoch": history.best_epoch,
            "seconds": {
                "search": searched["seconds"] if searched else 0.0,
                "retrain": timer.seconds(epochs),
                "inference": seconds,
            },
            "parameters": parameters_of(self.options, self.source, model, ticket),
            "edge_sparsity": ticket.edge_sparsity if ticket else 0.0,
            "weight_sparsity": ticket.weight_sparsity if ticket else 0.0,
            "macs_paper": {"inference": pruned, "training": 3 * (epochs * pruned + search_epochs * dense)},
            "flops_executed": {
                "inference": flops,
                "training": epochs * self._epoch_flops(model, seen) + (searched["flops"] if searched else 0.0),
            },
            "peak_bytes": peak.bytes,
            "file_bytes": state_bytes(model),
        }

    def _inference(self, seen: Batched, model: nn.Module) -> tuple[float, float]:
        """Seconds and flops of one inference of all nodes."""
        if seen.edges is not None:
            seconds = measure_seconds(lambda: seen.infer(model), repeats=5, warmup=1).median
            return seconds, flops_executed(lambda: seen.infer(model))
        # A graph on disk is read once; the time includes that.
        counted: list[float] = []
        once = measure_seconds(lambda: counted.append(flops_executed(lambda: seen.infer(model))), repeats=1, warmup=0)
        return once.median, counted[0]

    def _model(self) -> nn.Module:
        return model_for(self.options, self.source, self.seed)

    def _epoch_flops(self, model: nn.Module, seen: Batched, searches: bool = False) -> float:
        """Flops of the products of an epoch: those of its first batch, times the batches."""
        counted = copy.deepcopy(model).train()
        task, _ = seen.task_of(seen.schedule.batch(1, 0))
        gates = torch.ones(task.edges.num_pairs, device=seen.device, requires_grad=True) if searches else None

        def step() -> None:
            task.logits(counted, gates).sum().backward()

        with seeded(0):
            step()  # without what is timed or built on the first call
            return float(flops_executed(step) * len(seen.schedule))


class _Timer:
    """Called after every epoch: it reports progress, and knows the seconds of the epochs of this process."""

    def __init__(self, variants: _Variants, variant: str) -> None:
        self.variants, self.variant, self.epochs = variants, variant, 0
        self.start = self.last = time.perf_counter()

    def __call__(self, epoch: int, history: History) -> bool:
        self.epochs, self.last = self.epochs + 1, time.perf_counter()
        self.variants.progress(self.variant, self.variants.seed)
        return False

    def seconds(self, epochs: int) -> float:
        """Seconds of so many epochs; those before an interruption count as the others."""
        return (self.last - self.start) / max(1, self.epochs) * epochs


def _code() -> str:
    """A digest of torch's version and the code of the package, which must be the same in all processes."""
    digest = hashlib.sha256(f"{torch.__version__} {__version__}".encode())
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
