"""A custom graph in a folder: every form of each file, the writer, and what is refused by name and row."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from gebt.data import check_folder, dataset_info, load_graph
from gebt.data.readers.folder import save_graph_folder
from gebt.experiments.options import RunOptions
from gebt.graph.graph import Graph, GraphError
from gebt.graph.metrics import METRICS

EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [1, 0], [4, 4]])
FEATURES = np.array([[0, 2.5], [1, 0], [0, 0], [0, -1], [3, 0]], "f4")
LABELS = np.array([0, 1, 1, 0, -1])
SPLIT = {"train": np.array([1, 0]), "val": np.array([2]), "test": np.array([3])}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "edges.npy", EDGES)
    np.save(folder / "features.npy", FEATURES)
    np.save(folder / "labels.npy", LABELS)
    np.savez(folder / "splits.npz", **SPLIT)
    return folder


def assert_mine(graph: Graph) -> None:
    assert graph.name == "mine"
    assert graph.pairs.tolist() == [[0, 0, 1, 2], [1, 3, 2, 3]]
    features = graph.features if isinstance(graph.features, torch.Tensor) else graph.features.to_dense()
    assert torch.equal(features, torch.from_numpy(FEATURES))
    assert graph.labels.tolist() == [0, 1, 1, 0, 0]
    assert graph.num_classes == 2
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    assert [mask.nonzero().ravel().tolist() for mask in masks] == [[0, 1], [2], [3]]


def test_a_folder_of_arrays(mine: Path) -> None:
    graph = load_graph(str(mine))
    assert_mine(graph)
    assert graph.notes == ("1 self-loops removed", "3 one-way edges made undirected")


def test_edges_as_text_or_both_ways(mine: Path) -> None:
    (mine / "edges.npy").unlink()
    (mine / "edges.csv").write_text("\n".join(f"{a},{b}" for a, b in [*EDGES, *EDGES[:, ::-1]]), encoding="ascii")
    assert_mine(load_graph(str(mine)))


def test_edges_in_parquet(mine: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'gebt[parquet]'")
    from pyarrow import parquet

    (mine / "edges.npy").unlink()
    path = mine / "edges.parquet"
    parquet.write_table(pyarrow.table({"source": EDGES[:, 0].astype("i4"), "target": EDGES[:, 1]}), path)
    assert_mine(load_graph(str(mine)))
    whole = path.read_bytes()
    for unsound, message in (
        ({"source": [0.5], "target": [1]}, "columns source double, target int64"),
        ({"source": [1]}, "columns source int64"),
        ({"source": [0, None], "target": [1, 1]}, "empty fields"),
        ({"source": [0, 1], "target": [1, 5]}, r"\[1, 5\] in row 2, expected 0 to 4"),
    ):
        parquet.write_table(pyarrow.table(unsound), path)
        with pytest.raises(GraphError, match=message):
            load_graph(str(mine))
    for content in (whole[: len(whole) // 2], b"", whole[:60] + b"\xff" * 8 + whole[68:]):
        path.write_bytes(content)
        with pytest.raises(GraphError, match=r"edges\.parquet"):
            load_graph(str(mine))


def test_parquet_without_pyarrow_says_what_to_install(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (mine / "edges.npy").rename(mine / "edges.parquet")
    with pytest.raises(GraphError, match=r"got no pyarrow.*pip install 'gebt\[parquet\]'"):
        load_graph(str(mine))


def test_sparse_features_as_scipy_saves_them(mine: Path) -> None:
    (mine / "features.npy").unlink()
    scipy.sparse.save_npz(mine / "features.npz", scipy.sparse.csr_matrix(FEATURES))
    assert_mine(load_graph(str(mine)))
    # By columns, and square: its arrays would be a sound CSR matrix too, of the transpose.
    scipy.sparse.save_npz(mine / "features.npz", scipy.sparse.csc_matrix(np.arange(25.0).reshape(5, 5)))
    with pytest.raises(GraphError, match="a matrix in the form csc"):
        load_graph(str(mine))


def test_labels_as_text_and_a_split_in_three_files(mine: Path) -> None:
    (mine / "labels.npy").unlink()
    (mine / "labels.csv").write_text("".join(f"{label}\n" for label in LABELS), encoding="ascii")
    (mine / "splits.npz").unlink()
    (mine / "splits").mkdir()
    np.save(mine / "splits" / "train.npy", np.arange(5) < 2)
    (mine / "splits" / "val.csv").write_text("2\n", encoding="ascii")
    (mine / "splits" / "test.txt").write_bytes(b"3\r\n")
    assert_mine(load_graph(str(mine)))


def test_what_is_saved_loads_as_the_same_graph(mine: Path, tmp_path: Path) -> None:
    sparse = load_graph("digits")
    wide = torch.zeros(5, 40)
    wide[torch.arange(5), torch.arange(5)] = 1
    np.save(mine / "features.npy", wide.numpy())
    for number, graph in enumerate((sparse, load_graph(str(mine)))):
        at = save_graph_folder(tmp_path / str(number), graph)
        assert load_graph(str(at)).fingerprint == graph.fingerprint
    assert (tmp_path / "0" / "features.npy").exists()
    assert (tmp_path / "1" / "features.npz").exists()
    with pytest.raises(GraphError, match="got one with files in it"):
        save_graph_folder(tmp_path / "0", sparse)


def test_a_run_takes_a_folder_for_its_data_set(mine: Path) -> None:
    options = RunOptions(dataset=str(mine)).resolved()
    assert options.hidden == dataset_info(str(mine)).training.hidden
    with pytest.raises(GraphError, match=r"split seed \(got 1\), expected 0: 'mine' has one public split"):
        load_graph(str(mine), split_seed=1)


def test_a_name_goes_before_a_folder_and_an_unknown_one_is_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert dataset_info("digits").format == "digits"
    assert dataset_info("./digits").format == "folder"
    with pytest.raises(GraphError, match=r"got 'nowhere'\), expected one of .*, or a folder"):
        load_graph("nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("edges.npy", r"got none\), expected one of edges\.npy or edges\.csv or edges\.parquet"),
        ("features.npy", r"expected one of features\.npy or features\.npz"),
        ("labels.npy", r"expected one of labels\.npy or labels\.csv"),
        ("splits.npz", r"expected splits\.npz or splits/ with train, val, test"),
    ],
)
def test_missing_and_double_files_are_named(mine: Path, name: str, message: str) -> None:
    content = (mine / name).read_bytes()
    (mine / name).unlink()
    with pytest.raises(GraphError, match=message):
        load_graph(str(mine))
    (mine / name).write_bytes(content)
    other = {"edges.npy": "edges.csv", "features.npy": "features.npz", "labels.npy": "labels.csv"}.get(name)
    (mine / other).touch() if other else (mine / "splits").mkdir()
    with pytest.raises(GraphError, match=rf"got ({name} and {other}|both)"):
        load_graph(str(mine))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("edges", np.array([[0, 1], [1, 5]]), r"edges\.npy \(got: edges with \[1, 5\] in row 2, expected 0 to 4"),
        ("edges", np.array([[0, 1], [-1, 2]]), r"edges with \[-1, 2\] in row 2"),
        ("edges", EDGES.T, r"an array of shape \(2, 6\)"),
        ("edges", EDGES.astype(float), "edges of float64, expected the numbers of nodes"),
        ("edges", np.array([[object(), 1]]), "expected numbers"),
        ("features", FEATURES[:4], r"features\.npy \(got: an array of shape \(4, 2\)\), expected .* 5 nodes"),
        ("features", FEATURES / [[1], [1], [1], [1e-45], [1]], "NaN or infinite numbers in row 4"),
        ("labels", LABELS > 0, r"labels\.npy \(got bool \(5,\)\), expected for each node an integer, a row of 0, 1"),
        ("labels", np.zeros((5, 2)), r"labels\.npy \(got float64 \(5, 2\)\)"),
        ("labels", np.array([0.5, np.nan, 1, 2, 3]), r"label nan of node 1, which is in the split, expected a number"),
        ("labels", np.array([0.5, np.inf, 1, 2, 3]), r"labels of 'mine' \(got 1 NaN or infinite values\)"),
        ("labels", np.full((5, 2), 2), r"labels of 'mine' \(got 2\), expected 0 or 1 in each task"),
        ("labels", np.array([0, -1, 1, 0, 1]), r"label -1 of node 1, which is in the split"),
        ("labels", np.zeros((5, 2, 2), int), r"got int64 \(5, 2, 2\)"),
    ],
)
def test_unsound_arrays_are_refused(mine: Path, name: str, values: np.ndarray, message: str) -> None:
    np.save(mine / f"{name}.npy", values)
    with pytest.raises(GraphError, match=message):
        load_graph(str(mine))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val": np.array([2, 5])}, r"val split with 5 in row 2, expected 0 to 4"),
        ({"val": np.array([1])}, "1 nodes in two parts, the first of them 1"),
        ({"val": np.array([2, 2])}, "1 different nodes in 2 rows"),
        ({"val": np.array([True])}, r"val split of shape \(1,\), expected \(5,\)"),
        ({"val": np.array([0.5])}, "val split of float64"),
        ({"val": np.zeros(0, int)}, r"val split of shape \(0,\)"),
    ],
)
def test_unsound_splits_are_refused(mine: Path, changed: dict[str, Any], message: str) -> None:
    np.savez(mine / "splits.npz", **SPLIT | changed)
    with pytest.raises(GraphError, match=message):
        load_graph(str(mine))


@pytest.mark.parametrize("name", ["edges.npy", "features.npy", "labels.npy", "splits.npz"])
def test_half_a_file_is_named(mine: Path, name: str) -> None:
    whole = (mine / name).read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"<html>"):
        (mine / name).write_bytes(content)
        with pytest.raises(GraphError, match=name):
            load_graph(str(mine))


def test_sparse_features_are_checked(mine: Path) -> None:
    (mine / "features.npy").unlink()
    matrix = scipy.sparse.csr_matrix(FEATURES)
    arrays = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": np.array(matrix.shape)}
    for changed, message in (
        ({"data": np.array([1, np.nan, 1, 1])}, "NaN or infinite numbers in row 2"),
        ({"indices": np.array([0, 1, 2, 0])}, r"CSR columns \(0 to 2\), expected 0 to 1"),
        ({"shape": np.array([4, 2])}, "a matrix of 4 rows"),
        ({"data": np.ones(9)}, "feature values"),
    ):
        np.savez(mine / "features.npz", **arrays | changed)
        with pytest.raises(GraphError, match=message):
            load_graph(str(mine))
    np.savez(mine / "features.npz", **arrays)
    assert_mine(load_graph(str(mine)))


def test_a_member_that_ends_early_with_a_sound_checksum_is_refused(mine: Path) -> None:
    """Its one byte must not be spread over the whole array."""
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": "|b1", "fortran_order": False, "shape": (5,)})
    size = held.tell() + 1
    with zipfile.ZipFile(mine / "splits.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.npy", held.getvalue() + b"\1")
        archive.writestr("val.npy", b"")
        archive.writestr("test.npy", b"")
    content = (mine / "splits.npz").read_bytes()
    assert content.count(size.to_bytes(4, "little")) == 2
    (mine / "splits.npz").write_bytes(content.replace(size.to_bytes(4, "little"), (size + 4).to_bytes(4, "little")))
    with pytest.raises(GraphError, match=r"splits\.npz \(got: buffer is smaller than requested size"):
        load_graph(str(mine))


TASKS = np.array([[0, 1, -1], [1, 1, 0], [1, -1, 0], [0, 0, 1], [-1, -1, -1]])
NUMBERS = np.array([0.5, -2, 3.25, 0, np.nan])


@pytest.mark.parametrize("form", ["npy", "csv"])
@pytest.mark.parametrize(("values", "target", "outputs"), [(TASKS, "multilabel", 3), (NUMBERS, "regression", 1)])
def test_labels_may_be_tasks_or_numbers(mine: Path, values: np.ndarray, target: str, outputs: int, form: str) -> None:
    (mine / "labels.npy").unlink()
    if form == "npy":
        np.save(mine / "labels.npy", values)
    else:  # a text holds finite numbers only
        np.savetxt(mine / "labels.csv", np.nan_to_num(values), "%g" if target == "regression" else "%d", ",")
    graph = load_graph(str(mine))
    assert (graph.target, graph.num_classes, graph.metric) == (target, outputs, METRICS[graph.target][0])
    assert np.array_equal(graph.labels.numpy(), np.nan_to_num(values))
    saved = load_graph(str(save_graph_folder(mine / "again" / "mine", graph)))
    assert (saved.fingerprint, saved.target) == (graph.fingerprint, target)


def test_one_task_is_not_written_as_tasks(mine: Path, tmp_path: Path) -> None:
    np.save(mine / "labels.npy", TASKS)
    graph = load_graph(str(mine))
    with pytest.raises(GraphError, match=r"\(got one task\), expected 2 or more; write its labels as classes"):
        save_graph_folder(tmp_path / "one", replace(graph, labels=graph.labels[:, :1], num_classes=1))


def test_a_folder_is_checked_in_one_line(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "5 nodes, 4 pairs, 2 features, 2 classes; 2 training, 1 validation, 1 test nodes; "
    line += "1 self-loops removed; 3 one-way edges made undirected"
    assert check_folder(mine) == line
    mine.rename(tmp_path / "cora")  # a folder of that name is meant, not the data set
    monkeypatch.chdir(tmp_path)
    assert check_folder("cora") == line
    (tmp_path / "cora" / "edges.npy").write_bytes(b"half")
    with pytest.raises(GraphError, match=r"edges\.npy"):
        check_folder("cora")
    with pytest.raises(GraphError, match=r"folder \(got 'nowhere'\), expected one that is there"):
        check_folder("nowhere")
