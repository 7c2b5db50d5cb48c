from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch

from gebt.data.readers.npz import read_npz
from gebt.graph.graph import GraphError, canonical_graph


def masks(nodes):
    return tuple(torch.arange(nodes) % 3 == part for part in range(3))


def test_arrays_give_the_graph_they_describe(tmp_path, npz_arrays):
    np.savez_compressed(tmp_path / "g.npz", **npz_arrays)
    raw = read_npz(tmp_path / "g.npz")
    assert raw.edge_index.tolist() == [[0, 1, 1, 2, 3], [1, 1, 2, 3, 2]]
    assert raw.features.to_dense().tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert raw.labels.tolist() == [0, 1, 1, 0]
    graph = canonical_graph("g", raw.edge_index, raw.features, raw.labels, masks(4), to_undirected=True)
    assert graph.pairs.tolist() == [[0, 1, 2], [1, 2, 3]]
    assert graph.notes == ("1 self-loops removed", "2 one-way edges made undirected")


def test_other_members_are_never_opened(tmp_path, npz_arrays):
    np.savez(tmp_path / "g.npz", attr_names=np.array([{"an": "object"}], dtype=object), **npz_arrays)
    assert read_npz(tmp_path / "g.npz").labels.tolist() == [0, 1, 1, 0]


def test_one_way_edges_are_refused_without_symmetrize(tmp_path, npz_arrays):
    np.savez(tmp_path / "g.npz", **npz_arrays)
    raw = read_npz(tmp_path / "g.npz")
    with pytest.raises(GraphError, match="2 edges in one direction only"):
        canonical_graph("g", raw.edge_index, raw.features, raw.labels, masks(4))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("adj_indptr", [0, 3, 1, 4, 5], r"CSR row starts \(0 to 5\), expected to rise from 0 to 5"),
        ("adj_indptr", [1, 1, 3, 4, 5], r"CSR row starts \(1 to 5\)"),
        ("adj_indptr", [0, 1, 3, 4, 9], r"CSR row starts \(0 to 9\)"),
        ("adj_indptr", [0, 1, 5], "4 x 4.* with 3 row starts"),
        ("adj_indptr", [0.0, 1, 3, 4, 5], "expected flat integers"),
        ("adj_indices", [1, 1, 2, 4, 2], r"CSR columns \(1 to 4\), expected 0 to 3"),
        ("attr_indices", [0, 1, -1, 1], r"CSR columns \(-1 to 1\), expected 0 to 1"),
        ("attr_indices", [0, 1, 1, 1], "same position twice"),
        ("attr_data", [1.0, 1.0], "feature values"),
        ("attr_shape", [4, 2**62], "CSR shape"),
        ("attr_shape", [4], "not enough values"),
        ("adj_shape", [2**62, 2**62], "CSR shape"),
        ("labels", [0, 1, 1], r"labels int64 \(3,\), expected 4 integers"),
        ("labels", [0.5, 1, 1, 0], "labels float64"),
        ("labels", [[0], [1], [1], [0]], "expected 4 integers"),
    ],
)
def test_unsound_arrays_are_refused(tmp_path, npz_arrays, key, value, message):
    np.savez(tmp_path / "g.npz", **npz_arrays | {key: np.array(value)})
    with pytest.raises(GraphError, match=rf"g\.npz \(got.*{message}.*delete it and load again"):
        read_npz(tmp_path / "g.npz")


def test_an_array_of_objects_is_refused_unopened(tmp_path, npz_arrays):
    np.savez(tmp_path / "g.npz", **npz_arrays | {"labels": np.array([print] * 4, dtype=object)})
    with pytest.raises(GraphError, match=r"labels\.npy \(object"):
        read_npz(tmp_path / "g.npz")


@pytest.mark.parametrize("key", ["adj_indptr", "attr_data", "labels"])
def test_a_missing_array_is_named(tmp_path, npz_arrays, key):
    del npz_arrays[key]
    np.savez(tmp_path / "g.npz", **npz_arrays)
    with pytest.raises(GraphError, match=f"{key}.npy"):
        read_npz(tmp_path / "g.npz")


def test_a_header_that_promises_more_than_the_file_holds_is_refused_before_allocation(tmp_path, npz_arrays):
    path = tmp_path / "g.npz"
    np.savez(path, **{key: value for key, value in npz_arrays.items() if key != "labels"})
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<i8", "fortran_order": False, "shape": (2**40,)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.npy", member.getvalue() + b"\0" * 32)
    with pytest.raises(GraphError, match=r"labels\.npy \(int64 \(1099511627776,\)"):
        read_npz(path)


def test_arrays_beyond_the_cap_are_refused_unread(tmp_path, npz_arrays, monkeypatch):
    monkeypatch.setattr("gebt.data.readers.npz.LARGEST_ARRAYS", 100)
    np.savez(tmp_path / "g.npz", **npz_arrays)
    with pytest.raises(GraphError, match="bytes once unpacked, more than 100"):
        read_npz(tmp_path / "g.npz")


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut"])
def test_a_foreign_file_is_named(tmp_path, content):
    (tmp_path / "g.npz").write_bytes(content)
    with pytest.raises(GraphError, match=r"g\.npz.*expected a graph as CSR arrays"):
        read_npz(tmp_path / "g.npz")


def test_a_truncated_file_is_named(tmp_path, npz_arrays):
    path = tmp_path / "g.npz"
    np.savez(path, **npz_arrays)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(GraphError, match=r"g\.npz"):
        read_npz(path)


@pytest.mark.parametrize(("value", "count"), [(np.nan, 1), (-np.inf, 1), (-1e300, 1)])
def test_features_that_are_not_finite_are_refused(tmp_path, npz_arrays, value, count):
    data = npz_arrays["attr_data"].astype("f8")
    data[1] = value
    np.savez(tmp_path / "g.npz", **npz_arrays | {"attr_data": data})
    raw = read_npz(tmp_path / "g.npz")
    with pytest.raises(GraphError, match=f"got {count} NaN or infinite"):
        canonical_graph("g", raw.edge_index, raw.features, raw.labels, masks(4), to_undirected=True)


@pytest.mark.parametrize(("name", "pyg_name"), [("amazon-computers", "Computers")])
def test_parity_with_pyg(real_root, tmp_path, name, pyg_name):
    from torch_geometric.datasets import Amazon
    from torch_geometric.utils import to_undirected

    from gebt.data import load_graph

    (tmp_path / pyg_name).mkdir()
    (tmp_path / pyg_name / "raw").symlink_to(real_root / pyg_name / "raw")
    theirs = Amazon(str(tmp_path), pyg_name)[0]
    ours = load_graph(name, tmp_path, download=False)
    assert torch.equal(to_undirected(ours.pairs), theirs.edge_index)
    assert torch.equal(ours.features, theirs.x)
    assert torch.equal(ours.labels, theirs.y)


@pytest.mark.parametrize(("name", "file"), [("coauthor-cs", "CS/raw/ms_academic_cs.npz")])
def test_parity_with_scipy_where_dense_features_would_be_large(real_root, name, file):
    import scipy.sparse as sp

    from gebt.data import load_graph

    with np.load(real_root / file) as arrays:
        parts = (arrays["attr_data"], arrays["attr_indices"], arrays["attr_indptr"])
        features = sp.csr_matrix(parts, arrays["attr_shape"])
        adjacency = (arrays["adj_data"], arrays["adj_indices"], arrays["adj_indptr"])
        edges = sp.triu(sp.csr_matrix(adjacency, arrays["adj_shape"]).maximum(0) != 0, k=1).tocsr().tocoo()
    graph = load_graph(name, real_root, download=False)
    assert graph.pairs.tolist() == [edges.row.tolist(), edges.col.tolist()]
    binary = (features > 0).astype(np.float64)
    expected = sp.csr_matrix(sp.diags_array(1 / binary.sum(1).A1.clip(1)) @ binary)
    expected.sort_indices()
    assert np.array_equal(graph.features.pattern.col.numpy(), expected.indices)
    assert np.array_equal(graph.features.pattern.crow.numpy(), expected.indptr)
    np.testing.assert_allclose(graph.features.values.numpy(), expected.data, rtol=1e-6)
