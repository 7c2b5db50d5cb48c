"""The folder of a run and its record: one JSON file, written after every seed, never in part."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebt._files import write_atomically
from gebt._version import __version__
from gebt.ticket.old_names import renamed_options, renamed_record

SCHEMA = 1
CHECKPOINTS = "checkpoints"
RECORD, CONFIG, TICKET, MODEL = "record.json", "config.json", "ticket.safetensors", "model.safetensors"
PICTURES = ("trajectory.png", "distances.png", "savings.png", "training.png")
DENSITY_PICTURE = "density.png"
BENCH_PICTURE = "bench.png"
SWEEP_PICTURE = "sweep.png"
# Where a sweep keeps the run folders of its jobs.
JOBS = "jobs"


class RunFolder:
    """Where a run writes.

    Args:
        path: of the folder.
        force: remove the files of an earlier run; those that gebt did not write stay.
        resume: leave all files.

    Raises:
        ValueError: when the folder holds something, unless `force` or `resume`.
    """

    def __init__(self, path: Path, *, force: bool = False, resume: bool = False) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"--out (got {path}, which is a file), expected a folder")
        if path.is_dir() and any(path.iterdir()) and not resume:
            if not force:
                raise ValueError(f"--out (got {path}, not empty), expected a new folder; --force replaces a run")
            _remove_run(path)
        path.mkdir(parents=True, exist_ok=True)
        self.path = path

    @staticmethod
    def named(stem: str, parent: Path = Path("runs")) -> Path:
        """The first of STEM, STEM-2, STEM-3, ... that does not exist.

        Args:
            stem: of the name.
            parent: of the folder.

        Returns:
            The path.
        """
        candidate, number = parent / stem, 1
        while candidate.exists():
            number += 1
            candidate = parent / f"{stem}-{number}"
        return candidate

    def ticket(self, seed: int, seeds: int) -> Path:
        """Path of a seed's ticket: in the folder itself for one seed, in seed-K/ for several.

        Args:
            seed: K.
            seeds: how many the run has.

        Returns:
            The path.

        Example:
            >>> folder = RunFolder(Path("."), resume=True)
            >>> folder.ticket(3, seeds=1).as_posix(), folder.ticket(3, seeds=5).as_posix()
            ('ticket.safetensors', 'seed-3/ticket.safetensors')
        """
        return self.path / TICKET if seeds == 1 else self.path / f"seed-{seed}" / TICKET

    def write(self, record: dict[str, Any]) -> Path:
        """Writes the record; readers see the previous or this one, and returns its path."""
        return write_atomically(self.path / RECORD, json.dumps({"schema": SCHEMA, **record}, indent=1) + "\n")

    def write_config(self, text: str) -> Path:
        """Writes the resolved configuration, and returns its path."""
        return write_atomically(self.path / CONFIG, text)

    def refuse_another(self, config: dict[str, Any], free: Collection[str] = ()) -> None:
        """Refuses to resume a run with other options.

        Args:
            config: options of this run.
            free: names of options that may differ.

        Raises:
            ValueError: naming the other options of the run in the folder.
        """
        path = self.path / CONFIG
        if not path.is_file():
            return
        before = renamed_options(json.loads(path.read_text(encoding="utf-8")))
        now = json.loads(json.dumps(config))
        differs = sorted(
            key for key in now.keys() | before.keys() if key not in free and now.get(key) != before.get(key)
        )
        if differs:
            options = ", ".join(f"{key} {before.get(key)}" for key in differs)
            raise ValueError(f"--resume (got a run with {options} in {self.path}), expected the same options")


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run folder, also of one by version 0.1.0.

    Args:
        folder: of the run.

    Returns:
        The record, by today's names.

    Raises:
        ValueError: when it is missing, broken or of another schema.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"record {path} (got {error}), expected a record written by gebt") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        got = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"record {path} (got schema {got}), expected {SCHEMA}")
    return renamed_record(record)


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine and versions that numbers are measured with.

    Args:
        device: "cpu" or "cuda": where the run computes.

    Returns:
        Processor, cores, threads, device, system, and versions of gebt, Python, torch and numpy.
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "gebt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _remove_run(path: Path) -> None:
    for name in (RECORD, CONFIG, TICKET, MODEL, *PICTURES, BENCH_PICTURE, DENSITY_PICTURE, SWEEP_PICTURE):
        (path / name).unlink(missing_ok=True)
    if (path / CHECKPOINTS).is_dir():
        shutil.rmtree(path / CHECKPOINTS)
    for of_seed in path.glob("seed-*"):
        if of_seed.is_dir() and all(_is_of_run(file.name) for file in of_seed.iterdir()):
            shutil.rmtree(of_seed)
        elif of_seed.is_file() and of_seed.suffix == ".safetensors":
            of_seed.unlink()
    for job in (entry for entry in path.glob(f"{JOBS}/*") if entry.is_dir()):
        _remove_run(job)
        if not any(job.iterdir()):
            job.rmdir()


def _is_of_run(name: str) -> bool:
    """Whether a run wrote this file in the folder of a seed: a ticket, or levels of iterative magnitude pruning."""
    return name in (TICKET, "lottery.json", "rewind.safetensors") or fnmatch(name, "level-*.safetensors")
