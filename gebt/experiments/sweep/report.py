"""The table and the picture of a sweep, made from the records of its jobs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from scipy.special import stdtrit

from gebt.experiments.record import SWEEP_PICTURE, read_record
from gebt.experiments.report import COLORS, METHOD_COLOR, VARIANT_NAMES, aligned
from gebt.experiments.summary import summarize
from gebt.experiments.sweep.jobs import Job

_MARKS = ("o", "s", "^", "v", "D", "P", "X")


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """One row for every data set, network and pair of ratios: the summary over the seeds that are finished.

    Args:
        jobs: of the sweep.

    Returns:
        The rows. "difference": each variant's accuracies minus dense's, seed by seed: mean and half the 95 % interval.
    """
    grouped: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        chosen = job.options
        grouped.setdefault((chosen.dataset, chosen.model, chosen.edge_ratio, chosen.weight_ratio), []).append(job)
    return [row for key, of_row in grouped.items() if (row := _row(key, of_row))]


def _row(key: tuple[Any, ...], jobs: list[Job]) -> dict[str, Any] | None:
    per_seed = [row for job in jobs if job.finished for row in read_record(job.folder)["per_seed"]]
    if not per_seed:
        return None
    summary = summarize(per_seed)
    dense = summary["dense"]["accuracy"]["values"]
    return {
        **dict(zip(("dataset", "model", "edge_ratio", "weight_ratio"), key, strict=True)),
        "seeds": [row["seed"] for row in per_seed],
        "asked": sum(job.options.seeds for job in jobs),
        "summary": summary,
        "difference": {
            variant: _paired(summary[variant]["accuracy"]["values"], dense) for variant in summary if variant != "dense"
        },
    }  # fmt: skip


def _paired(values: list[float], others: list[float]) -> dict[str, Any]:
    """Mean of the differences, and the half-width of its 95 % interval by Student's t (None for one seed)."""
    differences = [value - other for value, other in zip(values, others, strict=True)]
    count, half = len(differences), None
    if count > 1:
        half = float(stdtrit(count - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(count)
    return {"mean": statistics.fmean(differences), "half": half, "values": differences}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text: accuracies in %, differences in points, seconds of search and training of a seed.

    Args:
        rows: of the sweep.

    Returns:
        Lines with aligned columns.
    """
    variants = list(rows[0]["summary"]) if rows else []
    titles = [
        "data set",
        "network",
        "pruned edges, weights, %",
        "seeds",
        *(VARIANT_NAMES.get(variant, variant) for variant in variants),
    ]
    lines = [[*titles, "ticket - dense", "macs, % of dense", "seconds, dense", "seconds, ticket"]]
    for row in rows:
        summary, asked, done = row["summary"], row["asked"], len(row["seeds"])
        accuracies = [summary[variant]["accuracy"] for variant in variants]
        lines.append([
            row["dataset"], row["model"], f"{100 * row['edge_ratio']:.4g}, {100 * row['weight_ratio']:.4g}",
            f"{done}" if done == asked else f"{done} of {asked}",
            *(_with_std(accuracy["mean"], accuracy["std"]) for accuracy in accuracies),
            _with_std(row["difference"]["ticket"]["mean"], row["difference"]["ticket"]["half"], sign="+"),
            f"{100 * _macs(row, 'ticket'):.1f}",
            *(f"{summary[variant]['seconds']['search'] + summary[variant]['seconds']['retrain']:.3f}"
              for variant in ("dense", "ticket")),
        ])  # fmt: skip
    return aligned(lines)


def picture(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Draws accuracy minus dense by `macs_paper`, a panel a data set, into sweep.png.

    Args:
        rows: of the sweep.
        folder: where it is written.

    Returns:
        Its path.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(max(5.5, 4.5 * len(datasets)), 4.2))
    panels = figure.subplots(1, len(datasets), squeeze=False)[0]
    for axes, dataset in zip(panels, datasets, strict=True):
        axes.axhline(0, color=COLORS["dense"], ls="--", lw=1, label="dense")
        for number, model in enumerate(models):
            shown = [row for row in rows if (row["dataset"], row["model"]) == (dataset, model)]
            shown.sort(key=lambda row: _macs(row, "ticket"))
            for variant in shown[0]["difference"] if shown else ():
                differences = [row["difference"][variant] for row in shown]
                axes.errorbar(
                    [100 * _macs(row, variant) for row in shown], [100 * each["mean"] for each in differences],
                    [100 * (each["half"] or 0) for each in differences], fmt=f"{_MARKS[number % len(_MARKS)]}-",
                    color=COLORS.get(variant, METHOD_COLOR), lw=1, ms=5, capsize=3,
                    label=VARIANT_NAMES.get(variant, variant) + (f", {model}" if len(models) > 1 else ""),
                )  # fmt: skip
        axes.set(title=dataset, xlabel="macs_paper, % of dense")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy minus dense, points")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle("the bars are 95 % intervals of the mean over seeds, paired")
    figure.tight_layout()
    figure.savefig(folder / SWEEP_PICTURE, dpi=130, bbox_inches="tight")
    return folder / SWEEP_PICTURE


def _macs(row: dict[str, Any], variant: str) -> float:
    """`macs_paper` of one inference, as a share of dense."""
    return float(
        row["summary"][variant]["macs_paper"]["inference"] / row["summary"]["dense"]["macs_paper"]["inference"]
    )


def _with_std(mean: float, spread: float | None, sign: str = "") -> str:
    return f"{100 * mean:{sign}.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")
