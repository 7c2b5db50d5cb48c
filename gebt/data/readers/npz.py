"""Reader of graphs stored as CSR arrays in an npz file (shchur/gnn-benchmark); safe reading of npy and npz."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import torch

from gebt.data.readers.reading import Array, RawGraph, csr_entries, reading, single, sparse_features
from gebt.sparse.memory import check_room

LARGEST_ARRAYS = 4 * 2**30
BLOCK = 1 << 22
NEEDED = (
    "adj_indptr", "adj_indices", "adj_shape", "attr_data", "attr_indices", "attr_indptr", "attr_shape", "labels",
)  # fmt: skip


def read_npz(path: Path) -> RawGraph:
    """The graph in an npz file; positive features become 1, as PyG's `read_npz` makes them.

    Only the members in `NEEDED` are opened, none as a pickle, and none before its declared size is checked.

    Args:
        path: the file.

    Returns:
        The graph, without a split.

    Raises:
        GraphError: for a file that is no such graph.
    """
    with reading(path, "a graph as CSR arrays in an npz file"), zipfile.ZipFile(path) as archive:
        arrays = arrays_of(archive, NEEDED)
        nodes, width = _shape(arrays["adj_shape"]), _shape(arrays["attr_shape"])
        source, target = csr_entries(arrays["adj_indptr"], arrays["adj_indices"], nodes)
        row, col = csr_entries(arrays["attr_indptr"], arrays["attr_indices"], width)
        values = single(arrays["attr_data"])
        values[values > 0] = 1
        labels = arrays["labels"]
        if labels.shape != (nodes[0],) or labels.dtype.kind not in "iu":
            raise ValueError(f"labels {labels.dtype} {labels.shape}, expected {nodes[0]} integers")
        features = sparse_features(row, col, values, width)
        return RawGraph(torch.stack((source, target)), features, torch.from_numpy(labels.astype(np.int64)))


def arrays_of(archive: zipfile.ZipFile, needed: Iterable[str], largest: int | None = None) -> dict[str, Array]:
    """The arrays of these names in an npz file, none of them a pickle.

    Args:
        archive: the file, open.
        needed: names, without ".npy".
        largest: most bytes that they may have together; default LARGEST_ARRAYS.

    Returns:
        Numbers or booleans, by name.

    Raises:
        ValueError: for too many bytes, or what is no array of numbers; also whatever else a broken or hostile file
            makes zipfile and numpy raise.
        OutOfRoomError: before the memory is full.
    """
    members = {name: archive.getinfo(f"{name}.npy") for name in needed}
    total = sum(member.file_size for member in members.values())
    largest = LARGEST_ARRAYS if largest is None else largest
    if total > largest:
        raise ValueError(f"{total} bytes once unpacked, more than {largest}")
    check_room(f"arrays of {archive.filename}", total, torch.device("cpu"))
    return {name: _array(archive, member) for name, member in members.items()}


def read_npy(path: Path) -> Array:
    """The numbers or booleans that `numpy.save` wrote; their declared size is checked before they are read.

    Args:
        path: the file.

    Returns:
        The array.
    """
    with reading(path, "an array of numbers as numpy.save writes it"), path.open("rb") as stream:
        size = path.stat().st_size
        check_room(f"array of {path}", size, torch.device("cpu"))
        return _values(stream, size, path.name)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    with archive.open(member) as stream:
        return _values(stream, member.file_size, member.filename)


def _values(stream: IO[bytes], size: int, name: str) -> Array:
    shape, by_column, dtype = npy_header(stream)
    declared = stream.tell() + math.prod(shape) * dtype.itemsize
    if dtype.kind not in "iufb" or declared != size:
        raise ValueError(f"{name} ({dtype} {shape} in {size} bytes), expected numbers")
    values = np.empty(math.prod(shape), dtype)
    content = values.view(np.uint8)
    for start in range(0, content.size, BLOCK):
        part = content[start : start + BLOCK]
        part[:] = np.frombuffer(stream.read(part.size), np.uint8, count=part.size)
    return values.reshape(shape, order="F" if by_column else "C")


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """The header of a npy file of format 1.0 or 2.0.

    Args:
        stream: the file, at its start; afterwards where the numbers begin.

    Returns:
        Shape, whether in Fortran's order, and type.

    Raises:
        ValueError: for another format.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"npy version {version}, expected (1, 0) or (2, 0)")


def _shape(sizes: Array) -> tuple[int, int]:
    rows, cols = (int(size) for size in sizes.tolist())
    return rows, cols
