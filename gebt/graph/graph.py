"""The canonical form of a graph, which the rest of the package reads, and the checks that lead to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from gebt.graph.metrics import METRICS, Metric, Target
from gebt.sparse.pattern import SparseMatrix

# Measured: with CSR features a GCN epoch is faster up to about this share of non-zeros (docs/engines.md).
SPARSE_FEATURE_DENSITY = 0.15


class GraphError(ValueError):
    """A graph that cannot be used as it is; the message names what, the value and the way out."""


@dataclass(frozen=True, eq=False)
class Graph:
    """An undirected graph with node features, labels and a split.

    Attributes:
        name: of the graph.
        pairs: each undirected edge once, row 0 < row 1, in lexicographic order, no self-loops, [2, P] int64.
        features: [N, F] float32: dense, or a `SparseMatrix` when few entries are non-zero.
        labels: by `target`: "class" [N] int64 in 0..C-1; "multilabel" [N, T] int64, 0 or 1, -1 where unknown;
            "regression" [N] float32.
        train_mask: nodes to learn from, [N] bool, disjoint from the other masks.
        val_mask: nodes to choose by, [N] bool.
        test_mask: nodes to report, [N] bool.
        num_classes: the outputs that a network needs, C, T or 1.
        notes: what was changed to reach this form (self-loops removed, duplicates merged, ...).
        metric: how well a network does, one of `METRICS[target]` (`gebt.graph.metrics`).
        target: what a label is.
    """

    name: str
    pairs: Tensor
    features: Tensor | SparseMatrix
    labels: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    num_classes: int
    notes: tuple[str, ...] = field(default=())
    metric: Metric = "accuracy"
    target: Target = "class"

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.labels.shape[0]

    @property
    def num_pairs(self) -> int:
        """P, undirected edges without self-loops."""
        return self.pairs.shape[1]

    @property
    def num_features(self) -> int:
        """F."""
        return self.features.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over structure, features, labels and split: equal for equal graphs on any machine."""
        digest = hashlib.sha256()
        if isinstance(self.features, SparseMatrix):
            pattern = self.features.pattern
            features = (pattern.crow.long(), pattern.col.long(), self.features.values)
        else:
            features = (self.features,)  # type: ignore[assignment]
        for tensor in (self.pairs, *features, self.labels, self.train_mask, self.val_mask, self.test_mask):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            # Its bytes: numpy has no bfloat16.
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def structure(self) -> str:
        """`structure_digest` of its pairs."""
        return structure_digest(self.pairs, self.num_nodes)

    def features_of(self, nodes: Tensor) -> Tensor | SparseMatrix:
        """The features of some nodes.

        Args:
            nodes: [n].

        Returns:
            [n, F].
        """
        return self.features.rows(nodes) if isinstance(self.features, SparseMatrix) else self.features[nodes]

    def to(self, device: torch.device | str) -> Graph:
        """The same graph on another device.

        Args:
            device: where to.

        Returns:
            The graph.
        """
        moved = {
            name: getattr(self, name).to(device)
            for name in ("pairs", "features", "labels", "train_mask", "val_mask", "test_mask")
        }
        return replace(self, **moved)


def check_classes(graph: Graph, what: str) -> None:
    """Checks that every label is one class, for methods that need probabilities of classes.

    Args:
        graph: the graph.
        what: the method, for the message.

    Raises:
        GraphError: where a label is not one class.
    """
    if graph.target != "class":
        raise GraphError(
            f"{what} (got graph {graph.name!r} with labels of the kind {graph.target!r}), expected one class a node; "
            "the preset 'early-bird' takes all kinds"
        )


def structure_digest(pairs: Tensor, num_nodes: int) -> str:
    """sha256 of the number of nodes and of the pairs: what a mask is over, whatever the features.

    Args:
        pairs: canonical, [2, P].
        num_nodes: N.

    Returns:
        Hexadecimal digits.
    """
    digest = hashlib.sha256(f"{num_nodes}".encode())
    digest.update(pairs.long().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def canonical_graph(
    name: str,
    edge_index: Tensor,
    features: Tensor | SparseMatrix,
    labels: Tensor,
    masks: tuple[Tensor, Tensor, Tensor],
    num_classes: int | None = None,
    to_undirected: bool = False,
    target: Target = "class",
) -> Graph:
    """Checks a graph and brings it to canonical form, measured by the first of `METRICS[target]`.

    Args:
        name: of the graph, for messages.
        edge_index: directed entries, in any order, repeats and self-loops allowed, [2, E].
        features: [N, F].
        labels: as in `Graph`.
        masks: train, validation, test, each [N] bool.
        num_classes: C or T; read from the labels by default.
        to_undirected: adds missing directions; without it every edge must be there in both.
        target: what a label is.

    Returns:
        The graph.

    Raises:
        GraphError: for an empty graph, an index out of range, directed edges, NaN or infinite features, labels that
            `target` does not allow, overlapping masks, or a part without a labeled node.

    Example:
        >>> masks = tuple(torch.tensor(m) for m in ([1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]))
        >>> graph = canonical_graph(
        ...     "path", torch.tensor([[0, 1, 2, 2], [1, 2, 3, 2]]), torch.eye(4), torch.tensor([0, 0, 1, 1]),
        ...     tuple(mask.bool() for mask in masks), to_undirected=True,
        ... )
        >>> graph.pairs.tolist(), graph.num_classes
        ([[0, 1, 2], [1, 2, 3]], 2)
        >>> graph.notes
        ('1 self-loops removed', '3 one-way edges made undirected')
    """
    nodes = labels.shape[0] if labels.dim() else 0
    if nodes == 0:
        raise GraphError(f"graph {name!r} (got 0 nodes), expected at least one")
    pairs, notes = undirected_pairs(name, edge_index, nodes, to_undirected)
    stored = checked_features(name, features, nodes)
    known, classes = checked_labels(name, labels, num_classes, target)
    check_masks(name, masks, nodes)
    if target == "multilabel":
        check_known(name, known, masks)
    more = {"notes": tuple(notes), "metric": METRICS[target][0], "target": target}
    return Graph(name, pairs, stored, known, *masks, num_classes=classes, **more)  # type: ignore[arg-type]


def undirected_pairs(name: str, edge_index: Tensor, nodes: int, to_undirected: bool) -> tuple[Tensor, list[str]]:
    """Canonical pairs of directed entries.

    Args:
        name: of the graph, for messages.
        edge_index: directed entries, [2, E].
        nodes: N.
        to_undirected: adds missing directions.

    Returns:
        Pairs [2, P], and notes of what was changed.

    Raises:
        GraphError: for another shape, an index out of range, or directed edges without `to_undirected`.

    Example:
        >>> pairs, notes = undirected_pairs("triangle", torch.tensor([[2, 1, 0], [1, 0, 2]]), 3, True)
        >>> pairs.tolist()
        [[0, 0, 1], [1, 2, 2]]
    """
    if edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.is_floating_point():
        got = f"{tuple(edge_index.shape)} {edge_index.dtype}"
        raise GraphError(f"edge index of {name!r} (got {got}), expected integers of shape (2, E)")
    if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < nodes:
        bad = int(edge_index.min()) if int(edge_index.min()) < 0 else int(edge_index.max())
        raise GraphError(f"edge index of {name!r} (got node {bad}), expected 0 to {nodes - 1}")
    source, target = edge_index.long()
    notes = []
    loops = source == target
    if bool(loops.any()):
        notes.append(f"{int(loops.sum())} self-loops removed")
        source, target = source[~loops], target[~loops]
    directed = torch.unique(source * nodes + target)
    if directed.numel() < source.numel():
        notes.append(f"{source.numel() - directed.numel()} repeated entries merged")
    source, target = directed // nodes, directed % nodes
    key = torch.unique(torch.minimum(source, target) * nodes + torch.maximum(source, target))
    one_way = 2 * key.numel() - directed.numel()
    if one_way:
        if not to_undirected:
            raise GraphError(
                f"graph {name!r} (got {one_way} edges in one direction only), expected an undirected graph; "
                "pass to_undirected=True (--to-undirected) to add the missing directions"
            )
        notes.append(f"{one_way} one-way edges made undirected")
    return torch.stack((key // nodes, key % nodes)), notes


def checked_features(name: str, features: Tensor | SparseMatrix, nodes: int) -> Tensor | SparseMatrix:
    """Features as `Graph` stores them: float32, sparse up to the density `SPARSE_FEATURE_DENSITY`.

    Args:
        name: of the graph, for messages.
        features: [N, F].
        nodes: N.

    Returns:
        [N, F].

    Raises:
        GraphError: for another shape, NaN or infinity.
    """
    if len(features.shape) != 2 or features.shape[0] != nodes or features.shape[1] == 0:
        raise GraphError(f"features of {name!r} (got shape {tuple(features.shape)}), expected ({nodes}, F >= 1)")
    # After the cast: a double beyond float32 becomes infinite.
    values = (features.values if isinstance(features, SparseMatrix) else features).float()
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        count = int((~finite).sum())
        raise GraphError(f"features of {name!r} (got {count} NaN or infinite values), expected finite numbers only")
    if isinstance(features, SparseMatrix):
        stored = values != 0
        sparse = SparseMatrix(features.pattern.keep(stored), values[stored])
        return sparse if sparse.pattern.density <= SPARSE_FEATURE_DENSITY else sparse.to_dense()
    share = float((values != 0).sum()) / values.numel()
    return SparseMatrix.from_dense(values) if share <= SPARSE_FEATURE_DENSITY else values


_EXPECTED = {"class": "one integer class a node", "multilabel": "integers (N, T)", "regression": "one float a node"}


def checked_labels(name: str, labels: Tensor, num_classes: int | None, target: Target) -> tuple[Tensor, int]:
    """Labels as `Graph` stores them.

    Args:
        name: of the graph, for messages.
        labels: as in `Graph`.
        num_classes: C or T, None to read it from the labels.
        target: what a label is.

    Returns:
        The labels, and the number of outputs.

    Raises:
        GraphError: for labels that `target` does not allow.
    """
    if labels.dim() != 1 + (target == "multilabel") or labels.is_floating_point() != (target == "regression"):
        got = f"{tuple(labels.shape)} {labels.dtype}"
        raise GraphError(f"labels of {name!r} (got {got}), expected {_EXPECTED[target]}")
    if target == "regression":
        numbers = labels.float()
        if not bool(torch.isfinite(numbers).all()):
            count = int((~torch.isfinite(numbers)).sum())
            raise GraphError(f"labels of {name!r} (got {count} NaN or infinite values), expected finite numbers only")
        return numbers, 1
    if target == "multilabel":
        return _checked_tasks(name, labels, num_classes), labels.shape[1]
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        bad = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise GraphError(f"labels of {name!r} (got {bad}), expected 0 to {classes - 1}")
    return labels.long(), classes


def _checked_tasks(name: str, labels: Tensor, num_tasks: int | None) -> Tensor:
    if labels.shape[1] != (num_tasks or max(labels.shape[1], 1)):
        raise GraphError(f"labels of {name!r} (got {labels.shape[1]} tasks), expected {num_tasks or 'at least 1'}")
    if int(labels.min()) < -1 or int(labels.max()) > 1:
        bad = int(labels.min()) if int(labels.min()) < -1 else int(labels.max())
        raise GraphError(f"labels of {name!r} (got {bad}), expected 0 or 1 in each task, -1 where it is unknown")
    return labels.long()


def check_known(name: str, labels: Tensor, masks: tuple[Tensor, Tensor, Tensor]) -> None:
    """Checks that every part of the split has a known label.

    Args:
        name: of the graph, for messages.
        labels: [N, T], -1 where unknown.
        masks: train, validation, test, each [N] bool.

    Raises:
        GraphError: for a part in which all labels are unknown.
    """
    for part, mask in zip(("train", "validation", "test"), masks, strict=True):
        if not bool((labels[mask] >= 0).any()):
            raise GraphError(f"{part} labels of {name!r} (got unknown ones only), expected at least one that is known")


def check_masks(name: str, masks: tuple[Tensor, Tensor, Tensor], nodes: int) -> None:
    """Checks the split.

    Args:
        name: of the graph, for messages.
        masks: train, validation, test.
        nodes: N.

    Raises:
        GraphError: for a part that is no mask [N], or empty, and for parts that overlap.
    """
    for part, mask in zip(("train", "validation", "test"), masks, strict=True):
        if mask.shape != (nodes,) or mask.dtype != torch.bool:
            got = f"{tuple(mask.shape)} {mask.dtype}"
            raise GraphError(f"{part} mask of {name!r} (got {got}), expected ({nodes},) bool")
        if not bool(mask.any()):
            raise GraphError(f"{part} mask of {name!r} (got no node), expected at least one labeled node")
    train, val, test = masks
    overlap = int(((train & val) | (train & test) | (val & test)).sum())
    if overlap:
        raise GraphError(f"split of {name!r} (got {overlap} nodes in two parts), expected disjoint parts")
