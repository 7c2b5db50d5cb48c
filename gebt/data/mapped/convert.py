"""Conversion of graphs of any size to mapped folders (`gebt.data.mapped.mapped_graph`), in bounded memory.

Pairs are sorted on disk: each edge becomes the key low * N + high, keys go to files by ranges
(`gebt.data.mapped.external_sort`), and each file, sorted and without repeats, gives the next run of pairs. The entries
below the diagonal then go to files by their rows; merged with those above they give the full CSR. Besides `memory` a
few numbers a node are in memory.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gebt._files import write_atomically
from gebt.data.graphs import load_graph
from gebt.data.mapped.external_sort import Buckets, different, distinct_keys, key_buckets
from gebt.data.mapped.header import FORMAT, HEADER, PARTS, MappedHeader
from gebt.data.mapped.mapped_graph import MappedGraph, rows_between
from gebt.data.mapped.npy_writer import NpyWriter
from gebt.data.mapped.streams import GraphStream, stream_graph
from gebt.data.readers.folder import stream_folder
from gebt.data.readers.ogb_sets import OgbSet
from gebt.data.readers.ogb_stream import stream_ogb
from gebt.graph.graph import GraphError, check_known, check_masks, checked_labels
from gebt.sparse.pattern import INT32_LIMIT

Values = NDArray[Any]
Progress = Callable[[str, int, int], None]
LEAST_MEMORY = 1 << 16
# Peak memory, measured: bytes for each row, key or entry that a step processes at once.
_BYTES_A_ROW, _BYTES_A_KEY, _BYTES_AN_ENTRY = 96, 64, 160
_LOWER = np.dtype([("row", np.int32), ("col", np.int32), ("pair", np.int64)])
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    memory: int = 2**30,
    force: bool = False,
    ogb: OgbSet | str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes a graph into a new mapped folder, which `open_mapped` opens; one-way edges count both ways.

    Args:
        source: a folder as `gebt.data.readers.folder` says or as OGB lays it out, or a data set by name; of folders
            little is in memory at a time.
        target: the new folder.
        memory: as in `convert_stream`.
        force: as in `convert_stream`.
        ogb: which of OGB's sets it is, where the folder's name does not tell.
        progress: as in `convert_stream`.

    Returns:
        The target.

    Raises:
        GraphError: as `convert_stream`, and for a source that cannot be read.

    Example:
        >>> import tempfile
        >>> from gebt.data import load_graph, open_mapped
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mapped = open_mapped(convert("digits", Path(folder) / "digits"))
        ...     mapped.num_pairs, mapped.fingerprint == load_graph("digits").fingerprint
        (9929, True)
    """
    folder = Path(source).expanduser()
    if (folder / "raw").is_dir():
        stream = stream_ogb(folder, ogb)
    elif folder.is_dir():
        stream = stream_folder(folder)
    else:
        stream = stream_graph(load_graph(str(source)))
    return convert_stream(stream, target, memory=memory, force=force, progress=progress)


def convert_stream(
    stream: GraphStream,
    target: str | Path,
    *,
    memory: int = 2**30,
    force: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Writes a graph that comes in pieces into a new mapped folder.

    The target comes into being complete or not at all; a killed conversion leaves a hidden folder next to it, which may
    be deleted.

    Args:
        stream: the graph.
        target: the new folder.
        memory: bytes to work in, besides 64 a node; the result does not depend on it.
        force: replaces a mapped graph that is there.
        progress: `progress(step, done, all)` is called between pieces.

    Returns:
        The target.

    Raises:
        GraphError: for a target that is there, too little disk space, before anything is written or when it runs out
            on the way, and for what `canonical_graph` refuses.
    """
    target = Path(target)
    if memory < LEAST_MEMORY:
        raise GraphError(f"memory (got {memory} bytes), expected at least {LEAST_MEMORY}")
    header = _checked(stream)
    _check_target(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(target.parent, _needed(stream))
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        with _disk_errors(target):
            _Conversion(stream, header, part, memory, progress or (lambda *_: None)).run()
            part.chmod(0o755)
            _publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


class _Conversion:
    """One conversion, step by step; every step leaves files, and counts of N numbers in memory."""

    def __init__(
        self, stream: GraphStream, header: MappedHeader, folder: Path, memory: int, progress: Progress
    ) -> None:
        self.stream, self.header, self.folder, self.memory, self.progress = stream, header, folder, memory, progress
        self.labels, _ = checked_labels(stream.name, stream.labels, stream.num_classes, stream.target)
        self.scratch = folder / "scratch"
        self.above, self.below = (np.zeros(stream.num_nodes, np.int64) for _ in "ab")
        self.files: dict[str, str] = {}

    def run(self) -> None:
        """Runs all steps."""
        self.scratch.mkdir()
        self._write_features()
        columns = zip(("labels", *PARTS), (self.labels, *self.stream.masks), strict=True)
        for name, column in columns:
            self._write(name, iter((column.numpy(),)))
        self._write("upper_col", self._upper())
        self.header = replace(self.header, pairs=int(self.above.sum()))
        upper, crow = (
            np.concatenate((np.zeros(1, np.int64), c.cumsum())) for c in (self.above, self.above + self.below)
        )
        self._write("upper_crow", iter((upper,)))
        self._write("crow", iter((crow,)))
        self._write_entries(upper, crow)
        shutil.rmtree(self.scratch)
        self._write_header()

    def _writer(self, name: str) -> NpyWriter:
        dtype, shape = self.header.arrays()[name]
        return NpyWriter(self.folder / f"{name}.npy", dtype, *shape[1:])

    def _write(self, name: str, values: Iterator[Values]) -> None:
        with self._writer(name) as writer:
            for piece in values:
                writer.append(piece)
        self.files[name] = writer.digest.hexdigest()

    def _write_features(self) -> None:
        nodes = self.stream.num_nodes
        with self._writer("features") as writer:
            for piece in self.stream.features(max(1, self.memory // (16 * self.stream.num_features))):
                with np.errstate(over="ignore"):
                    values = piece.astype(np.float32, copy=False)
                sound = np.isfinite(values).all(1)
                if not sound.all():
                    row = writer.rows + int(np.argmin(sound))
                    raise GraphError(
                        f"features of {self.stream.name!r} (got NaN or infinite values in row {row + 1}), "
                        "expected finite numbers only"
                    )
                writer.append(values)
                self.progress("features", writer.rows, nodes)
            if writer.rows != nodes:
                raise GraphError(f"features of {self.stream.name!r} (got {writer.rows} rows), expected {nodes}")
        self.files["features"] = writer.digest.hexdigest()

    def _upper(self) -> Iterator[Values]:
        """The larger ends of all pairs in order; counts what each node has above and below itself on the way."""
        nodes, done, most = self.stream.num_nodes, 0, self.memory // _BYTES_A_KEY
        buckets = self._keys(key_buckets(self.scratch / "keys", 0, nodes**2, 2 * -(-self.stream.num_edges // most)))
        for keys in distinct_keys(buckets, nodes**2, most):
            low, high = np.divmod(keys, nodes)
            counts = np.bincount(low - low[0])
            self.above[low[0] : low[0] + len(counts)] += counts
            np.add.at(self.below, high, 1)
            done += len(keys)
            self.progress("pairs", done, self.stream.num_edges)
            yield high

    def _keys(self, buckets: Buckets) -> Buckets:
        nodes, done = self.stream.num_nodes, 0
        space = self.scratch / "source"
        space.mkdir()
        piece: Values
        for piece in self.stream.edges(max(1, self.memory // _BYTES_A_ROW), space):
            if piece.size and not 0 <= piece.min() <= piece.max() < nodes:
                row = int(np.argmax(((piece < 0) | (piece >= nodes)).any(1)))
                got = f"{piece[row].tolist()} in row {done + row + 1}"
                raise GraphError(f"edges of {self.stream.name!r} (got {got}), expected nodes 0 to {nodes - 1}")
            ends = piece[piece[:, 0] != piece[:, 1]].astype(np.int64)
            keys = different(np.minimum(*ends.T) * nodes + np.maximum(*ends.T))
            buckets.add(keys, keys)
            done += len(piece)
            self.progress("edges", done, self.stream.num_edges)
        shutil.rmtree(space)
        return buckets

    def _write_entries(self, upper: Values, crow: Values) -> None:
        """Merges, range of rows by range of rows, what each has below and above the diagonal."""
        most = self.memory // _BYTES_AN_ENTRY
        entries = int(crow[-1])
        starts = np.unique(np.searchsorted(crow, np.arange(0, max(1, entries), most), side="right") - 1)
        buckets = self._lower(Buckets(self.scratch / "rows", starts), upper, most)
        with self._writer("col") as cols, self._writer("pair") as pairs:
            for number, (first, stop) in enumerate(zip(starts, [*starts[1:], len(crow) - 1], strict=True)):
                col, pair = self._merged(buckets.take(number, _LOWER), int(first), int(stop), upper, crow)
                cols.append(col)
                pairs.append(pair)
                self.progress("rows", cols.rows, entries)
        self.files |= {"col": cols.digest.hexdigest(), "pair": pairs.digest.hexdigest()}

    def _lower(self, buckets: Buckets, upper: Values, most: int) -> Buckets:
        """Each pair (u, v), u < v, as the entry u of row v."""
        pairs = self.header.pairs
        for start in range(0, pairs, most):
            row = self._upper_cols(start, min(start + most, pairs))
            records = np.empty(len(row), _LOWER)
            records["row"], records["col"] = row, rows_between(upper, start, start + len(row))
            records["pair"] = np.arange(start, start + len(row))
            # Stable, here and below: within a row pairs stay in their order, in which the smaller ends rise.
            order = np.argsort(row, kind="stable")
            buckets.add(row[order], records[order])
            self.progress("pairs", start + len(row), pairs)
        return buckets

    def _merged(self, lower: Values, first: int, stop: int, upper: Values, crow: Values) -> tuple[Values, Values]:
        """Neighbors and pair numbers of the rows `first` to `stop`."""
        begin = int(crow[first])
        lower = lower[np.argsort(lower["row"], kind="stable")]
        ids = np.arange(upper[first], upper[stop])
        row = rows_between(upper, int(upper[first]), int(upper[stop]))
        below = self.below[first:stop]
        col, pair = (np.empty(int(crow[stop]) - begin, np.int64) for _ in "ab")
        # A row is its smaller neighbors, then its larger ones; each run is in order already.
        place = (crow[first:stop] - begin - (below.cumsum() - below))[lower["row"] - first] + np.arange(len(lower))
        col[place], pair[place] = lower["col"], lower["pair"]
        place = crow[row] - begin + self.below[row] + ids - upper[row]
        col[place], pair[place] = self._upper_cols(int(upper[first]), int(upper[stop])), ids
        return col, pair

    def _upper_cols(self, start: int, stop: int) -> Values:
        """A part of upper_col.npy, read and not mapped."""
        path = self.folder / "upper_col.npy"
        dtype = self.header.arrays()["upper_col"][0]
        head = path.stat().st_size - self.header.pairs * dtype.itemsize
        return np.fromfile(path, dtype, stop - start, offset=head + start * dtype.itemsize)

    def _write_header(self) -> None:
        sizes = {name: (self.folder / f"{name}.npy").stat().st_size for name in self.files}
        files = {name: {"bytes": sizes[name], "sha256": digest} for name, digest in self.files.items()}
        self.header = replace(self.header, files=files)
        structure, fingerprint = MappedGraph(self.folder, self.header).digests()
        header = replace(self.header, structure=structure, fingerprint=fingerprint)
        write_atomically(self.folder / HEADER, header.to_json())


def _checked(stream: GraphStream) -> MappedHeader:
    nodes, columns = stream.num_nodes, stream.num_features
    if not 0 < nodes <= INT32_LIMIT or columns < 1 or stream.labels.shape[:1] != (nodes,):
        got = f"{nodes} nodes, {columns} features, labels {tuple(stream.labels.shape)}"
        raise GraphError(f"graph {stream.name!r} (got {got}), expected 1 to {INT32_LIMIT} nodes with features, labels")
    known, classes = checked_labels(stream.name, stream.labels, stream.num_classes, stream.target)
    check_masks(stream.name, stream.masks, nodes)
    if stream.target == "multilabel":
        check_known(stream.name, known, stream.masks)
    return MappedHeader(stream.name, nodes, 0, columns, classes, stream.metric, stream.target)


def _needed(stream: GraphStream) -> int:
    """Bytes on disk at the worst moment, if no edge comes twice."""
    entries = 8 * stream.num_edges
    pair = 4 if stream.num_edges <= INT32_LIMIT else 8
    rows = stream.num_edges * (4 + _LOWER.itemsize + 2 * (4 + pair))
    return (
        max(entries + stream.scratch_bytes, rows)
        + stream.num_nodes * (4 * stream.num_features + 19)
        + 8 * stream.labels.numel()
    )


def _check_target(target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not force:
        raise GraphError(f"target {target} (got one that is there), expected a new folder; --force replaces it")
    head = target / HEADER
    if not head.is_file() or FORMAT not in head.read_text(encoding="utf-8", errors="replace")[:200]:
        raise GraphError(f"target {target} (got something else than a mapped graph), expected one to replace")


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise GraphError(f"room on the disk of {folder} (got {free} bytes free), expected up to {needed} to convert")


def _publish(part: Path, target: Path) -> None:
    if target.exists():
        old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
        os.replace(target, old)
        os.replace(part, target)
        shutil.rmtree(old)
    else:
        os.replace(part, target)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise GraphError(
            f"writing {target} (got: {error.strerror}), expected room on the disk; nothing was kept of it"
        ) from error
