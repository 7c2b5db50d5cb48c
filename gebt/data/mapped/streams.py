"""A graph that is read in pieces, so that it need never be in memory."""

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
    """An undirected graph of N nodes whose edges and features come in pieces.

    `edges(rows, scratch)`: pieces [n <= rows, 2] of integers, the two nodes of an edge, `num_edges` rows in all or
    fewer; direction, order, repeats and self-loops do not count; `scratch` is an empty folder for what must lie on disk
    meanwhile, at most `scratch_bytes`. `features(rows)`: pieces [n <= rows, F] of numbers, node by node. `labels`, by
    `target` as in `Graph`, and `masks`, train, validation and test [N] bool, are in memory. Both functions give the
    same at every call.
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
    """The stream of a graph in memory."""
    pairs, features = graph.pairs.cpu().t().numpy(), graph.to("cpu").features
    masks = graph.train_mask.cpu(), graph.val_mask.cpu(), graph.test_mask.cpu()
    return GraphStream(
        graph.name, graph.num_nodes, graph.num_pairs, graph.num_features, lambda rows, _: pieces(pairs, rows),
        lambda rows: pieces(features.numpy(), rows) if isinstance(features, Tensor) else dense_rows(features, rows),
        graph.labels.cpu(), masks, graph.num_classes, graph.metric, graph.target,
    )  # fmt: skip


def pieces(values: NDArray[Any], rows: int) -> Iterator[NDArray[Any]]:
    """An array, of which at most so many rows are read at a time."""
    for start in range(0, len(values), rows):
        yield values[start : start + rows]


def dense_rows(matrix: SparseMatrix, rows: int) -> Iterator[NDArray[Any]]:
    """A sparse matrix in dense pieces."""
    crow, col, values = (tensor.numpy() for tensor in (matrix.pattern.crow, matrix.pattern.col, matrix.values))
    for start in range(0, matrix.shape[0], rows):
        ends = crow[start : start + rows + 1]
        dense = np.zeros((len(ends) - 1, matrix.shape[1]), np.float32)
        held = slice(int(ends[0]), int(ends[-1]))
        dense[np.repeat(np.arange(len(dense)), np.diff(ends)), col[held]] = values[held]
        yield dense
