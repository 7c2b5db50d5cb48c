"""Tables and pictures of a run over images, made from its record alone."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gebt.experiments.record import DENSITY_PICTURE, PICTURES
from gebt.experiments.report import COLORS, aligned

DISTANCES = PICTURES[1]
_MARKS = ("o", "s", "^", "v", "D", "P", "X", "*", "<", ">")


def summarized(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for every variant and ratio: mean and unbiased standard deviation over the seeds.

    Args:
        rows: of the record.

    Returns:
        The rows of the summary.
    """
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if "accuracy" in row:
            groups.setdefault((row["variant"], round(row["ratio"], 9)), []).append(row)
    return [_group(variant, of_seeds) for (variant, _), of_seeds in groups.items()]


def _group(variant: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [row["accuracy"] for row in rows]
    summary: dict[str, Any] = {
        "variant": variant,
        "ratio": rows[0]["ratio"],
        "density": rows[0]["density"],
        "seeds": len(rows),
    }
    summary["accuracy"] = statistics.fmean(accuracies)
    summary["std"] = statistics.stdev(accuracies) if len(rows) > 1 else None
    for key in ("seconds", "search_seconds", "parameters", "epoch_drawn", "emptied"):
        if key in rows[0]:
            summary[key] = statistics.fmean(row[key] for row in rows)
    if "fired" in rows[0]:
        summary["fired"] = sum(row["fired"] for row in rows)
    return summary


def table(record: dict[str, Any]) -> str:
    """The summary as aligned text, one line for every variant and ratio.

    Args:
        record: of a run over images.

    Returns:
        Lines with aligned columns.
    """
    titles = {
        "seconds": "seconds", "search_seconds": "to the mask", "parameters": "parameters", "epoch_drawn": "epoch drawn",
        "emptied": "emptied layers",
    }  # fmt: skip
    summary = record["summary"]
    columns = [key for key in titles if any(key in row for row in summary)]
    lines = [["", "pruned, %", "kept, %", "test accuracy, %", *(titles[key] for key in columns)]]
    for row in summary:
        spread = f" ± {100 * row['std']:.2f}" if row["std"] is not None else ""
        cells = [row["variant"], f"{100 * row['ratio']:.4g}", f"{100 * row['density']:.4g}"]
        cells.append(f"{100 * row['accuracy']:.2f}{spread}")
        lines.append([*cells, *(_cell(key, row) for key in columns)])
    return aligned(lines)


def _cell(key: str, row: dict[str, Any]) -> str:
    if key not in row:
        return ""
    if key == "parameters":
        return f"{100 * row[key]:.1f} %"
    if key == "epoch_drawn":
        late = row["seeds"] - row["fired"]
        return f"{row[key]:.4g}" + (f" ({late} did not fire)" if late else "")
    return f"{row[key]:.4g}"


def pictures(record: dict[str, Any], folder: Path) -> list[Path]:
    """Draws accuracy by density; and, of a search, the distances of the masks of any two epochs.

    Args:
        record: of a run over images.
        folder: where they are written.

    Returns:
        Their paths.
    """
    drawn = [_saved(_density(record), folder / DENSITY_PICTURE)]
    searches = [row for row in record["rows"] if row.get("pairwise")]
    if searches:
        drawn.append(_saved(_distances(record, searches[0]), folder / DISTANCES))
    return drawn


def _saved(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130, bbox_inches="tight")
    return path


def _density(record: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    variants: dict[str, list[dict[str, Any]]] = {}
    for row in record["summary"]:
        variants.setdefault(row["variant"], []).append(row)
    for (variant, rows), mark in zip(variants.items(), _MARKS * len(variants), strict=False):
        if variant == "dense":
            level = 100 * rows[0]["accuracy"]
            axes.axhline(level, color=COLORS["dense"], ls="--", lw=1, label=f"dense {level:.1f}")
            continue
        points = sorted(rows, key=lambda row: -row["density"])
        first = variant in ("ticket", "early bird", record["command"])
        color = COLORS["ticket"] if first else COLORS["random"] if variant == "random" else None
        spread = [100 * (row["std"] or 0) for row in points]
        places, heights = [100 * row["density"] for row in points], [100 * row["accuracy"] for row in points]
        axes.errorbar(places, heights, spread, marker=mark, color=color, capsize=3, label=variant)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(
        sorted({float(f"{100 * row['density']:.2g}") for row in record["summary"] if row["variant"] != "dense"})
    )
    kept = "channels" if record["command"] == "early-bird" else "weights"
    axes.set(xlabel=f"{kept} kept, %", ylabel="test accuracy, %", title=_title(record))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _distances(record: dict[str, Any], row: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(5.5, 4.5))
    axes = figure.subplots()
    last = len(row["pairwise"]) + 0.5
    image = axes.imshow(row["pairwise"], cmap="viridis", origin="lower", extent=(0.5, last, 0.5, last))
    figure.colorbar(image, ax=axes, label="share of channels that differ")
    title = f"{_title(record)}, seed {row['seed']}, {100 * row['ratio']:g} % of the channels"
    axes.set(xlabel="epoch drawn", ylabel="epoch drawn", title=title)
    return figure


def _title(record: dict[str, Any]) -> str:
    return f"{record['config']['model']}, {record['config']['data']}"
