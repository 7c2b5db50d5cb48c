"""What the readers of raw files share: the unchecked graph, checks of arrays and labels, one form of error."""

from __future__ import annotations

import tarfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.graph.graph import GraphError
from gebt.graph.metrics import Target
from gebt.sparse.memory import OutOfRoomError
from gebt.sparse.pattern import INT32_LIMIT, Pattern, SparseMatrix

Array = NDArray[np.generic]

# All that parsing hostile bytes with numpy, zipfile, tarfile and plain Python raises; anything else is our bug.
_PARSE_ERRORS = (
    ValueError, TypeError, LookupError, OSError, EOFError, OverflowError, MemoryError, RuntimeError,
    SyntaxError, tokenize.TokenError, zipfile.BadZipFile, tarfile.TarError, zlib.error,
)  # fmt: skip


class UnsafeFileError(GraphError):
    """A file that asks for more than data: refused, and nothing of it was executed."""


@dataclass(frozen=True)
class RawGraph:
    """A graph as read from raw files, not yet checked.

    Attributes:
        edge_index: [2, E].
        features: [N, F].
        labels: by `target`, as in `Graph`.
        masks: train, validation and test [N] bool, where the files hold a split.
        target: kind of label.
    """

    edge_index: Tensor
    features: Tensor | SparseMatrix
    labels: Tensor
    masks: tuple[Tensor, Tensor, Tensor] | None = None
    target: Target = "class"


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turns whatever goes wrong inside into a `GraphError` that names the file and the way out.

    Args:
        path: file that is read.
        expected: what it should hold, for the message.

    Yields:
        Nothing.

    Raises:
        GraphError: for all that parsing a broken or hostile file raises; other errors pass.
    """
    try:
        yield
    except (GraphError, OutOfRoomError):
        raise
    except _PARSE_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise GraphError(f"file {path} (got: {reason}), expected {expected}; delete it and load again") from error


def csr_entries(indptr: Array, indices: Array, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Row and column of every entry of CSR arrays, after checking that they fit together and the shape.

    Args:
        indptr: row starts [rows + 1].
        indices: columns [E].
        shape: rows and columns.

    Returns:
        Rows [E] and columns [E], int64.

    Raises:
        ValueError: for arrays that do not fit.

    Example:
        >>> row, col = csr_entries(np.array([0, 2, 3]), np.array([0, 1, 1]), (2, 2))
        >>> row.tolist(), col.tolist()
        ([0, 0, 1], [0, 1, 1])
    """
    rows, cols = shape
    if not (indptr.dtype.kind in "iu" and indices.dtype.kind in "iu" and indptr.ndim == indices.ndim == 1):
        got = f"{indptr.dtype} {indptr.shape}, {indices.dtype} {indices.shape}"
        raise ValueError(f"CSR arrays ({got}), expected flat integers")
    if indptr.size != rows + 1 or not 0 < cols <= INT32_LIMIT:
        raise ValueError(f"CSR shape ({rows} x {cols}) with {indptr.size} row starts, expected one more than rows")
    starts = indptr.astype(np.int64)
    if starts[0] != 0 or starts[-1] != indices.size or (np.diff(starts) < 0).any():
        raise ValueError(f"CSR row starts ({starts[0]} to {starts[-1]}), expected to rise from 0 to {indices.size}")
    if indices.size and not 0 <= indices.min() <= indices.max() < cols:
        raise ValueError(f"CSR columns ({indices.min()} to {indices.max()}), expected 0 to {cols - 1}")
    row = np.repeat(np.arange(rows), np.diff(starts))
    return torch.from_numpy(row), torch.from_numpy(indices.astype(np.int64))


def single(values: Array) -> NDArray[np.float32]:
    """A float32 copy; what is too large becomes infinite, which `canonical_graph` refuses.

    Args:
        values: numbers.

    Returns:
        The same as float32.
    """
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def sparse_features(row: Tensor, col: Tensor, values: Array, shape: tuple[int, int]) -> SparseMatrix:
    """The non-zero entries as a float32 matrix.

    Args:
        row: rows [E].
        col: columns [E].
        values: numbers [E].
        shape: rows and columns.

    Returns:
        The matrix.

    Raises:
        ValueError: for another number of values, or two entries at one place.

    Example:
        >>> matrix = sparse_features(torch.tensor([0, 1]), torch.tensor([1, 0]), np.array([2.0, 0.0]), (2, 2))
        >>> matrix.to_dense().tolist()
        [[0.0, 2.0], [0.0, 0.0]]
    """
    if values.shape != tuple(row.shape):
        raise ValueError(f"feature values ({values.dtype} {values.shape}), expected {row.numel()} numbers")
    stored = torch.from_numpy(single(values))
    nonzero = stored != 0
    pattern, order = Pattern.from_entries(row[nonzero], col[nonzero], shape)
    return SparseMatrix(pattern, stored[nonzero][order])


def check_nodes(what: str, numbers: NDArray[Any], nodes: int) -> None:
    """Refuses numbers that are not nodes 0 to nodes - 1, naming the first such row.

    Args:
        what: name of the numbers, for the message.
        numbers: [n, ...].
        nodes: N.

    Raises:
        ValueError: for anything else.
    """
    if numbers.dtype.kind not in "iu":
        raise ValueError(f"{what} of {numbers.dtype}, expected the numbers of nodes")
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < nodes:
        row = int(np.argwhere((numbers < 0) | (numbers >= nodes))[0, 0])
        raise ValueError(f"{what} with {numbers[row].tolist()} in row {row + 1}, expected 0 to {nodes - 1}")


def indices_mask(part: str, indices: NDArray[Any], nodes: int) -> Tensor:
    """The mask of a part of the split.

    Args:
        part: its name, for the message.
        indices: numbers of nodes [n].
        nodes: N.

    Returns:
        [N] bool.

    Raises:
        ValueError: for no node, one outside the graph, or one twice.

    Example:
        >>> indices_mask("train", np.array([2, 0]), 4).tolist()
        [True, False, True, False]
    """
    if indices.ndim != 1 or not indices.size:
        raise ValueError(f"{part} split of shape {indices.shape}, expected the numbers of nodes")
    check_nodes(f"{part} split", indices, nodes)
    mask = np.zeros(nodes, bool)
    mask[indices] = True
    if mask.sum() != indices.size:
        raise ValueError(f"{part} split with {mask.sum()} different nodes in {indices.size} rows, expected each once")
    return torch.from_numpy(mask)


def known_labels(labels: Tensor, masks: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Labels with 0 where they are unknown, negative or NaN; only nodes outside the split may be.

    Args:
        labels: [N].
        masks: train, validation and test [N] bool.

    Returns:
        [N].

    Raises:
        ValueError: for an unknown label of a node of the split.

    Example:
        >>> masks = torch.tensor([[True, False, False], [False, True, False], [False, False, False]])
        >>> known_labels(torch.tensor([1, 0, -1]), tuple(masks)).tolist()
        [1, 0, 0]
    """
    unknown = torch.isnan(labels) if labels.is_floating_point() else labels < 0
    missing = (unknown & (masks[0] | masks[1] | masks[2])).nonzero()
    if len(missing):
        node, expected = int(missing[0]), "a number" if labels.is_floating_point() else "a class from 0 on"
        raise ValueError(f"label {labels[node].item()} of node {node}, which is in the split, expected {expected}")
    return labels.masked_fill(unknown, 0)


def row_scaled(features: SparseMatrix) -> SparseMatrix:
    """Every row divided by its sum, or by 1 where that is less, as PyG's `NormalizeFeatures` does.

    Args:
        features: [N, F].

    Returns:
        [N, F].

    Example:
        >>> row_scaled(SparseMatrix.from_dense(torch.tensor([[1.0, 3.0], [0.0, 0.5]]))).to_dense().tolist()
        [[0.25, 0.75], [0.0, 0.5]]
    """
    row = features.pattern.row.long()
    sums = torch.zeros(features.shape[0], dtype=torch.float64).index_add_(0, row, features.values.double())
    return replace(features, values=(features.values / sums.clamp(min=1)[row]).float())
