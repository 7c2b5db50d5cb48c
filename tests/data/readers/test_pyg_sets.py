"""PPI, Reddit and Flickr: what PyG's own classes read from the same raw files, and what is refused by name."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch_geometric.data import Batch
from torch_geometric.datasets import PPI, Flickr, Reddit

from gebt.data import check_dataset, dataset_info, from_pyg, load_graph
from gebt.data.readers.pyg_sets import FILES, read_pyg_set
from gebt.graph import Graph, GraphError, canonical_graph

NODES, FEATURES, TASKS = 24, 5, 4
GRAPHS = {"train": (8, 7, 6), "valid": (6,), "test": (5, 4)}


def ring(first: int, count: int) -> list[tuple[int, int]]:
    return [(first + node, first + (node + 1) % count) for node in range(count)]


def write_ppi(raw: Path) -> None:
    rng = np.random.default_rng(0)
    first_graph = 1
    for part, sizes in GRAPHS.items():
        nodes, firsts = sum(sizes), np.cumsum((0, *sizes))
        links = [link for first, size in zip(firsts, sizes, strict=False) for link in ring(int(first), size)]
        told = {"directed": False, "graph": {}, "multigraph": False, "nodes": [{"id": n} for n in range(nodes)]}
        told["links"] = [{"source": a, "target": b} for a, b in [*links, (0, 0)]]
        (raw / f"{part}_graph.json").write_text(json.dumps(told))
        np.save(raw / f"{part}_graph_id.npy", np.repeat(np.arange(len(sizes)), sizes) + first_graph)
        np.save(raw / f"{part}_feats.npy", rng.normal(size=(nodes, FEATURES)))
        np.save(raw / f"{part}_labels.npy", rng.integers(2, size=(nodes, TASKS)))
        first_graph += len(sizes)


def drawn_matrix(rng: np.random.Generator) -> scipy.sparse.csr_matrix:
    dense = np.triu(rng.random((NODES, NODES)) < 0.2, 1)
    return scipy.sparse.csr_matrix((dense | dense.T).astype("f4"))


def write_reddit(raw: Path) -> None:
    rng = np.random.default_rng(1)
    scipy.sparse.save_npz(raw / "reddit_graph.npz", drawn_matrix(rng).tocoo())
    np.savez(
        raw / "reddit_data.npz",
        feature=rng.normal(size=(NODES, FEATURES)),
        label=rng.integers(3, size=NODES),
        node_types=np.arange(NODES) % 3 + 1,
        node_ids=np.array(["t3_x"] * NODES, object),  # which nobody opens
    )


def write_flickr(raw: Path) -> None:
    rng = np.random.default_rng(2)
    matrix = drawn_matrix(rng)
    np.savez(raw / "adj_full.npz", data=matrix.data, indices=matrix.indices, indptr=matrix.indptr, shape=matrix.shape)
    np.save(raw / "feats.npy", rng.normal(size=(NODES, FEATURES)))
    order = rng.permutation(NODES).tolist()
    classes = {str(node): int(rng.integers(3)) for node in order[:-1]}  # the last is of no part and has none
    (raw / "class_map.json").write_text(json.dumps(classes))
    (raw / "role.json").write_text(json.dumps({"tr": order[:12], "va": order[12:17], "te": order[17:-1]}))


WRITERS = {"ppi": write_ppi, "reddit": write_reddit, "flickr": write_flickr}


def written(name: str, root: Path) -> Path:
    raw = root / dataset_info(name).folder
    raw.mkdir(parents=True)
    WRITERS[name](raw)
    return raw


def canonical(name: str, raw: Path) -> Graph:
    found = read_pyg_set(name, raw)
    assert found.masks is not None
    return canonical_graph(
        name, found.edge_index, found.features, found.labels, found.masks, to_undirected=True, target=found.target
    )


def test_ppi_is_what_pyg_reads(tmp_path: Path) -> None:
    ours = canonical("ppi", written("ppi", tmp_path))
    parts = [PPI(str(tmp_path / "PPI"), split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [3, 1, 2]
    whole = Batch.from_data_list([graph for part in parts for graph in part])
    sizes = [part._data.num_nodes for part in parts]
    for number, name in enumerate(("train_mask", "val_mask", "test_mask")):
        setattr(whole, name, torch.repeat_interleave(torch.arange(3), torch.tensor(sizes)) == number)
    theirs = from_pyg(whole)
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.target, ours.num_classes, ours.metric) == ("multilabel", TASKS, "micro_f1")
    of_graph = whole.batch
    assert bool((of_graph[ours.pairs[0]] == of_graph[ours.pairs[1]]).all())


def test_reddit_is_what_pyg_reads(tmp_path: Path) -> None:
    ours = canonical("reddit", written("reddit", tmp_path))
    assert ours.fingerprint == from_pyg(Reddit(str(tmp_path / "Reddit"))[0]).fingerprint


def test_flickr_is_what_pyg_reads(tmp_path: Path) -> None:
    ours, theirs = canonical("flickr", written("flickr", tmp_path)), Flickr(str(tmp_path / "Flickr"))[0]
    unknown = theirs.y == -1
    assert int(unknown.sum()) == 1
    theirs.y[unknown] = 0  # as a label that nobody asks for is kept
    assert ours.fingerprint == from_pyg(theirs).fingerprint


@pytest.mark.parametrize("name", WRITERS)
def test_sets_load_by_name_and_are_held_to_their_counts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = written(name, tmp_path)
    nodes = dataset_info(name).nodes
    expected = r"\(got 4 tasks\), expected 121" if name == "ppi" else rf"\(got 24\), expected {nodes}"
    with pytest.raises(GraphError, match=rf"of '{name}' {expected}"):
        load_graph(name, tmp_path)
    ours = canonical(name, raw)
    counts = {"nodes": ours.num_nodes, "features": ours.num_features, "classes": ours.num_classes}
    monkeypatch.setattr("gebt.data.graphs.dataset_info", lambda name: replace(dataset_info(name), **counts))
    assert load_graph(name, tmp_path).fingerprint == ours.fingerprint
    assert {status for _, status in check_dataset(name, tmp_path)} == {"present"}


@pytest.mark.parametrize("name", WRITERS)
def test_half_or_missing_files_are_named(name: str, tmp_path: Path) -> None:
    raw = written(name, tmp_path)
    for file in FILES[name]:
        whole = (raw / file).read_bytes()
        for cut in (0.0, 0.5, 0.98):
            (raw / file).write_bytes(whole[: int(cut * len(whole))])
            with pytest.raises(GraphError, match=file):
                read_pyg_set(name, raw)
        (raw / file).unlink()
        with pytest.raises(GraphError, match=rf"\(got no {file}\), expected PyG's raw files of '{name}'"):
            load_graph(name, tmp_path)
        (raw / file).write_bytes(whole)


def change_npz(path: Path, **changed: np.ndarray) -> None:
    with np.load(path, allow_pickle=True) as arrays:
        held = dict(arrays)
    np.savez(path, **held | changed)


def change_json(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("file", "changed", "message"),
    [
        ("train_labels.npy", np.zeros((20, TASKS), int), r"train_labels\.npy \(got: 20 labels, 21 rows"),
        ("train_labels.npy", np.full((21, TASKS), 2), r"label 2\), expected 0 or 1 in each task"),
        ("train_labels.npy", np.full((21, TASKS), np.nan), r"label nan"),
        ("train_graph_id.npy", np.arange(21) % 3, r"train_graph\.json \(got: link \[0, 1\] between two graphs"),
        ("train_graph_id.npy", np.zeros((21, 1), int), r"arrays of shapes \(21, 5\), \(21, 1\)"),
        ("valid_graph.json", {"links": [{"source": 0, "target": 6}]}, r"links with \[0, 6\] in row 1, expected 0 to 5"),
        ("valid_graph.json", {"links": [{"source": 0}]}, r"valid_graph\.json \(got: 'target'"),
        ("valid_graph.json", {"links": [{"source": "a", "target": "b"}]}, "links of <U1"),
        ("test_feats.npy", np.array([[object()] * FEATURES] * 9), r"test_feats\.npy .*expected numbers"),
    ],
)
def test_unsound_files_of_ppi_are_refused(tmp_path: Path, file: str, changed: Any, message: str) -> None:
    raw = written("ppi", tmp_path)
    if file.endswith(".json"):
        change_json(raw / file, **changed)
    else:
        np.save(raw / file, changed, allow_pickle=True)
    with pytest.raises(GraphError, match=message):
        read_pyg_set("ppi", raw)


@pytest.mark.parametrize(
    ("file", "changed", "message"),
    [
        ("reddit_data.npz", {"label": np.zeros(NODES - 1, int)}, r"reddit_data\.npz \(got: arrays \(24, 5\)"),
        ("reddit_data.npz", {"label": np.full(NODES, -1)}, "label -1 of node 0, which is in the split"),
        ("reddit_data.npz", {"label": np.array([object()] * NODES)}, "expected numbers"),
        ("reddit_graph.npz", {"shape": np.array([NODES, NODES + 1])}, r"got: a matrix \[24, 25\]"),
        (
            "reddit_graph.npz",
            {"row": np.array([0]), "col": np.array([NODES])},
            "col with 24 in row 1, expected 0",
        ),
        ("reddit_graph.npz", {"row": np.array([0])}, r"a matrix \[24, 24\], rows \(1,\)"),
    ],
)
def test_unsound_files_of_reddit_are_refused(tmp_path: Path, file: str, changed: Any, message: str) -> None:
    raw = written("reddit", tmp_path)
    change_npz(raw / file, **changed)
    with pytest.raises(GraphError, match=message):
        read_pyg_set("reddit", raw)


@pytest.mark.parametrize(
    ("file", "changed", "message"),
    [
        ("adj_full.npz", {"shape": np.array([NODES - 1, NODES])}, r"adj_full\.npz \(got: a matrix \[23, 24\]"),
        ("adj_full.npz", {"indices": np.array([NODES])}, "CSR row starts"),
        ("role.json", {"va": [0, NODES]}, r"role\.json \(got: va split with 24 in row 2, expected 0 to 23"),
        ("role.json", {"va": [0, 0]}, "va split with 1 different nodes in 2 rows"),
        ("role.json", {"te": []}, r"te split of shape \(0,\)"),
        ("class_map.json", {"x": 0}, r"class_map\.json \(got: invalid literal"),
        ("class_map.json", {str(NODES): 0}, "class_map with 24 in row 24"),
        ("class_map.json", {"0": 0.5}, r"class_map\.json \(got: classes float64"),
    ],
)
def test_unsound_files_of_flickr_are_refused(tmp_path: Path, file: str, changed: Any, message: str) -> None:
    raw = written("flickr", tmp_path)
    (change_npz if file.endswith("npz") else change_json)(raw / file, **changed)
    with pytest.raises(GraphError, match=message):
        read_pyg_set("flickr", raw)


def test_overlapping_parts_of_flickr_are_refused(tmp_path: Path) -> None:
    raw = written("flickr", tmp_path)
    roles = json.loads((raw / "role.json").read_text())
    change_json(raw / "role.json", va=roles["tr"][:2])
    with pytest.raises(GraphError, match=r"split of 'flickr' \(got 2 nodes in two parts\)"):
        canonical("flickr", raw)


def test_ppi_comes_as_a_flat_zip(ranged: Any, no_proxy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, secure, context = ranged
    raw = written("ppi", tmp_path / "made")
    with zipfile.ZipFile(tmp_path / "ppi.zip", "w") as archive:
        for path in raw.iterdir():
            archive.write(path, path.name)
    server.body = (tmp_path / "ppi.zip").read_bytes()
    context.authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    ours = canonical("ppi", raw)
    counts = {"nodes": ours.num_nodes, "features": FEATURES, "classes": TASKS, "archive": f"{secure}/ranged"}
    monkeypatch.setattr("gebt.data.graphs.dataset_info", lambda name: replace(dataset_info(name), **counts))
    assert load_graph("ppi", tmp_path / "root").fingerprint == ours.fingerprint
