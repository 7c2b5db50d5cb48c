"""Reads the names in files of 0.1.0 as those of today: options, records and tickets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OPTIONS = {
    "batches": "batching",
    "cut": "strategy",
    "draw": "draw_at",
    "edge_values": "edge_weights",
    "least": "min_keep",
    "normalisation": "normalization",
    "parts": "num_parts",
    "parts_together": "clusters_per_batch",
    "per_step": "accumulate_batches",
    "rule": "compare",
    "smoothing": "prediction_ema",
    "spread": "label_propagation",
    "symmetrise": "to_undirected",
    "together": "stack_seeds",
}
_VALUES = {
    "batching": {"neighbours": "neighbor", "clusters": "cluster", "walks": "random-walk"},
    "compare": {"newest": "window", "consecutive": "previous"},
    "edge_score": {
        "share": "local_degree",
        "agreement": "similarity",
        "need": "reliance",
        "mixed": "reliance+magnitude",
        "rule": "learned",
    },
    "edge_weights": {"unit": "one", "degree": "degree_corrected"},
    "normalization": {"entry": "hamming", "swap": "exchanged", "first": "relative_to_first"},
    "preset": {"default": "early-bird"},
    "scope": {"tensor": "layer"},
    "target": {"number": "regression"},
}
_VALUES["strategy"] = _VALUES["batching"]
_VARIANTS = {"random_edges": "random_edges_control"}


def renamed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Renames options, or settings, and their values.

    Args:
        options: values by name; those of today stay as they are.

    Returns:
        The same by the names and values of today.

    Example:
        >>> renamed_options({"least": 2, "scope": "tensor", "seed": 0})
        {'min_keep': 2, 'scope': 'layer', 'seed': 0}
    """
    renamed = {_OPTIONS.get(name, name): value for name, value in options.items()}
    return {
        name: _VALUES.get(name, {}).get(value, value) if isinstance(value, str) else value
        for name, value in renamed.items()
    }


def renamed_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Renames what the provenance of a ticket holds: settings, batching, method and the rows of its trajectory.

    Args:
        provenance: of a ticket of format 2.

    Returns:
        The same by the names of today.

    Example:
        >>> renamed_provenance({"method": "random_edges", "trajectory": [{"watched": 0.5}]})
        {'method': 'random_edges_control', 'trajectory': [{'criterion': 0.5}]}
    """
    renamed = {"batching" if name == "batches" else name: value for name, value in provenance.items()}
    for name in ("settings", "batching"):
        if isinstance(renamed.get(name), Mapping):
            renamed[name] = renamed_options(renamed[name])
    if "trajectory" in renamed:
        renamed["trajectory"] = _renamed_rows(renamed["trajectory"])
    if isinstance(renamed.get("method"), str):
        renamed["method"] = _VARIANTS.get(renamed["method"], renamed["method"])
    return renamed


def renamed_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Renames what the record of a run holds: its configuration, its variants and the rows of its trajectories.

    Args:
        record: read from JSON.

    Returns:
        The same by the names of today.
    """
    renamed = dict(record)
    if isinstance(record.get("config"), Mapping):
        renamed["config"] = renamed_options(record["config"])
    if isinstance(record.get("summary"), Mapping):
        renamed["summary"] = _renamed_keys(record["summary"], _VARIANTS)
    if isinstance(record.get("per_seed"), list):
        renamed["per_seed"] = [_renamed_seed(row) for row in record["per_seed"]]
    return renamed


def renamed_ticket(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Renames the header and tensors of a ticket's file of format 2.

    Args:
        header: read from JSON.
        tensors: by name.

    Returns:
        Header and tensors by the names of format 3.
    """
    keys = {"initial": "initial_state", "rule": "edge_scorer"}
    groups = {
        "drawn": "state_at_draw",
        "initial": "initial_state",
        "rule": "edge_scorer",
        "edge_values": "edge_weights",
    }
    renamed = _renamed_keys(header, keys)
    if isinstance(renamed.get("provenance"), Mapping):
        renamed["provenance"] = renamed_provenance(renamed["provenance"])
    split = {name: name.partition(".") for name in tensors}
    return renamed, {"".join((groups.get(s[0], s[0]), *s[1:])): tensors[name] for name, s in split.items()}


def _renamed_seed(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    renamed = _renamed_keys(row, {"together": "stacked", **_VARIANTS})
    for name, part in renamed.items():
        if isinstance(part, Mapping) and "trajectory" in part:
            renamed[name] = {**part, "trajectory": _renamed_rows(part["trajectory"])}
    return renamed


def _renamed_rows(rows: Any) -> Any:
    if not isinstance(rows, list):
        return rows
    return [_renamed_keys(row, {"watched": "criterion"}) if isinstance(row, Mapping) else row for row in rows]


def _renamed_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
