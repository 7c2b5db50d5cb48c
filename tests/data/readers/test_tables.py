"""Tables as text: numpy's own reading of the same lines, the line of what is wrong, and never more than declared."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from gebt.data.readers import tables
from gebt.data.readers.tables import read_numbers, read_table
from gebt.graph.graph import GraphError
from gebt.sparse.memory import OutOfRoomError


def written(folder: Path, text: bytes, name: str = "t.csv.gz") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text, mtime=0) if name.endswith(".gz") else text)
    return path


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 22])
@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_every_block_size_gives_numpys_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, name: str
) -> None:
    # Lines may not be longer than a block: only the reading is cut small.
    read = tables._blocks
    monkeypatch.setattr(tables, "_blocks", lambda stream: (line for whole in read(stream) for line in cut(whole)))

    def cut(whole: bytes) -> list[bytes]:
        lines = whole.splitlines(keepends=True)
        return [b"".join(lines[start : start + block]) for start in range(0, len(lines), block)]

    numbers = np.random.default_rng(0).integers(-9, 10**18, (200, 3))
    text = "\n".join(",".join(map(str, row)) for row in numbers.tolist())
    path = written(tmp_path, text.encode(), name)
    assert np.array_equal(read_table(path, np.int64, cols=3, rows=200, most=0), numbers)
    assert np.array_equal(read_table(path, np.int64, most=200), numbers)


def test_lines_that_blocks_cut_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BLOCK", 16)
    text = b"".join(b"%d,%d\r\n" % (row, 7 * row) for row in range(100))
    assert read_table(written(tmp_path, text), np.int64, most=100).tolist() == [[row, 7 * row] for row in range(100)]
    with pytest.raises(GraphError, match="a line of more than 16 bytes"):
        read_table(written(tmp_path, b"1" * 40), np.int64, most=1)


def test_decimals_are_float32_nearest(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).standard_normal((50, 4)).astype("f4")
    text = "\n".join(",".join(map(str, row)) for row in numbers.tolist())
    assert np.array_equal(read_table(written(tmp_path, text.encode()), np.float32, rows=50, most=0), numbers)
    assert read_table(written(tmp_path, b"1e-3,.5,-2.,+4\n"), np.float32, most=1).tolist() == [
        [np.float32(1e-3), 0.5, -2, 4]
    ]


def test_numbers_are_integers_where_all_of_them_are(tmp_path: Path) -> None:
    assert read_numbers(written(tmp_path, b"1,2\n3,4\n"), rows=2, most=0).dtype == np.int64
    assert read_numbers(written(tmp_path, b"1,2\n3,4.5\n"), rows=2, most=0).dtype == np.float32
    with pytest.raises(GraphError, match=r"line 2 of .*t.csv.gz \(got '3,x'\), expected 2 finite numbers"):
        read_numbers(written(tmp_path, b"1,2\n3,x\n"), rows=2, most=0)


@pytest.mark.parametrize(
    "line",
    ["1", "1,2,3", "1,", ",2", "", "1;2", "1 2", "1,2 ", "a,b", "1,0x2", "1,2.5", "1,1_0", "1,--2", "1,nan", "1,٣"],
)
def test_the_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, b"0,0\n" * 3 + line.encode() + b"\n0,0\n")
    with pytest.raises(GraphError, match=r"line 4 of .*t\.csv\.gz \(got '.*'\), expected 2 integers"):
        read_table(path, np.int64, rows=5, most=0)


@pytest.mark.parametrize("digits", [18, 19, 30])
def test_integers_have_up_to_18_digits(tmp_path: Path, digits: int) -> None:
    path = written(tmp_path, b"-" + b"9" * digits)
    if digits == 18:
        assert read_table(path, np.int64, rows=1, most=0).item() == -(10**18 - 1)
        return
    with pytest.raises(GraphError, match=r"line 1 of .* expected 1 integers"):
        read_table(path, np.int64, rows=1, most=0)


@pytest.mark.parametrize("field", ["nan", "inf", "-inf", "", "1e", "e5", "1e39", "1e400", ".", "1" * 50])
def test_features_that_are_no_finite_numbers_are_named(tmp_path: Path, field: str) -> None:
    path = written(tmp_path, b"0.5\n" * 2 + field.encode() + b"\n")
    with pytest.raises(GraphError, match=r"line 3 of .* expected 1 finite numbers"):
        read_table(path, np.float32, cols=1, rows=3, most=0)


def test_more_and_fewer_lines_than_declared_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, b"1\n2\n3\n")
    with pytest.raises(GraphError, match=r"got more than 2 lines\), expected 2"):
        read_table(path, np.int64, rows=2, most=0)
    with pytest.raises(GraphError, match=r"got 3 lines\), expected 4; it is cut short"):
        read_table(path, np.int64, rows=4, most=0)
    with pytest.raises(GraphError, match=r"got 0 lines\), expected at least 1"):
        read_table(written(tmp_path, b""), np.int64, most=4)


def test_a_bomb_is_left_after_the_declared_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    blocks = tables._blocks
    monkeypatch.setattr(tables, "BLOCK", 1 << 10)
    monkeypatch.setattr(tables, "_blocks", lambda stream: (read.append(len(b)) or b for b in blocks(stream)))
    path = written(tmp_path, b"1,1\n" * (1 << 20))
    assert path.stat().st_size < 1 << 13
    with pytest.raises(GraphError, match="more than 10 lines"):
        read_table(path, np.int64, rows=10, most=0)
    assert sum(read) <= 1 << 10


def test_room_is_asked_for_before_it_is_taken(tmp_path: Path) -> None:
    with pytest.raises(OutOfRoomError, match=r"table of .*t\.csv\.gz \(got a need of"):
        read_table(written(tmp_path, b"1,2\n"), np.int64, rows=10**15, most=0)


@pytest.mark.parametrize("kept", [5, 20, -9, -1])
def test_half_a_gzip_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = written(tmp_path, b"".join(b"%d\n" % row for row in range(1000)))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(GraphError, match=r"file .*t\.csv\.gz \(got: "):
        read_table(path, np.int64, rows=1000, most=0)


def test_one_changed_digit_is_found_by_the_checksum(tmp_path: Path) -> None:
    # Stored, not compressed: the text lies open in the file.
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"123\n", 0, mtime=0).replace(b"123", b"124"))
    with pytest.raises(GraphError, match="CRC check failed"):
        read_table(path, np.int64, rows=1, most=0)
