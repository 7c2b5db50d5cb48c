"""What every benchmark shares: options, one table, one JSON file, peers timed in turn."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from gebt._files import write_atomically
from gebt.experiments.record import machine
from gebt.sparse.memory import use_huge_pages


def options(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark takes; peers get the same pages as we do."""
    use_huge_pages()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the output, says nothing of speed")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write rows, summary and machine to this file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--data-root", type=Path, help="folder of the raw data; default $GEBT_DATA")
    return parser


def in_turn(works: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each work, the works called one after the other in every round, so that noise meets all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warmup + repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if number >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class Store:
    """Results by key, kept in `path` as JSON lines, so that a stop loses none; None: kept in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._known = path, dict[str, Any]()
        if path is not None and path.is_file():
            for line in path.read_text().splitlines():
                found = json.loads(line)
                self._known[found["key"]] = found["outcome"]

    def get(self, key: str, find: Callable[[], Any]) -> Any:
        """What is known by this key, or else what `find` returns: what JSON can hold."""
        if key not in self._known:
            self._known[key] = find()
            if self.path is not None:
                with self.path.open("a") as file:
                    file.write(json.dumps({"key": key, "outcome": self._known[key]}) + "\n")
        return self._known[key]


def spread(values: Sequence[float]) -> float:
    """Unbiased standard deviation; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def half_interval(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of the confidence interval of the mean, by Student's t; 0 for one value."""
    if len(values) < 2:
        return 0.0
    return float(student.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def finish(title: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], out: Path | None) -> None:
    """Prints the table, the summary and the machine; writes them as JSON when asked."""
    where = machine()
    print(f"\n{title}")
    columns = list(rows[0])
    cells = [columns, *([_shown(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    for name, value in summary.items():
        print(f"{name}: {_shown(value)}")
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    if out is not None:
        write_atomically(out, json.dumps({"rows": rows, "summary": summary, "machine": where}, indent=1) + "\n")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
