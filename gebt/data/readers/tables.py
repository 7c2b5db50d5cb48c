"""Tables of numbers as text, one row a line, plain or gzipped: read in blocks, never more than was declared."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch

from gebt.data.readers.reading import Array, reading
from gebt.graph.graph import GraphError
from gebt.sparse.memory import check_room

BLOCK = 1 << 22
FIRST_ROWS = 1 << 16
COMMA, NEWLINE = b",\n"
# 18 digits are always below 2^63.
INTEGER = re.compile(rb"-?[0-9]{1,18}")
DECIMAL = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
LONGEST = {"i": 18, "f": 48}
_ALLOWED = {
    kind: np.isin(np.arange(256), list(characters))
    for kind, characters in {"i": b"0123456789-,\n", "f": b"0123456789+-.eE,\n"}.items()
}


def read_table(
    path: Path, kind: type[np.int64 | np.float32], *, cols: int | None = None, rows: int | None = None, most: int
) -> Array:
    r"""The numbers in a text of commas and lines without a header; `.gz` is unpacked on the way.

    Never more than one block is in memory besides the result, for which free memory is checked first.

    Args:
        path: the file.
        kind: int64 or float32.
        cols: columns; default those of line 1.
        rows: exact number of lines; default 1 to `most`.
        most: most lines, where `rows` is not known.

    Returns:
        [rows, cols].

    Raises:
        GraphError: naming the line of a field that is missing, no finite number, or (integers) beyond 18 digits, and
            for more or fewer lines than declared.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "edges.csv"
        ...     _ = path.write_text("0,1\n1,2\n")
        ...     read_table(path, np.int64, cols=2, most=10).tolist()
        [[0, 1], [1, 2]]
    """
    with reading(path, "lines of numbers"), _opened(path) as stream:
        most = most if rows is None else rows
        table: Array = np.empty((0, 0), kind)
        count = 0
        for block in _blocks(stream):
            values = _numbers(block, kind, cols, path, count)
            cols = values.shape[1]
            end = count + len(values)
            if end > most:
                raise GraphError(
                    f"file {path} (got more than {most} lines), expected {most}; it is not what it should be"
                )
            if end > len(table):
                table = _grown(table[:count], max(end, rows or min(2 * end + FIRST_ROWS, most)), cols, path)
            table[count:end] = values
            count = end
        if count == 0 or rows not in (None, count):
            raise GraphError(f"file {path} (got {count} lines), expected {rows or 'at least 1'}; it is cut short")
        return table[:count]


def read_numbers(path: Path, *, cols: int | None = None, rows: int | None = None, most: int) -> Array:
    """`read_table` of integers where every field is one, else of decimals, as OGB decides it.

    Args:
        path: the file.
        cols: as in `read_table`.
        rows: as in `read_table`.
        most: as in `read_table`.

    Returns:
        [rows, cols], int64 or float32.
    """
    try:
        return read_table(path, np.int64, cols=cols, rows=rows, most=most)
    except _BadLineError:
        return read_table(path, np.float32, cols=cols, rows=rows, most=most)


def table_pieces(path: Path, kind: type[np.int64 | np.float32], *, cols: int, rows: int) -> Iterator[Array]:
    """`read_table` a piece at a time; the number of lines is not checked.

    Args:
        path: the file.
        kind: int64 or float32.
        cols: columns.
        rows: most rows of a piece.

    Yields:
        [n <= rows, cols].
    """
    with reading(path, "lines of numbers"), _opened(path) as stream:
        count = 0
        for block in _blocks(stream):
            values = _numbers(block, kind, cols, path, count)
            count += len(values)
            for start in range(0, len(values), rows):
                yield values[start : start + rows]


def count_lines(path: Path) -> int:
    """How many lines a text has; `.gz` is unpacked on the way.

    Args:
        path: the file.

    Returns:
        Number of lines.
    """
    with reading(path, "lines of numbers"), _opened(path) as stream:
        return sum(block.count(b"\n") for block in _blocks(stream))


class _BadLineError(GraphError):
    """A line that holds something else than the numbers it should."""


def _opened(path: Path) -> BufferedIOBase:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _blocks(stream: BufferedIOBase) -> Iterator[bytes]:
    """The text in pieces of complete lines, read to the end, where gzip checks its checksum."""
    rest = b""
    while piece := stream.read(BLOCK):
        lines, newline, after = piece.rpartition(b"\n")
        if not newline and len(rest) + len(piece) > BLOCK:
            raise ValueError(f"a line of more than {BLOCK} bytes")
        if newline:
            yield (rest + lines + newline).replace(b"\r\n", b"\n")
            rest = after
        else:
            rest += piece
    if rest:
        yield rest + b"\n"


def _numbers(block: bytes, kind: type[np.int64 | np.float32], cols: int | None, path: Path, before: int) -> Array:
    """The numbers [n, cols] of complete lines; `before` lines came earlier."""
    letter = np.dtype(kind).kind
    width = cols or block[: block.index(b"\n")].count(b",") + 1
    text = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero((text == COMMA) | (text == NEWLINE))
    sizes = np.diff(ends, prepend=-1) - 1
    # fromstring alone would take an integer too large for its type for the largest, and "nan" for a number.
    if (
        sizes.min() > 0
        and sizes.max() <= LONGEST[letter]
        and _ALLOWED[letter][text].all()
        and _in_rows(text[ends], width)
    ):
        try:
            values = np.fromstring(block[:-1].replace(b"\n", b","), kind, sep=",")
        except ValueError:
            values = np.empty(0, kind)
        if values.size == ends.size and np.isfinite(values).all():
            return values.reshape(-1, width)
    return _line_by_line(block, kind, width, path, before)


def _in_rows(separators: Array, width: int) -> bool:
    if separators.size % width:
        return False
    last = (separators == NEWLINE).reshape(-1, width)
    return bool(last[:, -1].all() and not last[:, :-1].any())


def _line_by_line(block: bytes, kind: type[np.int64 | np.float32], width: int, path: Path, before: int) -> Array:
    """The slow way, which finds what is wrong with which line."""
    field = INTEGER if kind is np.int64 else DECIMAL
    rows = []
    for number, line in enumerate(block[:-1].split(b"\n"), before + 1):
        parts = line.split(b",")
        # The length first: a long field would keep the expression busy.
        sound = len(parts) == width and all(len(part) <= 48 and field.fullmatch(part) for part in parts)
        row = np.array([(int if kind is np.int64 else float)(part) for part in parts] if sound else [np.nan])
        with np.errstate(over="ignore"):
            if not np.isfinite(row.astype(np.float32)).all():
                named = "integers" if kind is np.int64 else "finite numbers"
                raise _BadLineError(
                    f"line {number} of {path} (got {line[:60].decode('ascii', 'replace')!r}), expected {width} {named} "
                    "with commas between"
                )
        rows.append(row.astype(kind))
    return np.stack(rows)


def _grown(table: Array, rows: int, cols: int, path: Path) -> Array:
    check_room(f"table of {path}", rows * cols * table.itemsize, torch.device("cpu"))
    grown = np.empty((rows, cols), table.dtype)
    if len(table):
        grown[: len(table)] = table
    return grown
