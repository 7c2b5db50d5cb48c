"""Sorting on disk gives what a sort in memory gives; a file written in pieces is the one numpy writes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from gebt.data.mapped.external_sort import Buckets, different, distinct_keys, key_buckets
from gebt.data.mapped.npy_writer import NpyWriter


@pytest.mark.parametrize("most", [1, 7, 64, 10_000])
@pytest.mark.parametrize("spread", [1, 50, 1 << 62])
def test_distinct_keys_are_those_of_a_sort_in_memory(most: int, spread: int, tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    # Half of them in a narrow range, so that buckets must be cut again and again.
    drawn = np.concatenate((source.integers(0, spread, 200), source.integers(0, min(spread, 40), 200)))
    buckets = key_buckets(tmp_path / "keys", 0, spread, 4)
    for piece in np.array_split(drawn, 9):
        keys = different(piece.copy())
        buckets.add(keys, keys)
    runs = list(distinct_keys(buckets, spread, most))
    assert max(map(len, runs)) <= most
    assert np.concatenate(runs).tolist() == np.unique(drawn).tolist()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_records_stay_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    kind = np.dtype([("row", np.int32), ("pair", np.int64)])
    buckets = Buckets(tmp_path / "rows", np.array([0, 3, 5]))
    for first in (0, 4):
        records = np.array([(row, first + place) for place, row in enumerate([0, 2, 3, 9])], kind)
        buckets.add(records["row"], records)
    found = [buckets.take(number, kind).tolist() for number in range(3)]
    assert found == [[(0, 0), (2, 1), (0, 4), (2, 5)], [(3, 2), (3, 6)], [(9, 3), (9, 7)]]
    assert buckets.take(0, kind).tolist() == []


def test_different_of_none_is_none() -> None:
    assert different(np.empty(0, np.int64)).tolist() == []


@pytest.mark.parametrize("columns", [None, 3])
@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_a_file_in_pieces_is_that_of_numpy(columns: int | None, rows: int, tmp_path: Path) -> None:
    values = np.arange(rows * (columns or 1), dtype=np.float32).reshape((rows,) if columns is None else (rows, columns))
    with NpyWriter(tmp_path / "mine.npy", values.dtype, columns) as writer:
        for piece in np.array_split(values, 7):
            writer.append(piece)
    np.save(tmp_path / "numpy.npy", values)
    assert (tmp_path / "mine.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    assert writer.digest.hexdigest() == hashlib.sha256(values.tobytes()).hexdigest()


def test_rows_of_another_width_are_refused(tmp_path: Path) -> None:
    message = r"rows to write \(got shape \(2, 4\)\), expected \(2, 3\)"
    with (
        pytest.raises(ValueError, match=message),
        NpyWriter(tmp_path / "mine.npy", np.dtype(np.float32), 3) as writer,
    ):
        writer.append(np.zeros((2, 4)))
