"""The summary of the rows of several seeds: means, standard deviations and medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

VARIANTS = ("dense", "random", "random_edges_control", "ticket")


def summarize(per_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary over seeds: accuracies as mean, unbiased std and values; seconds as medians; the highest peak memory.

    Args:
        per_seed: a row for each seed, with the measures of each variant.

    Returns:
        Measures by variant.
    """
    summary: dict[str, Any] = {}
    other_methods = [
        variant for variant, row in per_seed[0].items() if isinstance(row, dict) and variant not in VARIANTS
    ]
    for variant in (*VARIANTS, *other_methods):
        rows = [row[variant] for row in per_seed]
        values = [row["accuracy"] for row in rows]
        summary[variant] = {
            "accuracy": {"mean": statistics.fmean(values), "std": _std(values), "values": values},
            "val_accuracy": statistics.fmean(row["val_accuracy"] for row in rows),
            "val_accuracy_std": _std([row["val_accuracy"] for row in rows]),
            "parameters": _over(rows, "parameters", statistics.fmean),
            "seconds": _over(rows, "seconds", statistics.median),
            "seconds_std": _over(rows, "seconds", _std),
            "edge_sparsity": statistics.fmean(row["edge_sparsity"] for row in rows),
            "weight_sparsity": statistics.fmean(row["weight_sparsity"] for row in rows),
            "macs_paper": _over(rows, "macs_paper", statistics.fmean),
            "flops_executed": _over(rows, "flops_executed", statistics.fmean),
            "peak_bytes": max(row["peak_bytes"] for row in rows),
            "file_bytes": round(statistics.fmean(row["file_bytes"] for row in rows)),
        }
    tickets = [row["ticket"] for row in per_seed]
    summary["ticket"]["epoch_drawn"] = [row["epoch_drawn"] for row in tickets]
    summary["ticket"]["fired"] = [row["fired"] for row in tickets]
    return summary


def _std(values: list[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _over(rows: list[dict[str, Any]], key: str, reduce: Callable[[list[float]], Any]) -> dict[str, Any]:
    return {part: reduce([row[key][part] for row in rows]) for part in rows[0][key]}
