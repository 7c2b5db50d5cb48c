"""Node sets of OGB read in pieces: texts as they are unpacked, members of an npz, which cannot be mapped, likewise."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gebt.data.mapped.streams import GraphStream
from gebt.data.readers.npz import BLOCK, arrays_of, npy_header
from gebt.data.readers.ogb import (
    MOST_EDGES,
    PARTS,
    binary_labels,
    check_files,
    checked_count,
    declared_count,
    labels_in_range,
    ogb_set,
    split_part,
)
from gebt.data.readers.ogb_sets import OGB, OgbSet
from gebt.data.readers.reading import Array, indices_mask, known_labels, reading
from gebt.data.readers.tables import read_table, table_pieces
from gebt.graph.graph import GraphError
from gebt.sparse.pattern import INT32_LIMIT


def stream_ogb(folder: Path, info: OgbSet | str | None = None) -> GraphStream:
    """The node set in a folder of OGB's layout, its edges and features read a piece at a time.

    Labels and split are read at once.

    Args:
        folder: the folder, with `raw` and `split` in it.
        info: a name of `OGB` or a description; default by the folder's name.

    Returns:
        The stream.

    Raises:
        GraphError: for a set without features and one label a node, and as `read_ogb`, for edges and features when
            they are reached.
    """
    info = _set_of(folder, info)
    if info.links or info.tasks != 1 or not info.features:
        got = f"{info.tasks} tasks, {info.features} features"
        raise GraphError(f"set {info.name!r} (got {got}), expected features and one label a node")
    check_files(folder, info)
    raw = folder / "raw"
    nodes, count = _binary_counts(raw / "data.npz", info) if info.binary else _text_counts(raw, info)
    labels, masks = _labels_and_masks(folder, info, nodes)

    def edges(rows: int, scratch: Path) -> Iterator[Array]:
        return _member_edges(raw / "data.npz", rows, count, scratch) if info.binary else _text_edges(raw, rows, count)

    def features(rows: int) -> Iterator[Array]:
        if info.binary:
            return _member_rows(raw / "data.npz", "node_feat", (nodes, info.features), rows)
        return table_pieces(raw / "node-feat.csv.gz", np.float32, cols=info.features, rows=rows)

    # The member of an npz names all first nodes, then all second ones.
    space = 16 * count + 1024 if info.binary else 0
    return GraphStream(
        info.name, nodes, count, info.features, edges, features, labels, masks, info.classes, scratch_bytes=space
    )


def _set_of(folder: Path, info: OgbSet | str | None) -> OgbSet:
    if isinstance(info, OgbSet):
        return info
    if info is not None:
        return ogb_set(info)
    name = folder.resolve().name.replace("_", "-")
    matches = [known for known in (name, f"ogbn-{name}", f"ogbn-{name.removesuffix('-bin')}") if known in OGB]
    if not matches:
        raise GraphError(f"folder {folder} (got one of OGB's layout), expected to be told which set it is (--ogb NAME)")
    return OGB[matches[0]]


def _text_counts(raw: Path, info: OgbSet) -> tuple[int, int]:
    nodes = declared_count(raw / "num-node-list.csv.gz", "nodes", info.nodes, INT32_LIMIT)
    return nodes, declared_count(raw / "num-edge-list.csv.gz", "edges", info.edges, MOST_EDGES)


def _binary_counts(path: Path, info: OgbSet) -> tuple[int, int]:
    names = ("num_nodes_list", "num_edges_list")
    with reading(path, f"the arrays {', '.join(names)}"), zipfile.ZipFile(path) as archive:
        sizes = arrays_of(archive, names, 4096)
    nodes = checked_count(path, "nodes", sizes["num_nodes_list"], info.nodes, INT32_LIMIT)
    return nodes, checked_count(path, "edges", sizes["num_edges_list"], info.edges, MOST_EDGES)


def _labels_and_masks(folder: Path, info: OgbSet, nodes: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    at = folder / "split" / info.split
    with reading(at, "a split"):
        train, val, test = (
            indices_mask(part, split_part(at / f"{part}.csv.gz", nodes).numpy(), nodes) for part in PARTS
        )
    path = folder / "raw" / ("node-label.npz" if info.binary else "node-label.csv.gz")
    if info.binary:
        all_labels = binary_labels(path, nodes, info)
    else:
        all_labels = labels_in_range(path, read_table(path, np.int64, cols=1, rows=nodes, most=nodes), info)
    with reading(path, "labels of all nodes of the split"):
        return known_labels(torch.from_numpy(all_labels[:, 0]), (train, val, test)), (train, val, test)


def _text_edges(raw: Path, rows: int, count: int) -> Iterator[Array]:
    path, seen = raw / "edge.csv.gz", 0
    for piece in table_pieces(path, np.int64, cols=2, rows=rows):
        seen += len(piece)
        if seen > count:
            break
        yield piece
    if seen != count:
        raise GraphError(f"file {path} (got {'more' if seen > count else seen} lines), expected {count}")


def _member_edges(path: Path, rows: int, count: int, scratch: Path) -> Iterator[Array]:
    shape = (2, count)
    dtype, by_column = _form(path, "edge_index", shape)
    with (scratch / "edges").open("wb") as file:
        for content in _member_bytes(path, "edge_index", shape, BLOCK):
            file.write(content)
    if count:
        stored = np.memmap(scratch / "edges", dtype, "r", 0, shape, "F" if by_column else "C")
        for start in range(0, count, rows):
            yield np.stack((stored[0, start : start + rows], stored[1, start : start + rows]), 1)


def _member_rows(path: Path, name: str, shape: tuple[int, int], rows: int) -> Iterator[Array]:
    dtype, by_column = _form(path, name, shape)
    if by_column:
        raise GraphError(f"array {name} of {path} (got Fortran's order), expected one row after the other")
    for content in _member_bytes(path, name, shape, rows * shape[1] * dtype.itemsize):
        yield np.frombuffer(content, dtype).reshape(-1, shape[1])


def _form(path: Path, name: str, shape: tuple[int, int]) -> tuple[np.dtype[np.generic], bool]:
    """The type of an array of that shape in an npz, and whether it is in Fortran's order."""
    with reading(path, f"the array {name}"), zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{name}.npy")
        with archive.open(info) as stream:
            stored, by_column, dtype = npy_header(stream)
            size = stream.tell() + math.prod(shape) * dtype.itemsize
        if stored != shape or info.file_size != size or dtype.kind not in ("iu" if name == "edge_index" else "iuf"):
            raise ValueError(f"{name} of {dtype} {stored} in {info.file_size} bytes, not {shape}")
        return dtype, by_column


def _member_bytes(path: Path, name: str, shape: tuple[int, int], size: int) -> Iterator[bytes]:
    """The numbers of an array in pieces of `size` bytes; what the caller does with a piece is outside of `reading`."""
    with reading(path, f"the array {name}"), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
        _, _, dtype = npy_header(stream)
        remaining = math.prod(shape) * dtype.itemsize
        while remaining:
            content = stream.read(min(size, remaining))
            if not content:
                raise ValueError(f"{remaining} bytes less than declared")
            remaining -= len(content)
            yield content
