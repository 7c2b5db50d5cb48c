"""A graph on disk that is never read whole: plain .npy files, mapped, of which a batch touches its own rows.

    crow.npy [N + 1], col.npy [2P], pair.npy [2P]    all neighbors as CSR, and the number of each entry's pair
    upper_crow.npy [N + 1], upper_col.npy [P]        the pairs in lexicographic order: a pair's number is its place here
    features.npy [N, F], labels.npy                  float32; the labels as `Graph` keeps them
    train.npy, val.npy, test.npy [N]                 the split, bool
    header.json                                      counts, sizes and sha256 of all these, written last

`gebt.data.mapped.convert` writes such folders.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.data.readers.npz import npy_header
from gebt.data.readers.reading import reading
from gebt.graph.graph import SPARSE_FEATURE_DENSITY, Graph, GraphError, checked_features
from gebt.graph.metrics import METRICS, Metric, Target
from gebt.sparse.memory import check_room
from gebt.sparse.pattern import index_dtype

FORMAT, VERSION, HEADER = "gebt mapped graph", 1, "header.json"
PARTS = ("train", "val", "test")
# Numbers read at once where a whole file is gone through, and pieces after which its pages are let go of.
_PIECE, _RELEASED = 1 << 15, 64
_CONVERT = "write the folder again with 'gebt convert'"


@dataclass(frozen=True)
class MappedHeader:
    """What header.json says.

    `structure`, `fingerprint`: those of the `Graph` that `to_graph` gives. `files`: by name of the array the bytes of
    its file and the sha256 of its numbers.
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
        """The type and shape that every array must have."""
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
        """The text of header.json."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


class MappedGraph:
    """A graph of N nodes and P pairs in a folder; what is asked for is read from there (`gebt.graph.adjacency`).

    `labels`, `train_mask`, `val_mask`, `test_mask` are in memory, nothing else is. Pages that were read stay
    resident until `release`, or until the system wants the memory. Open it with `open_mapped`.
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
        """As the graph was called."""
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
        """What says how well a network does."""
        return self.header.metric

    @property
    def target(self) -> Target:
        """What a node's label is."""
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
        """The neighbors of `nodes` [T]: place in `nodes`, neighbor and number of the pair, each [K] int64."""
        wanted = nodes.numpy()
        starts = self._crow[wanted]
        counts = self._crow[wanted + 1] - starts
        row = np.repeat(np.arange(wanted.size), counts)
        entries = np.arange(row.size) + np.repeat(starts - (counts.cumsum() - counts), counts)
        col, pair = (self._arrays[name][entries].astype(np.int64) for name in ("col", "pair"))
        return torch.from_numpy(row), torch.from_numpy(col), torch.from_numpy(pair)

    def degrees(self, nodes: Tensor) -> Tensor:
        """How many neighbors each of `nodes` [T] has."""
        wanted = nodes.numpy()
        return torch.from_numpy(self._crow[wanted + 1] - self._crow[wanted])

    def neighbor(self, nodes: Tensor, which: Tensor) -> Tensor:
        """Neighbor number `which` [T] of each of `nodes` [T]; a node that has none stays."""
        linked = self.degrees(nodes) > 0
        reached = nodes.clone()
        entries = self._crow[nodes[linked].numpy()] + which[linked].numpy()
        reached[linked] = torch.from_numpy(self._arrays["col"][entries].astype(np.int64))
        return reached

    def ends(self, pair_ids: Tensor) -> Tensor:
        """The nodes [2, p] of the pairs of these numbers, the smaller first."""
        wanted = pair_ids.numpy()
        low = np.searchsorted(self._upper_crow, wanted, side="right") - 1
        return torch.from_numpy(np.stack((low, self._arrays["upper_col"][wanted].astype(np.int64))))

    def features_of(self, nodes: Tensor) -> Tensor:
        """The features [n, F] of these nodes [n]."""
        return torch.from_numpy(self._arrays["features"][nodes.numpy()])

    def release(self) -> None:
        """Lets go of all pages that were read: what is resident afterwards is what is touched from now on."""
        for opened in self._maps.values():
            opened.madvise(mmap.MADV_DONTNEED)

    def verify(self) -> None:
        """Reads everything once. Raises `GraphError` naming the first file that is not as it was written."""
        for name, (dtype, shape) in self.header.arrays().items():
            size, digest = int(np.prod(shape)) * dtype.itemsize, hashlib.sha256()
            for piece in self._pieces(np.frombuffer(self._maps[name], np.uint8, offset=len(self._maps[name]) - size)):
                digest.update(piece.data)
            if digest.hexdigest() != self.header.files[name].get("sha256"):
                raise GraphError(f"file {self.folder / name}.npy (got other numbers than were written); {_CONVERT}")
        self.release()

    def to_graph(self) -> Graph:
        """The whole graph in memory. Raises `OutOfRoomError` before more is read than is free."""
        needed = 48 * self.num_pairs + 8 * self.num_nodes * (self.num_features + 4)
        check_room(f"graph {self.name!r} in memory", needed, self.device)
        low = rows_between(self._upper_crow, 0, self.num_pairs)
        pairs = torch.from_numpy(np.stack((low, self._arrays["upper_col"].astype(np.int64))))
        features = checked_features(self.name, torch.from_numpy(self._arrays["features"].copy()), self.num_nodes)
        masks = self.train_mask, self.val_mask, self.test_mask
        given = (self.name, pairs, features, self.labels, *masks, self.num_classes)
        return Graph(*given, metric=self.metric, target=self.target)

    def digests(self) -> tuple[str, str]:
        """`structure` and `fingerprint`, computed piece by piece from what the files hold."""
        nodes, pairs = self.num_nodes, self.num_pairs
        structure, whole = hashlib.sha256(f"{nodes}".encode()), hashlib.sha256(f"torch.int64(2, {pairs})".encode())
        for start in range(0, pairs, _PIECE):
            low = rows_between(self._upper_crow, start, min(start + _PIECE, pairs)).tobytes()
            structure.update(low)
            whole.update(low)
        for piece in self._pieces(self._arrays["upper_col"]):
            high = piece.astype(np.int64).tobytes()
            structure.update(high)
            whole.update(high)
        for content in self._feature_bytes():
            whole.update(content)
        for tensor in (self.labels, self.train_mask, self.val_mask, self.test_mask):
            whole.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        self.release()
        return structure.hexdigest(), whole.hexdigest()

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
        """All of a file, of which little is resident at a time."""
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
    """The graph in `folder`; header, sizes and forms of all files are checked before any is mapped.

    `verify`: reads everything once and compares it with what was written. Raises `GraphError` naming the file that is
    missing, cut short or another's.
    """
    folder = Path(folder)
    header = _read_header(folder / HEADER)
    for name, form in header.arrays().items():
        _check_file(folder / f"{name}.npy", header.files.get(name, {}).get("bytes"), *form)
    graph = MappedGraph(folder, header)
    for name, last in (("crow", 2 * header.pairs), ("upper_crow", header.pairs)):
        _check_ends(folder / f"{name}.npy", graph._arrays[name][[0, -1]].tolist(), [0, last])
    if header.target != "regression":
        # What is not a class would be found in the middle of a training.
        least, most = (-1, 1) if header.target == "multilabel" else (0, header.classes - 1)
        _check_ends(folder / "labels.npy", [int(graph.labels.clamp(least, most).ne(graph.labels).sum())], [0])
    if verify:
        graph.verify()
    return graph


def rows_between(crow: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
    """The rows [stop - start] int64 of the entries from `start` to `stop` of a CSR structure."""
    first = int(np.searchsorted(crow, start, side="right")) - 1
    last = max(first, int(np.searchsorted(crow, stop, side="left")))
    ends = crow[first : last + 1].clip(start, stop)
    return np.repeat(np.arange(first, last, dtype=np.int64), np.diff(ends))


def _read_header(path: Path) -> MappedHeader:
    if not path.is_file():
        raise GraphError(f"folder {path.parent} (got no {HEADER}), expected a graph that 'gebt convert' wrote whole")
    with reading(path, "the header of a mapped graph"):
        found = json.loads(path.read_text(encoding="utf-8"))
        form = found.pop("format", None), found.pop("version", None)
        if form != (FORMAT, VERSION):
            raise ValueError(f"format {form}, not {(FORMAT, VERSION)}")
        header = MappedHeader(**found)
        counts = {name: getattr(header, name) for name in ("nodes", "pairs", "features", "classes")}
        if not all(type(count) is int and count >= (name != "pairs") for name, count in counts.items()):
            raise ValueError(f"{counts}")
        if header.metric not in METRICS.get(header.target, ()):
            raise ValueError(f"metric {header.metric!r} of labels {header.target!r}")
        return header


def _check_file(path: Path, size: object, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    if not path.is_file():
        raise GraphError(f"folder {path.parent} (got no {path.name}), expected the whole graph; {_CONVERT}")
    there = path.stat().st_size
    if there != size:
        raise GraphError(f"file {path} (got {there} bytes), expected the {size} that {HEADER} tells; {_CONVERT}")
    with reading(path, f"the array of {dtype} {shape} that {HEADER} tells"), path.open("rb") as file:
        found, by_column, kind = npy_header(file)
        if (found, by_column, kind) != (shape, False, dtype) or there - file.tell() != np.prod(shape) * dtype.itemsize:
            raise ValueError(f"{kind} {found} in {there} bytes")


def _check_ends(path: Path, found: list[int], expected: list[int]) -> None:
    if found != expected:
        raise GraphError(f"file {path} (got {found}), expected {expected} by {HEADER}; {_CONVERT}")


def _numpy(dtype: torch.dtype) -> np.dtype[np.generic]:
    return np.dtype(str(dtype).removeprefix("torch."))
