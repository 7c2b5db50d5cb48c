"""What every benchmark shares: options, one table, one JSON file, peers timed in turn."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gebt.files import write_atomically
from gebt.record import machine
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
