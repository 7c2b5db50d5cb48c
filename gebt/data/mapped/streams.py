"""Graphs read in pieces, so that they need never fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gebt.graph.graph import Graph
from gebt.graph.metrics import Metric, Target
from gebt.sparse.pattern import SparseMatrix


@dataclass(frozen=True, eq=False)
class GraphStream:
    """An undirected graph of N nodes whose edges and features come in pieces, the same at every call.

    Attributes:
        name: of the graph.
        num_nodes: N.
        num_edges: rows that `edges` yields in all, or more.
        num_features: F.
        edges: `edges(rows, scratch)` yields pieces [n <= rows, 2] of integers, the two nodes of an edge; direction,
            order, repeats and self-loops do not count. `scratch` is an empty folder for temporary files.
        features: `features(rows)` yields pieces [n <= rows, F] of numbers, node by node.
        labels: by `target`, as in `Graph`, in memory.
        masks: train, validation and test [N] bool, in memory.
        num_classes: C; default from the labels.
        metric: what is measured.
        target: kind of label.
        scratch_bytes: most bytes that `edges` puts into `scratch`.
    """

    name: str
    num_nodes: int
    num_edges: int
    num_features: int
    edges: Callable[[int, Path], Iterator[NDArray[Any]]]
    features: Callable[[int], Iterator[NDArray[Any]]]
    labels: Tensor
    masks: tuple[Tensor, Tensor, Tensor]
    num_classes: int | None = None
    metric: Metric = "accuracy"
    target: Target = "class"
    scratch_bytes: int = 0


def stream_graph(graph: Graph) -> GraphStream:
    """The stream of a graph in memory.

    Args:
        graph: the graph.

    Returns:
        The stream.
    """
    pairs, features = graph.pairs.cpu().t().numpy(), graph.to("cpu").features
    masks = graph.train_mask.cpu(), graph.val_mask.cpu(), graph.test_mask.cpu()
    return GraphStream(
        graph.name, graph.num_nodes, graph.num_pairs, graph.num_features, lambda rows, _: pieces(pairs, rows),
        lambda rows: pieces(features.numpy(), rows) if isinstance(features, Tensor) else dense_rows(features, rows),
        graph.labels.cpu(), masks, graph.num_classes, graph.metric, graph.target,
    )  # fmt: skip


def pieces(values: NDArray[Any], rows: int) -> Iterator[NDArray[Any]]:
    """An array, of which at most so many rows are read at a time.

    Args:
        values: [n, ...].
        rows: most rows of a piece.

    Yields:
        Consecutive rows.

    Example:
        >>> [piece.tolist() for piece in pieces(np.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def dense_rows(matrix: SparseMatrix, rows: int) -> Iterator[NDArray[Any]]:
    """A sparse matrix in dense pieces.

    Args:
        matrix: [n, F].
        rows: most rows of a piece.

    Yields:
        Consecutive rows, dense float32.
    """
    crow, col, values = (tensor.numpy() for tensor in (matrix.pattern.crow, matrix.pattern.col, matrix.values))
    for start in range(0, matrix.shape[0], rows):
        ends = crow[start : start + rows + 1]
        dense = np.zeros((len(ends) - 1, matrix.shape[1]), np.float32)
        entries = slice(int(ends[0]), int(ends[-1]))
        dense[np.repeat(np.arange(len(dense)), np.diff(ends)), col[entries]] = values[entries]
        yield dense
