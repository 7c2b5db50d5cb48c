"""Reader of the Planetoid files: Cora, CiteSeer and PubMed with their public split (Yang et al. 2016)."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gebt.data.fetch.safe_pickle import adjacency_lists, array, csr_state, is_shape, read_pickle
from gebt.data.readers.reading import Array, RawGraph, csr_entries, reading, sparse_features
from gebt.sparse.pattern import SparseMatrix

VALIDATION_NODES = 500
# `x` is the beginning of `allx` and is not read.
PICKLED = ("tx", "allx", "y", "ty", "ally", "graph")


def read_planetoid(folder: Path, name: str) -> RawGraph:
    """The graph in the files `ind.<name>.*`, with the node order and the masks that PyG gives it.

    `allx` and `ally` describe the first nodes, row i of `tx` and `ty` the node in line i of `test.index`. A
    node in neither (15 in CiteSeer) has no features, label 0 and no part in the split.

    Args:
        folder: where the files are.
        name: "cora", "citeseer" or "pubmed".

    Returns:
        The graph with its public split.

    Source:
        Yang et al. 2016, "Revisiting semi-supervised learning with graph embeddings".
    """
    parts = {part: read_pickle(folder / f"ind.{name}.{part}") for part in PICKLED}
    with reading(folder / f"ind.{name}.*", "Planetoid files that belong together"):
        edge_index, nodes = _edges(adjacency_lists(parts["graph"]))
        train, first, last = (_one_hot(parts[part]) for part in ("y", "ally", "ty"))
        test = _test_nodes(folder / f"ind.{name}.test.index", len(first), len(last), nodes)
        features = _features(parts["allx"], parts["tx"], len(first), test, nodes)
        labels = torch.zeros(nodes, dtype=torch.long)
        labels[: len(first)] = torch.from_numpy(first.argmax(1))
        labels[test] = torch.from_numpy(last.argmax(1))
        return RawGraph(edge_index, features, labels, _masks(len(train), len(first), test, nodes))


def _edges(lists: dict[Any, Any]) -> tuple[Tensor, int]:
    nodes = len(lists)
    if not all(type(node) is int and 0 <= node < nodes for node in lists):
        raise ValueError(f"a graph of {nodes} nodes not numbered 0 to {nodes - 1}")
    # Separate lists have no more entries than the file has bytes; one shared by all nodes could fill the memory.
    if not all(isinstance(near, list) for near in lists.values()) or len({id(near) for near in lists.values()}) < nodes:
        raise ValueError("a graph without one list of neighbors for each node")
    degrees = [len(near) for near in lists.values()]
    source = np.repeat(np.fromiter(lists, np.int64, nodes), degrees)
    target = np.fromiter(chain.from_iterable(lists.values()), np.int64, sum(degrees))
    return torch.from_numpy(np.stack((source, target))), nodes


def _one_hot(recipe: Any) -> Array:
    labels = array(recipe)
    if labels.ndim != 2 or 0 in labels.shape:
        raise ValueError(f"labels of shape {labels.shape}, expected one row a node and one column a class")
    return labels


def _test_nodes(path: Path, known: int, tested: int, nodes: int) -> Tensor:
    numbers = [int(line) for line in path.read_text(encoding="ascii").split()]
    if len(numbers) != tested or len(set(numbers)) != tested:
        raise ValueError(f"test.index with {len(set(numbers))} different nodes, expected {tested}")
    if not known <= min(numbers) <= max(numbers) < nodes:
        raise ValueError(f"test.index with nodes {min(numbers)} to {max(numbers)}, expected {known} to {nodes - 1}")
    return torch.tensor(numbers)


def _features(allx: Any, tx: Any, known: int, test: Tensor, nodes: int) -> SparseMatrix:
    row, col, values, (rows, width) = _csr(allx)
    test_row, test_col, test_values, (test_rows, test_width) = _csr(tx)
    if (rows, test_rows, test_width) != (known, len(test), width):
        got = f"allx {rows} x {width} and tx {test_rows} x {test_width}"
        raise ValueError(f"{got}, expected {known} and {len(test)} rows of one width")
    places = torch.cat((row, test[test_row])), torch.cat((col, test_col))
    return sparse_features(*places, np.concatenate((values, test_values)), (nodes, width))


def _csr(recipe: Any) -> tuple[Tensor, Tensor, Array, tuple[int, int]]:
    state = csr_state(recipe)
    shape = state["_shape"]
    if not is_shape(shape) or len(shape) != 2:
        raise ValueError("a csr_matrix without a shape")
    row, col = csr_entries(array(state["indptr"]), array(state["indices"]), (shape[0], shape[1]))
    return row, col, array(state["data"]), (shape[0], shape[1])


def _masks(train: int, known: int, test: Tensor, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    if train + VALIDATION_NODES > known:
        raise ValueError(f"{train} training nodes of {known}, expected {VALIDATION_NODES} more for validation")
    masks = torch.zeros(3, nodes, dtype=torch.bool)
    masks[0, :train] = True
    masks[1, train : train + VALIDATION_NODES] = True
    masks[2, test] = True
    return masks[0], masks[1], masks[2]
