"""Custom graphs as folders of plain files, and the writer of such folders.

    edges.npy | edges.csv | edges.parquet    two columns of integers, a link a row; direction and repeats do not count
    features.npy | features.npz              numbers [N, F]; .npz: a CSR matrix as scipy.sparse.save_npz writes it
    labels.npy | labels.csv                  a class 0..C-1 for each node; -1, which is unknown, only outside the split;
                                             or integers [N, T]: 0 or 1 in each of T tasks, -1 where it is unknown;
                                             or decimals: a number for each node, NaN (in .npy) only outside the split
    splits.npz                               arrays train, val, test: numbers of nodes, or a boolean for each node
    splits/{train,val,test}.npy|csv|txt      the same as three files, numbers of nodes in a text

Nodes are numbered from 0. Texts have no header. `load_graph("path/to/folder")` reads it.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.data.mapped.streams import GraphStream, dense_rows, pieces
from gebt.data.readers.npz import arrays_of, npy_header, read_npy
from gebt.data.readers.reading import (
    Array,
    RawGraph,
    check_nodes,
    csr_entries,
    indices_mask,
    known_labels,
    reading,
    single,
    sparse_features,
)
from gebt.data.readers.tables import count_lines, read_numbers, read_table, table_pieces
from gebt.graph.graph import Graph, GraphError
from gebt.graph.metrics import METRICS, Target
from gebt.sparse.memory import check_room
from gebt.sparse.pattern import INT32_LIMIT, SparseMatrix

PARTS = ("train", "val", "test")
INSTALL = "pip install 'gebt[parquet]'"


def read_folder(folder: Path) -> RawGraph:
    """The custom graph in a folder, laid out as this module says; no pickle is opened.

    Args:
        folder: the folder.

    Returns:
        The graph with its split.

    Raises:
        GraphError: naming the file, and the row where there is one, for a file that is missing or there in two forms,
            arrays that do not fit each other, nodes outside the graph, and parts that overlap.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     np.save(folder / "edges.npy", np.array([[0, 1], [1, 2]]))
        ...     np.save(folder / "features.npy", np.ones((3, 2)))
        ...     np.save(folder / "labels.npy", np.array([0, 1, 1]))
        ...     np.savez(folder / "splits.npz", train=[0], val=[1], test=[2])
        ...     graph = read_folder(folder)
        >>> graph.edge_index.tolist(), graph.labels.tolist(), graph.target
        ([[0, 1], [1, 2]], [0, 1, 1], 'class')
    """
    labels, masks, target = _labels_and_masks(folder)
    nodes = labels.shape[0]
    return RawGraph(_edges(folder, nodes), _features(folder, nodes), labels, masks, target)


def stream_folder(folder: Path) -> GraphStream:
    """The custom graph in a folder, its edges and dense features read a piece at a time.

    Edges as .npy and features as .npy are mapped, texts and parquet read in blocks; features as .npz, labels and split
    are read at once.

    Args:
        folder: the folder.

    Returns:
        The stream.

    Raises:
        GraphError: as `read_folder`, for edges and features when they are reached.
    """
    labels, masks, target = _labels_and_masks(folder)
    nodes = labels.shape[0]
    edges, count = _edge_pieces(_the(folder, "edges", ".npy", ".csv", ".parquet"))
    path = _the(folder, "features", ".npy", ".npz")
    if path.suffix == ".npz":
        matrix = _features(folder, nodes)
        assert isinstance(matrix, SparseMatrix)
        columns, features = matrix.shape[1], lambda rows: dense_rows(matrix, rows)
    else:
        values = _mapped(path, f"numbers, one row for each of {nodes} nodes")
        if values.ndim != 2 or len(values) != nodes or not values.size:
            raise GraphError(f"file {path} (got shape {values.shape}), expected a row for each of {nodes} nodes")
        columns, features = values.shape[1], lambda rows: pieces(values, rows)
    name = folder.resolve().name
    return GraphStream(
        name,
        nodes,
        count,
        columns,
        lambda rows, _: edges(rows),
        features,
        labels,
        masks,
        metric=METRICS[target][0],
        target=target,
    )


# By kind of number and number of dimensions of the labels.
_KINDS: dict[tuple[str, int], Target] = {
    ("i", 1): "class", ("u", 1): "class", ("i", 2): "multilabel", ("u", 2): "multilabel", ("f", 1): "regression",
}  # fmt: skip


def save_graph_folder(folder: str | Path, graph: Graph) -> Path:
    """Writes a graph into a new folder, from which `load_graph` reads a graph of the same fingerprint.

    The metric is not stored: it is the first of `METRICS[target]` again.

    Args:
        folder: a new or an empty folder.
        graph: the graph.

    Returns:
        The folder.

    Raises:
        GraphError: for a folder with files, and for one task of 0 and 1.

    Example:
        >>> import tempfile
        >>> from gebt.data import SurrogateSpec, generate, load_graph
        >>> graph = generate(SurrogateSpec(nodes=20, pairs=30, features=4, classes=2))
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = save_graph_folder(Path(name) / "toy", graph)
        ...     back = load_graph(str(folder))
        ...     sorted(path.name for path in folder.iterdir())
        ['edges.npy', 'features.npy', 'labels.npy', 'splits.npz']
        >>> back.name, back.fingerprint == graph.fingerprint
        ('toy', True)
    """
    folder = Path(folder)
    if graph.target == "multilabel" and graph.num_classes == 1:
        raise GraphError(f"graph {graph.name!r} (got one task), expected 2 or more; write its labels as classes")
    if folder.exists() and any(folder.iterdir()):
        raise GraphError(f"folder {folder} (got one with files in it), expected a new or an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    graph = graph.to("cpu")
    np.save(folder / "edges.npy", graph.pairs.t().numpy())
    if isinstance(graph.features, SparseMatrix):
        pattern = graph.features.pattern
        np.savez_compressed(
            folder / "features.npz",
            data=graph.features.values.numpy(),
            indices=pattern.col.numpy(),
            indptr=pattern.crow.numpy(),
            shape=np.array(pattern.shape),
            format=np.array(b"csr"),
        )
    else:
        np.save(folder / "features.npy", graph.features.numpy())
    np.save(folder / "labels.npy", graph.labels.numpy())
    masks = zip(PARTS, (graph.train_mask, graph.val_mask, graph.test_mask), strict=True)
    np.savez_compressed(folder / "splits.npz", **{part: mask.numpy() for part, mask in masks})  # type: ignore[arg-type]
    return folder


def _labels_and_masks(folder: Path) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Target]:
    path = _the(folder, "labels", ".npy", ".csv")
    text = path.suffix == ".csv"
    stored = _flat(read_numbers(path, most=path.stat().st_size) if text else read_npy(path))
    nodes, target = len(stored), _KINDS.get((stored.dtype.kind, stored.ndim))
    if not 0 < nodes <= INT32_LIMIT or target is None:
        raise GraphError(
            f"file {path} (got {stored.dtype} {stored.shape}), expected for each node an integer, a row of 0, 1 and "
            "-1, or a decimal number"
        )
    masks = _masks(folder, nodes)
    labels = torch.from_numpy(single(stored) if target == "regression" else stored.astype(np.int64))
    if target == "multilabel":
        return labels, masks, target
    with reading(path, "a label for each node of the split"):
        return known_labels(labels, masks), masks, target


def _the(folder: Path, stem: str, *endings: str) -> Path:
    """The one file of that name, whatever its ending."""
    there = [folder / f"{stem}{ending}" for ending in endings if (folder / f"{stem}{ending}").is_file()]
    if len(there) != 1:
        got = " and ".join(path.name for path in there) or "none"
        names = " or ".join(f"{stem}{ending}" for ending in endings)
        raise GraphError(
            f"folder {folder} (got {got}), expected one of {names}; see gebt.data.readers.folder for the layout"
        )
    return there[0]


def _text(path: Path, cols: int) -> NDArray[Any]:
    # A row takes two bytes at least.
    return read_table(path, np.int64, cols=cols, most=path.stat().st_size)


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _column(path: Path) -> NDArray[Any]:
    return _flat(read_npy(path) if path.suffix == ".npy" else _text(path, 1))


def _edges(folder: Path, nodes: int) -> Tensor:
    path = _the(folder, "edges", ".npy", ".csv", ".parquet")
    read = {".npy": read_npy, ".csv": lambda path: _text(path, 2), ".parquet": _parquet}[path.suffix]
    edges = read(path)
    with reading(path, "two columns with the numbers of nodes"):
        if edges.ndim != 2 or edges.shape[1] != 2:
            raise ValueError(f"an array of shape {edges.shape}")
        check_nodes("edges", edges, nodes)
        return torch.from_numpy(edges.astype(np.int64, copy=False)).t()


def _edge_pieces(path: Path) -> tuple[Callable[[int], Iterator[Array]], int]:
    """A function that yields the edges in pieces of so many rows, and how many rows there are."""
    if path.suffix == ".npy":
        values = _mapped(path, "two columns with the numbers of nodes")
        if values.ndim != 2 or values.shape[1] != 2 or values.dtype.kind not in "iu":
            raise GraphError(f"file {path} (got {values.dtype} {values.shape}), expected two columns of integers")
        return lambda rows: pieces(values, rows), len(values)
    if path.suffix == ".csv":
        return lambda rows: table_pieces(path, np.int64, cols=2, rows=rows), count_lines(path)
    with _parquet_file(path) as stream:
        return lambda rows: _parquet_pieces(path, rows), stream.metadata.num_rows


def _mapped(path: Path, expected: str) -> Array:
    with reading(path, expected), path.open("rb") as stream:
        shape, by_column, dtype = npy_header(stream)
        if dtype.kind not in "iufb" or stream.tell() + math.prod(shape) * dtype.itemsize != path.stat().st_size:
            raise ValueError(f"{dtype} {shape} in {path.stat().st_size} bytes")
        if not math.prod(shape):
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", stream.tell(), shape, "F" if by_column else "C")


@contextmanager
def _parquet_file(path: Path) -> Iterator[Any]:
    """An open file of two columns of integers."""
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError as error:
        raise GraphError(f"file {path} (got no pyarrow), expected it installed to read parquet; {INSTALL}") from error
    with reading(path, "two columns of integers in parquet"):
        try:
            with parquet.ParquetFile(path) as stream:
                columns = list(stream.schema_arrow)
                if len(columns) != 2 or not all(types.is_integer(column.type) for column in columns):
                    raise ValueError(f"columns {', '.join(f'{column.name} {column.type}' for column in columns)}")
                yield stream
        except ArrowException as error:
            raise ValueError(str(error)) from error


def _parquet(path: Path) -> NDArray[Any]:
    with _parquet_file(path) as stream:
        # The table, its columns as int64, and both side by side.
        check_room(f"edges of {path}", 48 * stream.metadata.num_rows, torch.device("cpu"))
        return _side_by_side(stream.read())


def _parquet_pieces(path: Path, rows: int) -> Iterator[Array]:
    with _parquet_file(path) as stream:
        yield from (_side_by_side(batch) for batch in stream.iter_batches(rows))


def _side_by_side(table: Any) -> NDArray[Any]:
    if any(column.null_count for column in table.columns):
        raise ValueError("empty fields")
    return np.stack([column.to_numpy(zero_copy_only=False).astype(np.int64) for column in table.columns], 1)


def _features(folder: Path, nodes: int) -> Tensor | SparseMatrix:
    path = _the(folder, "features", ".npy", ".npz")
    if path.suffix == ".npy":
        values = read_npy(path)
        with reading(path, f"numbers, one row for each of {nodes} nodes"):
            if values.ndim != 2 or len(values) != nodes or not values.size:
                raise ValueError(f"an array of shape {values.shape}")
            stored = single(values)
            sound = np.isfinite(stored).all(1)
            if not sound.all():
                raise ValueError(f"NaN or infinite numbers in row {int(np.argmin(sound)) + 1}")
            return torch.from_numpy(stored)
    with reading(path, f"a CSR matrix of {nodes} rows"), zipfile.ZipFile(path) as archive:
        _check_form(archive)
        arrays = arrays_of(archive, ("data", "indices", "indptr", "shape"))
        rows, cols = (int(size) for size in arrays["shape"].tolist())
        if rows != nodes:
            raise ValueError(f"a matrix of {rows} rows")
        row, col = csr_entries(arrays["indptr"], arrays["indices"], (rows, cols))
        values = arrays["data"]
        sound = np.isfinite(single(values))
        if values.shape == tuple(row.shape) and not sound.all():
            raise ValueError(f"NaN or infinite numbers in row {int(row[int(np.argmin(sound))]) + 1}")
        return sparse_features(row, col, values, (rows, cols))


def _check_form(archive: zipfile.ZipFile) -> None:
    """A square matrix by columns would otherwise be read as its transpose."""
    if "format.npy" not in archive.namelist():
        return
    with archive.open("format.npy") as stream:
        form = stream.read(1024)[-3:]
    if form != b"csr":
        raise ValueError(f"a matrix in the form {form.decode('ascii', 'replace')}")


def _masks(folder: Path, nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    path = folder / "splits.npz"
    if path.is_file() == (folder / "splits").is_dir():
        raise GraphError(f"folder {folder} (got both or none), expected splits.npz or splits/ with {', '.join(PARTS)}")
    if path.is_file():
        with reading(path, f"the arrays {', '.join(PARTS)}"), zipfile.ZipFile(path) as archive:
            parts = arrays_of(archive, PARTS)
    else:
        path = folder / "splits"
        parts = {part: _column(_the(path, part, ".npy", ".csv", ".txt")) for part in PARTS}
    with reading(path, "three parts of the nodes"):
        train, val, test = (_mask(part, parts[part], nodes) for part in PARTS)
        twice = ((train & val) | (train & test) | (val & test)).nonzero()
        if len(twice):
            raise ValueError(f"{len(twice)} nodes in two parts, the first of them {int(twice[0])}")
        return train, val, test


def _mask(part: str, values: NDArray[Any], nodes: int) -> Tensor:
    if values.dtype == bool:
        if values.shape != (nodes,):
            raise ValueError(f"{part} split of shape {values.shape}, expected ({nodes},)")
        return torch.from_numpy(values)
    return indices_mask(part, values, nodes)
