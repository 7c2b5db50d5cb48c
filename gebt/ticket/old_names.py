"""Reads options, records and tickets that version 0.1.0 wrote by its names: old names and values become new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OPTIONS = {
    "batches": "batching",
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
# Settings of batches had short names of their own: "together" are clusters here, and seeds among the options.
_BATCHES = {
    "cut": "strategy",
    "parts": "num_parts",
    "per_step": "accumulate_batches",
    "together": "clusters_per_batch",
}
_VALUES = {
    "batching": {"neighbours": "neighbor", "clusters": "cluster", "walks": "random-walk"},
    "controls": {"shuffled in all": "shuffled_global"},
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
    "score": {"even": "uniform"},
    "target": {"number": "regression"},
}
_VALUES["strategy"] = _VALUES["batching"]
_VARIANTS = {"random_edges": "random_edges_control"}
# Variants of runs over images.
_IMAGE_VARIANTS = {**_VALUES["controls"], **_VALUES["score"]}


def renamed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options or settings by today's names and values.

    Args:
        options: by the names of 0.1.0 or of today.

    Returns:
        A new mapping; names and values that are today's already stay.

    Example:
        >>> renamed_options({"edge_score": "need", "spread": 0.8, "score": ["snip", "even"], "epochs": 5})
        {'edge_score': 'reliance', 'label_propagation': 0.8, 'score': ['snip', 'uniform'], 'epochs': 5}
    """
    return _renamed_values(_renamed_keys(options, _OPTIONS))


def renamed_provenance(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance of a ticket by today's names: its settings, its batches, its trajectory and its method.

    Args:
        provenance: as in the ticket's header.

    Returns:
        A new mapping.
    """
    renamed = dict(provenance)
    if isinstance(renamed.get("settings"), Mapping):
        renamed["settings"] = renamed_options(renamed["settings"])
    if isinstance(renamed.get("batches"), Mapping):
        renamed["batches"] = _renamed_values(_renamed_keys(renamed["batches"], _BATCHES))
    if "trajectory" in renamed:
        renamed["trajectory"] = _renamed_trajectory(renamed["trajectory"])
    if isinstance(renamed.get("method"), str):
        renamed["method"] = _VARIANTS.get(renamed["method"], renamed["method"])
    return renamed


def renamed_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run, a sweep, a benchmark or a run over images by today's names.

    Args:
        record: as in record.json.

    Returns:
        A new mapping: configuration, variants and trajectories are renamed.
    """
    renamed = dict(record)
    if isinstance(record.get("config"), Mapping):
        renamed["config"] = renamed_options(record["config"])
    if isinstance(record.get("bench"), Mapping):
        renamed["bench"] = _renamed_keys(record["bench"], {"arms": "variants"})
    if isinstance(record.get("per_seed"), list):
        renamed["per_seed"] = [_renamed_seed(row) for row in record["per_seed"]]
    for name in ("summary", "rows"):
        if isinstance(record.get(name), Mapping):
            renamed[name] = _renamed_keys(record[name], _VARIANTS)
        elif isinstance(record.get(name), list):
            renamed[name] = [_renamed_row(row) for row in record[name]]
    return renamed


def renamed_ticket(header: Mapping[str, Any], tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file of a ticket of format 2 by the names of format 3.

    Args:
        header: the JSON header.
        tensors: by name.

    Returns:
        Header and tensors.
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
    parts = {name: name.partition(".") for name in tensors}
    return renamed, {
        "".join((groups.get(group, group), dot, rest)): tensors[name] for name, (group, dot, rest) in parts.items()
    }


def _renamed_seed(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return row
    renamed = _renamed_keys(row, {"together": "stacked", **_VARIANTS})
    for name, part in renamed.items():
        if isinstance(part, Mapping) and "trajectory" in part:
            renamed[name] = {**part, "trajectory": _renamed_trajectory(part["trajectory"])}
    return renamed


def _renamed_row(row: Any) -> Any:
    """A row of a sweep, which has a summary, or of a run over images, which is of one variant."""
    if not isinstance(row, Mapping):
        return row
    renamed = _renamed_keys(row, {"arm": "variant"})
    if isinstance(renamed.get("variant"), str):
        renamed["variant"] = _IMAGE_VARIANTS.get(renamed["variant"], renamed["variant"])
    for name in ("summary", "difference"):
        if isinstance(renamed.get(name), Mapping):
            renamed[name] = _renamed_keys(renamed[name], _VARIANTS)
    return renamed


def _renamed_trajectory(rows: Any) -> Any:
    if not isinstance(rows, list):
        return rows
    return [_renamed_keys(row, {"watched": "criterion"}) if isinstance(row, Mapping) else row for row in rows]


def _renamed_keys(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}


def _renamed_values(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _renamed_value(value, _VALUES.get(name, {})) for name, value in options.items()}


def _renamed_value(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed_value(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value
