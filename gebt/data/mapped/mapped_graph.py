"""Memory-mapped graphs: folders of plain .npy files, of which a batch reads only the rows it needs.

    crow.npy [N + 1], col.npy [2P], pair.npy [2P]    all neighbors as CSR, and the number of each entry's pair
    upper_crow.npy [N + 1], upper_col.npy [P]        the pairs in lexicographic order: a pair's number is its place here
    features.npy [N, F], labels.npy                  float32; the labels as `Graph` keeps them
    train.npy, val.npy, test.npy [N]                 the split, bool
    header.json                                      counts, sizes and sha256 of all these, written last

`gebt.data.mapped.convert` writes such folders.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.data.mapped.header import CONVERT, PARTS, MappedHeader, check_counts, check_file, read_header
from gebt.data.mapped.header import HEADER as HEADER
from gebt.graph.graph import SPARSE_FEATURE_DENSITY, Graph, GraphError, checked_features
from gebt.graph.metrics import Metric, Target
from gebt.sparse.memory import check_room

# Numbers read at once in a pass over a file, and pieces after which its pages are released.
_PIECE, _RELEASED = 1 << 15, 64


class MappedGraph:
    """A graph of N nodes and P pairs in a folder, read on demand (`gebt.graph.adjacency`); open it with `open_mapped`.

    `labels`, `train_mask`, `val_mask`, `test_mask` are in memory, nothing else is. Pages that were read stay
    resident until `release`, or until the system needs the memory.

    Args:
        folder: the folder.
        header: its header.
    """

    device = torch.device("cpu")
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, header: MappedHeader) -> None:
        self.folder, self.header = folder, header
        self._maps: dict[str, mmap.mmap] = {}
        self._arrays = {name: self._mapped(name) for name in header.arrays()}
        self.labels, self.train_mask, self.val_mask, self.test_mask = (
            torch.from_numpy(self._arrays.pop(name).copy()) for name in ("labels", *PARTS)
        )
        self._crow, self._upper_crow = self._arrays["crow"], self._arrays["upper_crow"]

    @property
    def name(self) -> str:
        """Name of the graph."""
        return self.header.name

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.header.nodes

    @property
    def num_pairs(self) -> int:
        """P, undirected edges without self-loops."""
        return self.header.pairs

    @property
    def num_features(self) -> int:
        """F."""
        return self.header.features

    @property
    def num_classes(self) -> int:
        """C."""
        return self.header.classes

    @property
    def metric(self) -> Metric:
        """What is measured."""
        return self.header.metric

    @property
    def target(self) -> Target:
        """Kind of label."""
        return self.header.target

    @property
    def structure(self) -> str:
        """`gebt.graph.graph.structure_digest` of its pairs."""
        return self.header.structure

    @property
    def fingerprint(self) -> str:
        """`Graph.fingerprint` of `to_graph()`."""
        return self.header.fingerprint

    def rows(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The neighbors of nodes.

        Args:
            nodes: [T].

        Returns:
            Place in `nodes`, neighbor and number of the pair, each [K] int64.
        """
        wanted = nodes.numpy()
        starts = self._crow[wanted]
        counts = self._crow[wanted + 1] - starts
        row = np.repeat(np.arange(wanted.size), counts)
        entries = np.arange(row.size) + np.repeat(starts - (counts.cumsum() - counts), counts)
        col, pair = (self._arrays[name][entries].astype(np.int64) for name in ("col", "pair"))
        return torch.from_numpy(row), torch.from_numpy(col), torch.from_numpy(pair)

    def degrees(self, nodes: Tensor) -> Tensor:
        """How many neighbors nodes have.

        Args:
            nodes: [T].

        Returns:
            [T] int64.
        """
        wanted = nodes.numpy()
        return torch.from_numpy(self._crow[wanted + 1] - self._crow[wanted])

    def neighbor(self, nodes: Tensor, which: Tensor) -> Tensor:
        """One neighbor of each node; a node that has none stays.

        Args:
            nodes: [T].
            which: number of the neighbor [T], below the degree.

        Returns:
            Nodes [T].
        """
        linked = self.degrees(nodes) > 0
        reached = nodes.clone()
        entries = self._crow[nodes[linked].numpy()] + which[linked].numpy()
        reached[linked] = torch.from_numpy(self._arrays["col"][entries].astype(np.int64))
        return reached

    def ends(self, pair_ids: Tensor) -> Tensor:
        """The nodes of pairs.

        Args:
            pair_ids: numbers of the pairs [p].

        Returns:
            [2, p], the smaller node first.
        """
        wanted = pair_ids.numpy()
        low = np.searchsorted(self._upper_crow, wanted, side="right") - 1
        return torch.from_numpy(np.stack((low, self._arrays["upper_col"][wanted].astype(np.int64))))

    def features_of(self, nodes: Tensor) -> Tensor:
        """The features of nodes.

        Args:
            nodes: [n].

        Returns:
            [n, F] float32.
        """
        return torch.from_numpy(self._arrays["features"][nodes.numpy()])

    def release(self) -> None:
        """Releases all pages that were read: what is resident afterwards is what is read from now on."""
        for opened in self._maps.values():
            opened.madvise(mmap.MADV_DONTNEED)

    def verify(self) -> None:
        """Reads everything once and compares it with the sha256 in the header.

        Raises:
            GraphError: naming the first file that is not as it was written.
        """
        for name, (dtype, shape) in self.header.arrays().items():
            size, digest = int(np.prod(shape)) * dtype.itemsize, hashlib.sha256()
            for piece in self._pieces(np.frombuffer(self._maps[name], np.uint8, offset=len(self._maps[name]) - size)):
                digest.update(piece.data)
            if digest.hexdigest() != self.header.files[name].get("sha256"):
                raise GraphError(f"file {self.folder / name}.npy (got other numbers than were written); {CONVERT}")
        self.release()

    def to_graph(self) -> Graph:
        """The full graph in memory.

        Returns:
            The graph, of the same fingerprint.

        Raises:
            OutOfRoomError: before more is read than is free.
        """
        needed = 48 * self.num_pairs + 8 * self.num_nodes * (self.num_features + 4)
        check_room(f"graph {self.name!r} in memory", needed, self.device)
        low = rows_between(self._upper_crow, 0, self.num_pairs)
        pairs = torch.from_numpy(np.stack((low, self._arrays["upper_col"].astype(np.int64))))
        features = checked_features(self.name, torch.from_numpy(self._arrays["features"].copy()), self.num_nodes)
        masks = self.train_mask, self.val_mask, self.test_mask
        parts = (self.name, pairs, features, self.labels, *masks, self.num_classes)
        return Graph(*parts, metric=self.metric, target=self.target)

    def digests(self) -> tuple[str, str]:
        """Digests of the files' content, computed piece by piece.

        Returns:
            `structure` and `fingerprint`.
        """
        nodes, pairs = self.num_nodes, self.num_pairs
        structure = hashlib.sha256(f"{nodes}".encode())
        fingerprint = hashlib.sha256(f"torch.int64(2, {pairs})".encode())
        for start in range(0, pairs, _PIECE):
            low = rows_between(self._upper_crow, start, min(start + _PIECE, pairs)).tobytes()
            structure.update(low)
            fingerprint.update(low)
        for piece in self._pieces(self._arrays["upper_col"]):
            high = piece.astype(np.int64).tobytes()
            structure.update(high)
            fingerprint.update(high)
        for content in self._feature_bytes():
            fingerprint.update(content)
        for tensor in (self.labels, self.train_mask, self.val_mask, self.test_mask):
            fingerprint.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        self.release()
        return structure.hexdigest(), fingerprint.hexdigest()

    def _feature_bytes(self) -> Iterator[bytes]:
        """What `Graph.fingerprint` hashes of the features, which `Graph` keeps as CSR where few are not zero."""
        nodes, columns = self.num_nodes, self.num_features
        counts = np.concatenate([np.count_nonzero(piece, axis=1) for piece in self._feature_rows()])
        stored = int(counts.sum())
        if stored > SPARSE_FEATURE_DENSITY * nodes * columns:
            yield f"torch.float32{(nodes, columns)}".encode()
            yield from (piece.tobytes() for piece in self._feature_rows())
            return
        yield f"torch.int64{(nodes + 1,)}".encode()
        yield np.concatenate((np.zeros(1, np.int64), counts.cumsum(dtype=np.int64))).tobytes()
        yield f"torch.int64{(stored,)}".encode()
        yield from (piece.nonzero()[1].astype(np.int64).tobytes() for piece in self._feature_rows())
        yield f"torch.float32{(stored,)}".encode()
        yield from (piece[piece != 0].tobytes() for piece in self._feature_rows())

    def _feature_rows(self) -> Iterator[NDArray[Any]]:
        yield from self._pieces(self._arrays["features"], max(1, _PIECE // self.num_features))

    def _pieces(self, values: NDArray[Any], rows: int = _PIECE) -> Iterator[NDArray[Any]]:
        """All rows of a file, few of them resident at a time."""
        for number, start in enumerate(range(0, len(values), rows)):
            yield values[start : start + rows]
            if number % _RELEASED == _RELEASED - 1:
                self.release()

    def _mapped(self, name: str) -> NDArray[Any]:
        path, (dtype, shape) = self.folder / f"{name}.npy", self.header.arrays()[name]
        with path.open("rb") as file:
            opened = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._maps[name] = opened
        count = int(np.prod(shape))
        return np.frombuffer(opened, dtype, count, len(opened) - count * dtype.itemsize).reshape(shape)


def open_mapped(folder: str | Path, *, verify: bool = False) -> MappedGraph:
    """The mapped graph in a folder; header, sizes and forms of all files are checked before any is mapped.

    Args:
        folder: the folder, written by `gebt.data.mapped.convert`.
        verify: reads everything once and compares it with what was written.

    Returns:
        The graph.

    Raises:
        GraphError: naming the file that is missing, cut short or another's.
    """
    folder = Path(folder)
    header = read_header(folder / HEADER)
    for name, form in header.arrays().items():
        check_file(folder / f"{name}.npy", header.files.get(name, {}).get("bytes"), *form)
    graph = MappedGraph(folder, header)
    for name, last in (("crow", 2 * header.pairs), ("upper_crow", header.pairs)):
        check_counts(folder / f"{name}.npy", graph._arrays[name][[0, -1]].tolist(), [0, last])
    if header.target != "regression":
        # A label that is no class would fail in the middle of a training.
        least, most = (-1, 1) if header.target == "multilabel" else (0, header.classes - 1)
        check_counts(folder / "labels.npy", [int(graph.labels.clamp(least, most).ne(graph.labels).sum())], [0])
    if verify:
        graph.verify()
    return graph


def rows_between(crow: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """The rows of a range of entries of a CSR structure.

    Args:
        crow: row starts [rows + 1].
        start: first entry.
        stop: entry after the last one.

    Returns:
        [stop - start] int64.

    Example:
        >>> rows_between(np.array([0, 2, 2, 5]), 1, 4).tolist()
        [0, 2, 2]
    """
    first = int(np.searchsorted(crow, start, side="right")) - 1
    last = max(first, int(np.searchsorted(crow, stop, side="left")))
    ends = crow[first : last + 1].clip(start, stop)
    return np.repeat(np.arange(first, last, dtype=np.int64), np.diff(ends))
