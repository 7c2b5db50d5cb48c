"""Sorting on disk: records go to files by ranges of their keys, each of which then fits into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gebt.data.readers.reading import Array

Keys = NDArray[np.int64]


class Buckets:
    """Files of records in the new `folder`; bucket i takes keys from `starts[i]` (rising) to the next one's start."""

    def __init__(self, folder: Path, starts: Keys) -> None:
        folder.mkdir()
        self.starts, self._folder = starts, folder

    def add(self, keys: Array, records: Array) -> None:
        """Puts `records` [n] behind those that are there; `keys` [n] are in order."""
        cuts = np.concatenate((np.searchsorted(keys, self.starts), [len(keys)]))
        for number in np.flatnonzero(np.diff(cuts)):
            part = np.ascontiguousarray(records[cuts[number] : cuts[number + 1]])
            # Opened anew: there may be more buckets than files may be open.
            with self.path(int(number)).open("ab") as file:
                file.write(part.view(np.uint8).data)

    def take(self, number: int, dtype: np.dtype[np.generic]) -> Array:
        """The records of a bucket, in the order in which they came; its file is gone afterwards."""
        path = self.path(number)
        if not path.is_file():
            return np.empty(0, dtype)
        records = np.fromfile(path, dtype)
        path.unlink()
        return records

    def path(self, number: int) -> Path:
        """The file of a bucket, which is only there when it has records."""
        return self._folder / str(number)


def key_buckets(folder: Path, start: int, stop: int, count: int) -> Buckets:
    """Buckets, `count` or as many as there are keys, of equal shares of the keys from `start` to `stop`."""
    count = max(1, min(count, stop - start))
    return Buckets(folder, np.array([start + (stop - start) * number // count for number in range(count)], np.int64))


def distinct_keys(buckets: Buckets, stop: int, most: int) -> Iterator[Keys]:
    """All different int64 keys of buckets that hold nothing but keys below `stop`, rising, at most `most` at a time.

    A bucket of more than `most` is cut again, as often as need be; files go as they are read.
    """
    for number, (start, end) in enumerate(zip(buckets.starts, [*buckets.starts[1:], stop], strict=True)):
        path = buckets.path(number)
        held = path.stat().st_size // 8 if path.is_file() else 0
        if held and end - start == 1:
            path.unlink()
            yield np.array([start], np.int64)
        elif held > most:
            finer = key_buckets(path.with_name(f"{number}-cut"), int(start), int(end), 2 * -(-held // most))
            with path.open("rb") as file:
                while len(keys := np.fromfile(file, np.int64, most)):
                    keys = different(keys)
                    finer.add(keys, keys)
            path.unlink()
            yield from distinct_keys(finer, int(end), most)
        elif held:
            yield different(buckets.take(number, np.dtype(np.int64)))


def different(keys: NDArray[Any]) -> Keys:
    """The different ones of `keys`, rising; `keys` is put in order."""
    # numpy's unique hashes first: measured, that takes eight times as long as the sort.
    keys.sort()
    return keys[np.concatenate(([True], keys[1:] != keys[:-1]))[: len(keys)]]
