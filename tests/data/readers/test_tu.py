"""Sets of many graphs: the published counts, a tiny set by hand, and what is wrong named by its line."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
import torch

from gebt.data.readers import tu
from gebt.data.readers.tu import read_graph_dataset
from gebt.graph.graph import GraphError
from gebt.sparse.pattern import SparseMatrix

TEXT = "3\n3 7\n5 2 1 2\n4 1 0\n5 1 0\n1 2\n4 0\n2 7\n9 1 1\n5 1 0\n"
# name: graphs, mean nodes, mean pairs, classes, features, graphs in test folds; README of the data
PUBLISHED = {
    "MUTAG": (188, 17.93, 19.79, 2, 7, 180),
    "PTC": (344, 25.56, 25.96, 2, 19, 340),
    "NCI1": (4110, 29.87, 32.30, 2, 37, 4110),
    "PROTEINS": (1113, 39.06, 72.82, 2, 3, 1110),
    "IMDBBINARY": (1000, 19.77, 96.53, 2, 65, 1000),
}


def archive(folds: dict[str, str]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as stream:
        for name, text in folds.items():
            member = tarfile.TarInfo(f"10fold_idx/{name}")
            member.size = len(text)
            stream.addfile(member, io.BytesIO(text.encode()))
    return held.getvalue()


FOLDS = {f"{part}_idx-{k}.txt": text for k in range(1, 11) for part, text in (("train", "2\n0\n"), ("test", "1"))}


def written(folder: Path, text: str = TEXT, folds: dict[str, str] = FOLDS) -> Path:
    at = folder / "TINY"
    at.mkdir(exist_ok=True)
    (at / "TINY.txt").write_text(text, encoding="ascii")
    (at / "10fold_idx.tar.gz").write_bytes(archive(folds))
    return at


def dense(features: torch.Tensor | SparseMatrix) -> torch.Tensor:
    return features if isinstance(features, torch.Tensor) else features.to_dense()


def test_a_tiny_set_by_hand(tmp_path: Path) -> None:
    found = read_graph_dataset(written(tmp_path))
    assert (found.name, found.num_graphs, found.num_nodes, found.num_classes) == ("TINY", 3, 6, 2)
    assert found.pairs.tolist() == [[0, 0, 4], [1, 2, 5]]
    assert found.graph_of.tolist() == [0, 0, 0, 1, 2, 2]
    assert found.labels.tolist() == [1, 0, 1]
    # the tags 4, 5, 9 in this order
    assert dense(found.features).argmax(1).tolist() == [1, 0, 1, 0, 2, 1]
    assert dense(found.features).sum(1).tolist() == [1] * 6
    assert [(train.tolist(), test.tolist()) for train, test in found.folds] == [([2, 0], [1])] * 10


def test_degrees_stand_in_for_tags_that_are_all_the_same(tmp_path: Path) -> None:
    found = read_graph_dataset(written(tmp_path), features="degrees")
    assert dense(found.features).argmax(1).tolist() == [2, 1, 1, 0, 1, 1]
    same = "2\n2 0\n3 1 1\n3 1 0\n1 1\n3 0\n"
    folds = {name: "1" if name.startswith("test") else "0" for name in FOLDS}
    assert dense(read_graph_dataset(written(tmp_path, same, folds)).features).argmax(1).tolist() == [1, 1, 0]
    assert dense(read_graph_dataset(written(tmp_path, same, folds), features="tags").features).shape == (3, 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_real_sets_have_their_published_counts(real_root: Path, name: str) -> None:
    found = read_graph_dataset(real_root / "graph_classification" / name)
    graphs, nodes, pairs, classes, features, tested = PUBLISHED[name]
    assert (found.num_graphs, found.num_classes, found.features.shape[1]) == (graphs, classes, features)
    assert round(found.num_nodes / graphs, 2) == nodes
    assert round(found.pairs.shape[1] / graphs, 2) == pairs
    assert torch.cat([test for _, test in found.folds]).unique().numel() == tested
    source, target = found.pairs
    assert torch.equal(found.graph_of[source], found.graph_of[target])
    assert (source < target).all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("3\n3 7", "x\n3 7", r"line 1 of .*TINY\.txt \(got 'x'\), expected the number of graphs"),
        ("3\n3 7", "0\n3 7", r"line 2 of .* expected no more than the 0 graphs"),
        ("3\n3 7", "4\n3 7", r"line 11 of .* \(got the end of the file\), expected a number of nodes, and a label"),
        ("3\n3 7", "2\n3 7", r"line 8 of .* \(got '2 7'\), expected no more than the 2 graphs"),
        ("3 7", "3", r"line 2 of .* \(got '3'\)"),
        ("3 7", "0 7", r"line 2 of .* \(got '0 7'\), expected at least one node"),
        ("5 2 1 2", "5 3 1 2", r"line 3 of .* expected 3 different neighbors"),
        ("5 2 1 2", "5 2 1 1", r"line 3 of .* expected 2 different neighbors"),
        ("5 2 1 2", "5 2 1 3", r"line 3 of .* expected other nodes from 0 to 2 than node 0 itself"),
        ("5 2 1 2", "5 2 1 0", r"line 3 of .* expected other nodes from 0 to 2 than node 0 itself"),
        ("5 2 1 2", "5 2 1 -1", r"line 3 of .* expected other nodes"),
        ("5 2 1 2", "5 1 1", r"line 5 of .* \(got '5 1 0'\), expected neighbors that list this node in turn"),
        ("5 2 1 2", "5.5 2 1 2", r"line 3 of .* expected tag, degree and neighbors"),
        ("9 1 1", "99999999999999999999 1 1", r"TINY\.txt \(got: "),
    ],
)
def test_unsound_lines_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        read_graph_dataset(written(tmp_path, TEXT.replace(old, new, 1)))


def test_a_file_that_promises_more_than_it_holds_costs_nothing(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"line 3 of .* \(got the end of the file\)"):
        read_graph_dataset(written(tmp_path, "1\n999999999999 0\n"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"test_idx-4.txt": "3"}, r"fold 4 split with 3 in row 1, expected 0 to 2"),
        ({"test_idx-4.txt": "2"}, "fold 4 with graph 2 in training and test"),
        ({"train_idx-9.txt": "0 0"}, "fold 9 split with 1 different nodes in 2 rows"),
        ({"train_idx-9.txt": ""}, r"fold 9 split of shape \(0,\)"),
        ({"train_idx-9.txt": "a"}, "invalid literal"),
    ],
)
def test_unsound_folds_are_refused(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        read_graph_dataset(written(tmp_path, folds=FOLDS | changed))


def test_an_archive_is_no_bomb_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = written(tmp_path) / "10fold_idx.tar.gz"
    whole = at.read_bytes()
    for content in (whole[: len(whole) // 2], b"", gzip.compress(b"no archive")):
        at.write_bytes(content)
        with pytest.raises(GraphError, match=r"10fold_idx\.tar\.gz"):
            read_graph_dataset(at.parent)
    monkeypatch.setattr(tu, "LARGEST_ARCHIVE", 1000)
    at.write_bytes(gzip.compress(b"\0" * 10**6))
    with pytest.raises(GraphError, match="more than 1000 bytes once unpacked"):
        read_graph_dataset(at.parent)
    at.unlink()
    with pytest.raises(GraphError, match="No such file"):
        read_graph_dataset(at.parent)
