"""Reader of data sets for graph classification in the text format of DGCNN and GIN (Xu et al. 2019)."""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gebt.data.readers.reading import indices_mask, reading
from gebt.graph.graph import GraphError, checked_features
from gebt.sparse.pattern import Pattern, SparseMatrix

FOLDS = 10
LARGEST_FILE = 2**28
LARGEST_ARCHIVE = 2**24


@dataclass(frozen=True, eq=False)
class GraphDataset:
    """A data set for graph classification, as one graph of N nodes without links between its parts.

    Attributes:
        name: of the data set.
        pairs: [2, P] int64, as in `Graph`.
        graph_of: graph of each node [N] int64, rising.
        features: one-hot [N, F].
        labels: of the graphs [G] int64 in 0..C-1.
        num_classes: C.
        folds: for each the training and the test graphs, disjoint.
    """

    name: str
    pairs: Tensor
    graph_of: Tensor
    features: Tensor | SparseMatrix
    labels: Tensor
    num_classes: int
    folds: tuple[tuple[Tensor, Tensor], ...]

    @property
    def num_graphs(self) -> int:
        """G."""
        return self.labels.numel()

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.graph_of.numel()


def read_graph_dataset(folder: str | Path, features: Literal["tags", "degrees"] | None = None) -> GraphDataset:
    """The data set for graph classification in a folder: NAME.txt and 10fold_idx.tar.gz, NAME the name of the folder.

    NAME.txt: the number of graphs; for each a line "n label" and n lines "tag degree neighbor ...". Labels become
    0..C-1 in their order.

    Args:
        folder: the folder.
        features: "tags" or "degrees": a column for each that a node has; default degrees where all tags are the same,
            else tags, as GIN.

    Returns:
        The data set.

    Raises:
        GraphError: naming file and line, also for a neighbor that is not mutual, listed twice, or the node itself.

    Source:
        Xu et al. 2019, "How powerful are graph neural networks?".
    """
    folder = Path(folder)
    path = folder / f"{folder.name}.txt"
    with reading(path, "graphs in the format of GIN"):
        lines = _Lines(path).read()
        tags, degrees = torch.tensor(lines.tags), torch.tensor([len(near) for near in lines.near])
        by_tag = bool((tags != tags[0]).any()) if features is None else features == "tags"
        classes, labels = torch.tensor(lines.labels).unique(return_inverse=True)
        pairs = lines.pairs(degrees)
        one_hot = checked_features(folder.name, _one_hot(tags if by_tag else degrees), len(tags))
    graph_of = torch.arange(len(lines.sizes)).repeat_interleave(torch.tensor(lines.sizes))
    folds = _folds(folder / "10fold_idx.tar.gz", len(labels))
    return GraphDataset(folder.name, pairs, graph_of, one_hot, labels, len(classes), folds)


class _Lines:
    """The lines of a file, read one after the other."""

    def __init__(self, path: Path) -> None:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"{path.stat().st_size} bytes, more than {LARGEST_FILE}")
        self.path = path
        self.lines = path.read_text(encoding="ascii").splitlines()
        self.at = 0
        self.sizes: list[int] = []
        self.labels: list[int] = []
        self.tags: list[int] = []
        self.near: list[list[int]] = []
        self.line_of: list[int] = []

    def read(self) -> _Lines:
        (graphs,) = self._numbers("the number of graphs", 1)
        for _ in range(graphs):
            nodes, label = self._numbers("a number of nodes, and a label", 2)
            first = len(self.near)
            for node in range(nodes):
                self._node(node, nodes, first)
            if nodes < 1:
                raise self._wrong("at least one node")
            self.sizes.append(nodes)
            self.labels.append(label)
        if self.at < len(self.lines) or not graphs:
            self.at += 1
            raise self._wrong(f"no more than the {graphs} graphs of line 1, and at least one")
        return self

    def pairs(self, degrees: Tensor) -> Tensor:
        """Each undirected pair once, in order, after a check that each node lists those that list it."""
        nodes = len(self.near)
        source = torch.arange(nodes).repeat_interleave(degrees)
        target = torch.tensor([other for near in self.near for other in near], dtype=torch.long)
        keys, mirrored = source * nodes + target, target * nodes + source
        alone = (~torch.isin(keys, mirrored)).nonzero()
        if len(alone):
            self.at = self.line_of[int(source[alone[0]])]
            raise self._wrong("neighbors that list this node in turn")
        key = keys[source < target].sort().values
        return torch.stack((key // nodes, key % nodes))

    def _node(self, node: int, nodes: int, first: int) -> None:
        tag, degree, *near = self._numbers("tag, degree and neighbors", None)
        if len(near) != degree or len(set(near)) != degree:
            raise self._wrong(f"{degree} different neighbors after tag and degree")
        if not all(0 <= other < nodes and other != node for other in near):
            raise self._wrong(f"other nodes from 0 to {nodes - 1} than node {node} itself")
        self.tags.append(tag)
        self.near.append([first + other for other in near])
        self.line_of.append(self.at)

    def _numbers(self, what: str, count: int | None) -> list[int]:
        self.at += 1
        if self.at > len(self.lines):
            raise self._wrong(what)
        try:
            numbers = [int(word) for word in self.lines[self.at - 1].split()]
        except ValueError:
            numbers = []
        if len(numbers) != count if count else len(numbers) < 2:
            raise self._wrong(what)
        return numbers

    def _wrong(self, expected: str) -> GraphError:
        got = repr(self.lines[self.at - 1][:60]) if self.at <= len(self.lines) else "the end of the file"
        return GraphError(f"line {self.at} of {self.path} (got {got}), expected {expected}")


def _one_hot(values: Tensor) -> SparseMatrix:
    columns, column = values.unique(return_inverse=True)
    pattern, _ = Pattern.from_entries(torch.arange(len(values)), column, (len(values), len(columns)))
    return SparseMatrix(pattern, torch.ones(len(values)))


def _folds(path: Path, graphs: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """The graphs of train_idx-k.txt and test_idx-k.txt; nothing is unpacked to the disk."""
    with reading(path, f"lists of graphs of {FOLDS} folds"):
        with gzip.open(path) as stream:
            content = stream.read(LARGEST_ARCHIVE + 1)
        if len(content) > LARGEST_ARCHIVE:
            raise ValueError(f"more than {LARGEST_ARCHIVE} bytes once unpacked")
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            texts = {Path(member.name).name: _text(archive, member) for member in archive if member.isfile()}
        return tuple(_fold(texts, number, graphs) for number in range(1, FOLDS + 1))


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    stream = archive.extractfile(member)
    assert stream is not None, "only regular files are asked for"
    # A member may claim to be far larger than what is stored of it.
    return stream.read(LARGEST_ARCHIVE).decode("ascii")


def _fold(texts: dict[str, str], number: int, graphs: int) -> tuple[Tensor, Tensor]:
    parts = [
        torch.tensor([int(word) for word in texts[f"{part}_idx-{number}.txt"].split()]) for part in ("train", "test")
    ]
    masks = [indices_mask(f"fold {number}", part.numpy(), graphs) for part in parts]
    if bool((masks[0] & masks[1]).any()):
        raise ValueError(f"fold {number} with graph {int((masks[0] & masks[1]).nonzero()[0])} in training and test")
    return parts[0], parts[1]
