"""A sweep cut into jobs: a run for every data set, network, pair of ratios and group of seeds."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
from cyclopts import Parameter

from gebt.data.manifest import dataset_info
from gebt.experiments.compare import run
from gebt.experiments.option_groups import DATA, NETWORK, RUN, SEARCH
from gebt.experiments.options import RunOptions
from gebt.experiments.record import JOBS, RECORD, RunFolder, read_record
from gebt.experiments.setup import graph_for, groups, model_for
from gebt.models.registry import ModelName
from gebt.sparse import backends
from gebt.sparse.memory import use_huge_pages

_SEVERAL, _HIDDEN = Parameter(consume_multiple=True), Parameter(parse=False)


@dataclass(frozen=True, kw_only=True)
class SweepOptions(RunOptions):
    """Options of a sweep: those of a run, and several where a run has one data set, network and pair of ratios.

    Attributes:
        datasets: Names of data sets; `gebt data list` shows them.
        models: The networks, as --model of `gebt run`.
        ratios: Shares of edges and weights to prune, such as 0.2,0.5; several pairs are possible.
        threads: CPU threads of a worker; default: the cores divided by --workers.
    """

    datasets: Annotated[tuple[str, ...], DATA, _SEVERAL] = ("digits",)
    models: Annotated[tuple[ModelName, ...], NETWORK, _SEVERAL] = ("gcn",)
    ratios: Annotated[tuple[str, ...], SEARCH, _SEVERAL] = ("0.2,0.5",)
    threads: Annotated[int | None, RUN] = None
    dataset: Annotated[str, _HIDDEN] = RunOptions.dataset
    model: Annotated[ModelName | None, _HIDDEN] = RunOptions.model
    edge_ratio: Annotated[float, _HIDDEN] = RunOptions.edge_ratio
    weight_ratio: Annotated[float, _HIDDEN] = RunOptions.weight_ratio

    def given(self) -> dict[str, Any]:
        """These options by name, as in a configuration file that `--config` reads.

        Returns:
            Values of the options that a sweep has, as JSON.
        """
        hidden = ("dataset", "model", "edge_ratio", "weight_ratio")
        return {name: value for name, value in json.loads(self.to_json()).items() if name not in hidden}

    def runs(self) -> list[RunOptions]:
        """The resolved options of every comparison, all seeds in one.

        Returns:
            One per data set, network and pair of ratios, in this order.

        Raises:
            ValueError: naming the option and value that are wrong.

        Example:
            >>> runs = SweepOptions(models=("gcn", "sage"), ratios=("0.2,0.5", "0.4,0.9")).runs()
            >>> [(run.model, run.edge_ratio, run.weight_ratio) for run in runs]
            [('gcn', 0.2, 0.5), ('gcn', 0.4, 0.9), ('sage', 0.2, 0.5), ('sage', 0.4, 0.9)]
        """
        for name in ("datasets", "models", "ratios"):
            if not getattr(self, name):
                raise ValueError(f"--{name} (got none), expected at least one")
        if self.batching is not None:
            raise ValueError(
                f"--batching (got {self.batching!r} in a sweep), expected none: jobs are trained full-batch"
            )
        shared = RunOptions(**{field.name: getattr(self, field.name) for field in fields(RunOptions)})
        pairs = [_pair(text) for text in self.ratios]
        return [
            replace(shared, dataset=dataset, model=model, edge_ratio=edges, weight_ratio=weights).resolved()
            for dataset in self.datasets
            for model in self.models
            for edges, weights in pairs
        ]


# Annotations are text, and cyclopts looks up the names in the inherited ones in this module.
_INHERITED = get_type_hints(RunOptions, include_extras=True)
SweepOptions.__init__.__annotations__.update(
    {name: hint for name, hint in _INHERITED.items() if name not in SweepOptions.__annotations__}
)


@dataclass(frozen=True)
class Job:
    """One piece of work: a run in a folder.

    Attributes:
        options: resolved options of the run.
        folder: where it writes.
    """

    options: RunOptions
    folder: Path

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether the folder holds the record of the complete run."""
        return (self.folder / RECORD).is_file() and bool(read_record(self.folder)["complete"])


def plan_jobs(runs: list[RunOptions], threads: int, folder: Path) -> list[Job]:
    """The jobs of a sweep: of each run, the groups of seeds that are trained together.

    Args:
        runs: resolved options of every comparison.
        threads: CPU threads of a job.
        folder: of the sweep.

    Returns:
        The jobs, run by run.

    Raises:
        ValueError: for data that is missing, a network that does not fit, and a run that is there twice.
    """
    jobs: list[Job] = []
    grouped: dict[tuple[str, str | None], list[list[int]]] = {}
    for options in runs:
        key = (options.dataset, options.model)
        if key not in grouped:
            model_for(options, graph_for(options, options.first_seed), options.first_seed)
            grouped[key] = groups(options)
        for seeds in grouped[key]:
            of_job = replace(options, first_seed=seeds[0], seeds=len(seeds), threads=threads)
            jobs.append(Job(of_job, folder / JOBS / _name_of(of_job)))
    names = [job.name for job in jobs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"--datasets, --models, --ratios (got {twice} twice), expected every comparison once")
    return jobs


def attempt(job: Job) -> str:
    """Runs a job, in a worker.

    Args:
        job: the job.

    Returns:
        "", or what is wrong with its options or data.
    """
    use_huge_pages()
    torch.set_num_threads(job.options.threads or 1)
    try:
        backends.use(job.options.backend)
        # Files of an attempt that died are no part of this one.
        run(job.options, RunFolder(job.folder, force=True))
    except ValueError as error:
        return str(error)
    return ""


def _name_of(options: RunOptions) -> str:
    ratios = f"g{100 * options.edge_ratio:g}-w{100 * options.weight_ratio:g}"
    last = options.first_seed + options.seeds - 1
    seeds = f"s{options.first_seed}" + (f"-{last}" if options.seeds > 1 else "")
    return f"{dataset_info(options.dataset).name}-{options.model}-{ratios}-{seeds}"


def _pair(text: str) -> tuple[float, float]:
    try:
        edges, weights = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--ratios (got {text!r}), expected those of edges and weights, such as 0.2,0.5") from error
    return edges, weights
