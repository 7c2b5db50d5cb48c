"""A .npy file written piece by piece, its length filled in at the end."""

from __future__ import annotations

import hashlib
import os
from io import BytesIO
from pathlib import Path
from types import TracebackType

import numpy as np

from gebt.data.readers.reading import Array


class NpyWriter:
    """Writes rows to a new .npy file; used with `with`, at whose end the file is complete and synced.

    Nothing but a piece is in memory. `rows`: how many are written so far. `digest`: sha256 of all bytes of the numbers.

    Args:
        path: the new file.
        dtype: type of the numbers.
        columns: of a matrix; None for a flat array.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "values.npy"
        ...     with NpyWriter(path, np.dtype(np.int64)) as writer:
        ...         writer.append(np.array([1, 2]))
        ...         writer.append(np.array([3]))
        ...     np.load(path).tolist()
        [1, 2, 3]
    """

    def __init__(self, path: Path, dtype: np.dtype[np.generic], columns: int | None = None) -> None:
        self.rows, self.digest = 0, hashlib.sha256()
        self._dtype, self._columns = dtype, columns
        self._file = path.open("xb")
        self._head = self._header()
        self._file.write(self._head)

    def append(self, values: Array) -> None:
        """Appends rows.

        Args:
            values: [n], or [n, columns].

        Raises:
            ValueError: for another shape.
        """
        shape = values.shape[:1] if self._columns is None else (len(values), self._columns)
        if values.shape != shape:
            raise ValueError(f"rows to write (got shape {values.shape}), expected {shape}")
        stored = np.ascontiguousarray(values, self._dtype).reshape(-1).view(np.uint8).data
        self._file.write(stored)
        self.digest.update(stored)
        self.rows += len(values)

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file as file:
            if kind is None:
                head = self._header()
                # numpy leaves room for every number of rows in a header.
                assert len(head) == len(self._head), (head, self._head)
                file.seek(0)
                file.write(head)
                file.flush()
                os.fsync(file.fileno())

    def _header(self) -> bytes:
        shape = (self.rows,) if self._columns is None else (self.rows, self._columns)
        head = BytesIO()
        description = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(head, {"descr": description, "fortran_order": False, "shape": shape})
        return head.getvalue()
