"""External sorting: records go to files by ranges of their keys, each of which then fits into memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gebt.data.readers.reading import Array

Keys = NDArray[np.int64]


class Buckets:
    """Files of records in a new folder, by ranges of keys.

    Args:
        folder: the new folder.
        starts: first key of each bucket, rising; the bucket ends before the next one's.
    """

    def __init__(self, folder: Path, starts: Keys) -> None:
        folder.mkdir()
        self.starts, self._folder = starts, folder

    def add(self, keys: Array, records: Array) -> None:
        """Appends records to the files of their buckets.

        Args:
            keys: [n], in order.
            records: [n].
        """
        cuts = np.concatenate((np.searchsorted(keys, self.starts), [len(keys)]))
        for number in np.flatnonzero(np.diff(cuts)):
            part = np.ascontiguousarray(records[cuts[number] : cuts[number + 1]])
            # Opened for each write: there may be more buckets than files may be open.
            with self.path(int(number)).open("ab") as file:
                file.write(part.view(np.uint8).data)

    def take(self, number: int, dtype: np.dtype[np.generic]) -> Array:
        """The records of a bucket, in the order in which they came; its file is removed.

        Args:
            number: of the bucket.
            dtype: of the records.

        Returns:
            Records [n].
        """
        path = self.path(number)
        if not path.is_file():
            return np.empty(0, dtype)
        records = np.fromfile(path, dtype)
        path.unlink()
        return records

    def path(self, number: int) -> Path:
        """The file of a bucket, which exists only when the bucket has records.

        Args:
            number: of the bucket.

        Returns:
            Its path.
        """
        return self._folder / str(number)


def key_buckets(folder: Path, start: int, stop: int, count: int) -> Buckets:
    """Buckets of equal shares of a range of keys.

    Args:
        folder: the new folder.
        start: first key.
        stop: key after the last one.
        count: number of buckets, or as many as there are keys.

    Returns:
        Empty buckets.
    """
    count = max(1, min(count, stop - start))
    return Buckets(folder, np.array([start + (stop - start) * number // count for number in range(count)], np.int64))


def distinct_keys(buckets: Buckets, stop: int, most: int) -> Iterator[Keys]:
    """All different int64 keys of buckets, rising; a bucket that is too large is split again, as often as need be.

    Args:
        buckets: with nothing but keys; their files are removed as they are read.
        stop: key after the last one.
        most: most keys in memory.

    Yields:
        At most `most` keys at a time.
    """
    for number, (start, end) in enumerate(zip(buckets.starts, [*buckets.starts[1:], stop], strict=True)):
        path = buckets.path(number)
        stored = path.stat().st_size // 8 if path.is_file() else 0
        if stored and end - start == 1:
            path.unlink()
            yield np.array([start], np.int64)
        elif stored > most:
            finer = key_buckets(path.with_name(f"{number}-cut"), int(start), int(end), 2 * -(-stored // most))
            with path.open("rb") as file:
                while len(keys := np.fromfile(file, np.int64, most)):
                    keys = different(keys)
                    finer.add(keys, keys)
            path.unlink()
            yield from distinct_keys(finer, int(end), most)
        elif stored:
            yield different(buckets.take(number, np.dtype(np.int64)))


def different(keys: NDArray[Any]) -> Keys:
    """The different keys, rising.

    Args:
        keys: [n]; sorted in place.

    Returns:
        Keys [m <= n].

    Example:
        >>> different(np.array([3, 1, 3, 2])).tolist()
        [1, 2, 3]
    """
    # numpy's unique hashes first: measured, that takes eight times as long as the sort.
    keys.sort()
    return keys[np.concatenate(([True], keys[1:] != keys[:-1]))[: len(keys)]]
