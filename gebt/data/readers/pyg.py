"""Graphs of PyTorch Geometric brought to canonical form, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gebt.graph.graph import Graph, GraphError, canonical_graph
from gebt.graph.metrics import Target
from gebt.sparse.pattern import Pattern, SparseMatrix

if TYPE_CHECKING:
    from torch_geometric.data import Data

MASKS = ("train_mask", "val_mask", "test_mask")


def from_pyg(
    data: Data, name: str = "pyg", *, split: int = 0, num_classes: int | None = None, to_undirected: bool = False
) -> Graph:
    """The canonical graph of a PyG `Data`; features are not changed.

    Args:
        data: `x` [N, F], dense or a torch sparse tensor; `edge_index` [2, E]; `y`: an integer class [N] or [N, 1], a
            number where it is floating, or [N, T] with 0 or 1 in each of T tasks, NaN or -1 where that is unknown; and
            `train_mask`, `val_mask`, `test_mask`, each [N] or [N, S] bool.
        name: of the graph.
        split: column of masks [N, S].
        num_classes: C; default from the labels.
        to_undirected: accepts edges in one direction only.

    Returns:
        The graph.

    Raises:
        GraphError: for a missing attribute, for directed edges unless `to_undirected`, and for all else that
            `canonical_graph` refuses.

    Example:
        >>> from torch_geometric.data import Data
        >>> mask = torch.eye(4, dtype=torch.bool)
        >>> path = Data(
        ...     x=torch.ones(4, 2), y=torch.tensor([0, 1, 1, 0]),
        ...     edge_index=torch.tensor([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]),
        ...     train_mask=mask[0], val_mask=mask[1], test_mask=mask[2] | mask[3],
        ... )
        >>> graph = from_pyg(path, "path")
        >>> graph.pairs.tolist(), graph.num_classes
        ([[0, 1, 2], [1, 2, 3]], 2)
    """
    masks = [_attribute(data, part, name) for part in MASKS]
    if split and all(mask.dim() == 1 for mask in masks):
        raise GraphError(f"split (got {split}), expected 0: the masks of {name!r} hold one split only")
    train, val, test = (_column(mask, split, name) for mask in masks)
    labels, target = _labels(_attribute(data, "y", name), name)
    edge_index = _attribute(data, "edge_index", name).as_subclass(Tensor)
    features = _features(_attribute(data, "x", name))
    return canonical_graph(name, edge_index, features, labels, (train, val, test), num_classes, to_undirected, target)


def _labels(y: Tensor, name: str) -> tuple[Tensor, Target]:
    y = y[:, 0] if y.dim() == 2 and y.shape[1] == 1 else y
    if y.dim() != 2:
        return y, "regression" if y.is_floating_point() else "class"
    known = y.nan_to_num(-1)
    integers = known.long()
    if not torch.equal(integers.to(known), known):
        got = known[integers != known][0].item()
        raise GraphError(f"labels of {name!r} (got {got:g}), expected 0 or 1 in each task, NaN where it is unknown")
    return integers, "multilabel"


def _attribute(data: Data, key: str, name: str) -> Tensor:
    value = getattr(data, key, None)
    if not isinstance(value, Tensor):
        hint = "; torch_geometric.transforms.RandomNodeSplit makes masks" if key in MASKS else ""
        raise GraphError(f"attribute {key!r} of {name!r} (got {type(value).__name__}), expected a tensor{hint}")
    return value


def _column(mask: Tensor, split: int, name: str) -> Tensor:
    if mask.dim() != 2:
        return mask
    if not 0 <= split < mask.shape[1]:
        raise GraphError(f"split (got {split}), expected 0 to {mask.shape[1] - 1}, the splits of {name!r}")
    return mask[:, split]


def _features(x: Tensor) -> Tensor | SparseMatrix:
    if x.layout == torch.strided:
        return x
    entries = x.to_sparse(layout=torch.sparse_coo).coalesce()
    row, col = entries.indices()
    pattern, order = Pattern.from_entries(row, col, (x.shape[0], x.shape[1]))
    return SparseMatrix(pattern, entries.values()[order])


def to_pyg(graph: Graph) -> Data:
    """The graph as a PyG `Data`, both directions of every edge; `from_pyg` gives the graph back.

    Args:
        graph: a graph with labels of its nodes.

    Returns:
        `x` [N, F] dense, `edge_index` [2, 2P], `y` [N] or [N, T], and the three masks [N].

    Example:
        >>> import gebt
        >>> to_pyg(gebt.load_graph("digits"))
        Data(x=[1797, 64], edge_index=[2, 19858], y=[1797], train_mask=[1797], val_mask=[1797], test_mask=[1797])
    """
    from torch_geometric.data import Data

    x = graph.features.to_dense() if isinstance(graph.features, SparseMatrix) else graph.features
    pairs = graph.pairs.long()
    masks = {name: getattr(graph, name) for name in MASKS}
    return Data(x=x, edge_index=torch.cat((pairs, pairs.flip(0)), 1), y=graph.labels, **masks)
