"""The header of a mapped graph: counts, types and sizes of its files, checked before any is mapped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gebt.data.readers.npz import npy_header
from gebt.data.readers.reading import reading
from gebt.graph.graph import GraphError
from gebt.graph.metrics import METRICS, Metric, Target
from gebt.sparse.pattern import index_dtype

FORMAT, VERSION, HEADER = "gebt mapped graph", 1, "header.json"
PARTS = ("train", "val", "test")
CONVERT = "write the folder again with 'gebt convert'"


@dataclass(frozen=True)
class MappedHeader:
    """The content of header.json.

    Attributes:
        name: of the graph.
        nodes: N.
        pairs: P.
        features: F.
        classes: C.
        metric: what is measured.
        target: kind of label.
        structure: of the `Graph` that `to_graph` gives.
        fingerprint: of the `Graph` that `to_graph` gives.
        files: by name of the array the bytes of its file and the sha256 of its numbers.
    """

    name: str
    nodes: int
    pairs: int
    features: int
    classes: int
    metric: Metric
    target: Target = "class"
    structure: str = ""
    fingerprint: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def arrays(self) -> dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]:
        """The type and shape that every array must have.

        Returns:
            By name of the array.

        Example:
            >>> header = MappedHeader("toy", nodes=4, pairs=3, features=2, classes=2, metric="accuracy")
            >>> {name: shape for name, (_, shape) in header.arrays().items() if name in ("crow", "col", "features")}
            {'crow': (5,), 'col': (6,), 'features': (4, 2)}
        """
        rows, entries = np.dtype(np.int64), 2 * self.pairs
        node, pair = (_numpy(index_dtype(size)) for size in (self.nodes, self.pairs))
        tasks = (self.classes,) if self.target == "multilabel" else ()
        return {
            "crow": (rows, (self.nodes + 1,)),
            "col": (node, (entries,)),
            "pair": (pair, (entries,)),
            "upper_crow": (rows, (self.nodes + 1,)),
            "upper_col": (node, (self.pairs,)),
            "features": (np.dtype(np.float32), (self.nodes, self.features)),
            "labels": (np.dtype(np.float32 if self.target == "regression" else np.int64), (self.nodes, *tasks)),
            **{part: (np.dtype(np.bool_), (self.nodes,)) for part in PARTS},
        }

    def to_json(self) -> str:
        """The text of header.json.

        Returns:
            The text.
        """
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


def read_header(path: Path) -> MappedHeader:
    """The header of a mapped graph.

    Args:
        path: header.json.

    Returns:
        The header.

    Raises:
        GraphError: for a file that is missing or no such header.
    """
    if not path.is_file():
        raise GraphError(f"folder {path.parent} (got no {HEADER}), expected a graph written by 'gebt convert'")
    with reading(path, "the header of a mapped graph"):
        content = json.loads(path.read_text(encoding="utf-8"))
        form = content.pop("format", None), content.pop("version", None)
        if form != (FORMAT, VERSION):
            raise ValueError(f"format {form}, not {(FORMAT, VERSION)}")
        header = MappedHeader(**content)
        counts = {name: getattr(header, name) for name in ("nodes", "pairs", "features", "classes")}
        if not all(type(count) is int and count >= (name != "pairs") for name, count in counts.items()):
            raise ValueError(f"{counts}")
        if header.metric not in METRICS.get(header.target, ()):
            raise ValueError(f"metric {header.metric!r} of labels {header.target!r}")
        return header


def check_file(path: Path, size: object, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    """Checks size and form of one array's file.

    Args:
        path: the file.
        size: its bytes, by the header.
        dtype: type of the array.
        shape: of the array.

    Raises:
        GraphError: naming the file that is missing, cut short or another's.
    """
    if not path.is_file():
        raise GraphError(f"folder {path.parent} (got no {path.name}), expected the complete graph; {CONVERT}")
    actual = path.stat().st_size
    if actual != size:
        raise GraphError(f"file {path} (got {actual} bytes), expected the {size} that {HEADER} tells; {CONVERT}")
    with reading(path, f"the array of {dtype} {shape} that {HEADER} tells"), path.open("rb") as file:
        stored, by_column, kind = npy_header(file)
        size_of_numbers = actual - file.tell()
        if (stored, by_column, kind) != (shape, False, dtype) or size_of_numbers != np.prod(shape) * dtype.itemsize:
            raise ValueError(f"{kind} {stored} in {actual} bytes")


def check_counts(path: Path, counts: list[int], expected: list[int]) -> None:
    """Checks counts that were read from a file against the header's.

    Args:
        path: the file.
        counts: what the file holds.
        expected: what they should be.

    Raises:
        GraphError: where they differ.
    """
    if counts != expected:
        raise GraphError(f"file {path} (got {counts}), expected {expected} by {HEADER}; {CONVERT}")


def _numpy(dtype: torch.dtype) -> np.dtype[np.generic]:
    return np.dtype(str(dtype).removeprefix("torch."))
