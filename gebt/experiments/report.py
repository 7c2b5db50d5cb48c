"""Tables and pictures of a run or a benchmark, made from its record alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gebt.experiments.record import BENCH_PICTURE, PICTURES

VARIANT_NAMES = {"dense": "dense", "random": "random", "random_edges_control": "random edges", "ticket": "ticket"}
DRAWN_FROM = dict(zip(PICTURES, ("pairwise", "pairwise", "summary", "history"), strict=True))
COLORS = {"dense": "#7f7f7f", "random": "#c7b299", "random_edges_control": "#e0a030", "ticket": "#1b7837"}
METHOD_COLOR = "#7b3294"
BENCH_NAMES = {"dense": "dense", "masked": "ticket, masked", "compacted": "ticket, compacted", "pyg": "PyG"}
BENCH_COLORS = {"masked": "#a6dba0", "compacted": "#1b7837", "pyg": "#d6604d"}
BENCH_PARTS = {"inference": "inference", "epoch": "training step", "run": "full run"}
BENCH_MEASURES = {
    "macs_paper": "macs_paper",
    "flops_executed": "flops_executed",
    "seconds": "seconds",
    "peak_bytes": "peak memory",
    "own_bytes": "of it, without libraries",
    "joules": "joules",
}


def table(record: dict[str, Any]) -> str:
    """The comparison as aligned text: one row a measure, one column a variant, ratios against dense.

    Args:
        record: of `gebt run`.

    Returns:
        Lines with aligned columns.
    """
    summary = record["summary"]
    variants = _names_of(summary)
    rows = [["", *variants.values()]]
    rows.append([_measured(record), *(_accuracy(summary[variant]) for variant in variants)])
    rows.append(["... on validation", *(_validation(summary[variant]) for variant in variants)])
    rows.append(["epoch drawn", "", "", "", _epochs(summary["ticket"], record["config"].get("draw_at", "detector"))])
    rows.append(["edge sparsity, %", *(f"{100 * summary[variant]['edge_sparsity']:.2f}" for variant in variants)])
    rows.append(["weight sparsity, %", *(f"{100 * summary[variant]['weight_sparsity']:.2f}" for variant in variants)])
    rows.append(["parameters, search", *(_searched(summary[variant]) for variant in variants)])
    rows.append(["parameters, (re)training", *_against_dense(summary, "parameters", "training", _count)])
    counted = [(key, part) for key in ("macs_paper", "flops_executed") for part in ("inference", "training")]
    rows.extend([f"{key}, {part}", *_against_dense(summary, key, part, _count)] for key, part in counted)
    # The seconds of another method before its last training are under "search".
    timed = (("search", "search"), ("retrain", "(re)training"), ("inference", "inference"))
    rows.extend([f"seconds, {name}", *_times_against_dense(summary, part)] for part, name in timed)
    if (stacked := max(row.get("stacked", 1) for row in record["per_seed"])) > 1:
        rows.append(["... a seed's share of", *[f"{stacked} trained together"] * len(VARIANT_NAMES)])
    sizes = (("peak_bytes", "peak memory"), ("file_bytes", "weights / ticket file"))
    rows.extend([name, *_against_dense(summary, key, None, _bytes)] for key, name in sizes)
    return aligned(rows)


def pictures(record: dict[str, Any], folder: Path) -> list[Path]:
    """Draws the pictures of a record.

    A search: `trajectory.png`, `distances.png`; a comparison: `savings.png` too; a retraining: `training.png`.

    Args:
        record: of `gebt run`, `gebt search` or `gebt retrain`.
        folder: where they are written.

    Returns:
        Their paths.
    """
    paths = []
    for name, draw in zip(PICTURES, (_trajectory, _distances, _savings, _training), strict=True):
        if DRAWN_FROM[name] not in record:
            continue
        figure = draw(record)
        figure.savefig(folder / name, dpi=130, bbox_inches="tight")
        paths.append(folder / name)
    return paths


def bench_table(record: dict[str, Any]) -> str:
    """The table of `gebt bench` as aligned text: one column a variant, ratios against dense; seconds: median, range.

    Args:
        record: of `gebt bench`.

    Returns:
        Lines with aligned columns, and notes under them.
    """
    variants, notes = record["bench"]["variants"], record["bench"]["notes"]
    rows = [["", *(BENCH_NAMES[variant] for variant in variants)]]
    for part, part_name in BENCH_PARTS.items():
        for measure, name in BENCH_MEASURES.items():
            rows.append(
                [
                    f"{part_name}, {name}",
                    *_bench_cells([variants[variant][part][measure] for variant in variants], measure),
                ]
            )
    rows.append(
        ["bytes on disk", *_bench_cells([variants[variant]["file_bytes"] for variant in variants], "file_bytes")]
    )
    accuracies = [variants[variant]["accuracy"] for variant in variants]
    rows.append(["test accuracy, %", *(a if isinstance(a, str) else f"{100 * a:.2f}" for a in accuracies)])
    equal = [f"{names} {share:.1e} of the largest" for names, share in record["bench"]["equal"].items()]
    notes = {"logits": "; ".join(equal), **notes}
    return "\n".join([aligned(rows), "", *(f"{what}: {text}" for what, text in notes.items())])


def bench_picture(record: dict[str, Any], folder: Path) -> Path:
    """Draws the cost of every variant of `gebt bench`, in % of dense, into bench.png.

    Args:
        record: of `gebt bench`.
        folder: where it is written.

    Returns:
        Its path.
    """
    variants = record["bench"]["variants"]
    figure = Figure(figsize=(12, 4.5))
    panels = figure.subplots(1, len(BENCH_PARTS), sharex=True, sharey=True)
    measures = list(BENCH_MEASURES)
    height = 0.8 / len(BENCH_COLORS)
    for axes, (part, part_name) in zip(panels, BENCH_PARTS.items(), strict=True):
        for number, (variant, color) in enumerate(BENCH_COLORS.items()):
            for place, measure in enumerate(measures):
                share = _share(variants[variant][part][measure], variants["dense"][part][measure])
                at = place + (number - 1) * height
                label = BENCH_NAMES[variant] if place == 0 else None
                axes.barh(at, 100 * (share or 0), height, color=color, label=label)
                text = "not measured" if share is None else f"{100 * share:{',.0f' if share >= 1 else '.3g'}}"
                axes.text(100 * (share or 1), at, f" {text}", va="center", size=7)
        axes.axvline(100, color=COLORS["dense"], ls="--", lw=1)
        axes.set(xscale="log", title=part_name, xlabel="% of dense")
        axes.margins(x=0.25)
    panels[0].set_yticks(range(len(measures)), BENCH_MEASURES.values())
    panels[0].invert_yaxis()
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{record['dataset']}: the cost of a ticket, compared with the dense network")
    figure.tight_layout()
    figure.savefig(folder / BENCH_PICTURE, dpi=130, bbox_inches="tight")
    return folder / BENCH_PICTURE


def _number(cell: Any) -> float | None:
    """The number of a cell, of seconds the median; None where nothing was measured."""
    value = cell["median"] if isinstance(cell, dict) else cell
    return None if isinstance(value, str) else float(value)


def _share(cell: Any, dense: Any) -> float | None:
    value, base = _number(cell), _number(dense)
    return value / base if value is not None and base else None


def _bench_cells(cells: list[Any], measure: str) -> list[str]:
    """The cells of a row, dense first: the number as shown, and the ratio against dense."""
    shown = _bytes if measure.endswith("bytes") else {"seconds": _seconds, "joules": _joules}.get(measure, _count)
    texts = []
    for place, cell in enumerate(cells):
        value, share = _number(cell), _share(cell, cells[0])
        text = str(cell) if value is None else shown(value)
        if measure == "seconds" and value is not None:
            text += f" [{_seconds(cell['lowest'])}, {_seconds(cell['highest'])}]"
        texts.append(text + (f" ({share:.2f}x)" if place and share is not None else ""))
    return texts


def _trajectory(record: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    config = record["config"]
    for number, row in enumerate(record["per_seed"]):
        steps = row["ticket"]["trajectory"]
        epochs = range(2, len(steps) + 2)
        strong = number == 0
        for kind, color in (("weights", "#2166ac"), ("edges", "#d6604d"), ("criterion", "black")):
            if kind in ("weights", "edges") and not strong:
                continue
            label = f"watched: {config['criterion']}" if kind == "criterion" else kind
            values = [step[kind] for step in steps]
            axes.plot(
                epochs, values, color=color, lw=1.8 if strong else 0.7, alpha=1 if strong else 0.4,
                label=label if strong else None,
            )  # fmt: skip
        if steps:
            axes.plot(len(steps) + 1, steps[-1]["criterion"], "o", color="#1b7837", label="drawn" if strong else None)
    axes.axhline(config["threshold"], color="#1b7837", ls="--", lw=1, label=f"threshold {config['threshold']:g}")
    axes.set(xlabel="epoch", ylabel=f"mask distance (per {config['normalization']})", ylim=(0, None))
    axes.set_title(f"{record['dataset']}: masks stop moving")
    axes.legend(frameon=False)
    return figure


def _distances(record: dict[str, Any]) -> Figure:
    pairwise = record["pairwise"]
    figure = Figure(figsize=(9, 4))
    columns = figure.subplots(1, 2)
    for axes, kind in zip(columns, ("edges", "weights"), strict=True):
        last = len(pairwise[kind]) + 0.5
        image = axes.imshow(
            pairwise[kind], cmap="viridis", origin="lower", extent=(0.5, last, 0.5, last), interpolation="nearest"
        )
        axes.set(title=f"{kind[:-1]} masks", xlabel="epoch drawn", ylabel="epoch drawn")
        figure.colorbar(image, ax=axes, fraction=0.046, label="share of entries that differ")
    figure.suptitle(
        f"{record['dataset']}, seed {record['per_seed'][0]['seed']}: distance of the masks drawn at every two epochs"
    )
    figure.tight_layout()
    return figure


def _savings(record: dict[str, Any]) -> Figure:
    summary = record["summary"]
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    variants = _names_of(summary)
    for place, variant in enumerate(variants):
        accuracy = summary[variant]["accuracy"]
        spread = 100 * (accuracy["std"] or 0)
        left.errorbar(
            place, 100 * accuracy["mean"], spread, fmt="o", ms=8, color=COLORS.get(variant, METHOD_COLOR), capsize=4
        )
    left.grid(axis="y", alpha=0.3)
    left.margins(x=0.15)
    left.set_xticks(range(len(variants)), variants.values(), rotation=25)
    left.set_title(_measured(record))
    measures = [
        ("macs_paper", "inference"), ("macs_paper", "training"), ("flops_executed", "inference"),
        ("flops_executed", "training"), ("seconds", "inference"), ("seconds", "training"),
    ]  # fmt: skip
    for place, (key, part) in enumerate(measures):
        share = 100 * _total(summary["ticket"], key, part) / _total(summary["dense"], key, part)
        right.barh(place, share, color=COLORS["ticket"])
        right.text(share + 1, place, f"{share:.0f} %", va="center")
    right.margins(x=0.12)
    right.axvline(100, color=COLORS["dense"], ls="--", lw=1)
    right.set_yticks(range(len(measures)), [f"{key}, {part}" for key, part in measures])
    right.invert_yaxis()
    right.set_title("ticket, % of dense (training counts the search)")
    figure.suptitle(f"{record['dataset']}, {len(record['per_seed'])} seed(s)")
    figure.tight_layout()
    return figure


def _training(record: dict[str, Any]) -> Figure:
    history, best = record["history"], record["retrained"]["best_epoch"]
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    epochs = range(1, len(history["val_accuracy"]) + 1)
    for part, color in (("val", "#2166ac"), ("test", "#1b7837")):
        axes.plot(epochs, [100 * value for value in history[f"{part}_accuracy"]], color=color, label=part)
    axes.axvline(best, color="black", ls="--", lw=1, label=f"best on validation, epoch {best}")
    axes.set(
        xlabel="epoch",
        ylabel=_measured(record).removeprefix("test "),
        title=f"{record['dataset']}: training the ticket",
    )
    axes.legend(frameon=False)
    return figure


def _names_of(summary: dict[str, Any]) -> dict[str, str]:
    """The variants of a comparison and their names: those that always run, then other methods."""
    return VARIANT_NAMES | {variant: variant for variant in summary if variant not in VARIANT_NAMES}


def _total(variant: dict[str, Any], key: str, part: str) -> float:
    if (key, part) == ("seconds", "training"):
        return float(variant["seconds"]["search"] + variant["seconds"]["retrain"])
    return float(variant[key][part])


def _measured(record: dict[str, Any]) -> str:
    """The name of what is measured: accuracy, or another metric of the graph."""
    return f"test {record['graph'].get('metric', 'accuracy').replace('_', ' ')}, %"


def _accuracy(variant: dict[str, Any]) -> str:
    accuracy = variant["accuracy"]
    spread = f" ± {100 * accuracy['std']:.2f}" if accuracy["std"] is not None else ""
    return f"{100 * accuracy['mean']:.2f}{spread}"


def _validation(variant: dict[str, Any]) -> str:
    spread = f" ± {100 * variant['val_accuracy_std']:.2f}" if variant["val_accuracy_std"] is not None else ""
    return f"{100 * variant['val_accuracy']:.2f}{spread}"


def _searched(variant: dict[str, Any]) -> str:
    return _count(variant["parameters"]["search"]) if variant["parameters"]["search"] else ""


def _epochs(ticket: dict[str, Any], draw: str) -> str:
    drawn, late = ticket["epoch_drawn"], ticket["fired"].count(False)
    spread = f" ± {statistics.stdev(drawn):.1f}" if len(drawn) > 1 else ""
    note = " (by validation)" if draw == "validation" else f" ({late} did not fire)" if late else ""
    return f"{statistics.fmean(drawn):.4g}{spread}{note}"


def _against_dense(summary: dict[str, Any], key: str, part: str | None, shown: Callable[[float], str]) -> list[str]:
    values = {variant: summary[variant][key][part] if part else summary[variant][key] for variant in _names_of(summary)}
    base = values["dense"]
    cells = []
    for variant, value in values.items():
        ratio = f" ({value / base:.2f}x)" if base and variant != "dense" else ""
        cells.append(shown(value) + ratio if value else "")
    return cells


def _times_against_dense(summary: dict[str, Any], part: str) -> list[str]:
    base = summary["dense"]["seconds"][part]
    cells = []
    for variant in _names_of(summary):
        value, std = summary[variant]["seconds"][part], summary[variant]["seconds_std"][part]
        unit, size = ("s", 1.0) if value >= 0.1 else ("ms", 1e-3)
        spread = f" ± {std / size:.3f}" if std is not None else ""
        ratio = f" ({value / base:.2f}x)" if base and variant != "dense" else ""
        cells.append(f"{value / size:.3f}{spread} {unit}{ratio}" if value else "")
    return cells


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 0.1 else f"{1e3 * value:.3f} ms"


def _joules(value: float) -> str:
    return f"{value:.3g} J"


def _bytes(value: float) -> str:
    return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 2**10:.1f} KiB"


def aligned(rows: list[list[str]]) -> str:
    """The cells in columns, a line under the first row.

    Args:
        rows: of texts, the first row as long as the longest.

    Returns:
        The lines.

    Example:
        >>> print(aligned([["", "dense"], ["epochs", "200"]]))
                dense
        ------  -----
        epochs  200
    """
    rows = [[*row, *[""] * (len(rows[0]) - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
