from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from gebt.data.fetch.safe_pickle import read_pickle
from gebt.data.readers.planetoid import read_planetoid
from gebt.data.readers.reading import UnsafeFileError, row_scaled
from gebt.graph.graph import GraphError
from gebt.sparse.pattern import SparseMatrix


class Call:
    """Pickles as a call: what an attacker writes."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def write(folder: Path, part: str, content: bytes) -> Path:
    path = folder / f"ind.tiny.{part}"
    path.write_bytes(content)
    return path


def test_tiny_files_give_the_graph_they_describe(planetoid_folder):
    raw = read_planetoid(planetoid_folder, "tiny")
    assert raw.edge_index.shape == (2, 2 * 522)
    assert raw.edge_index[:, :3].tolist() == [[0, 0, 1], [521, 1, 0]]
    features = raw.features.to_dense()
    assert features[:3].tolist() == [[2, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]
    # Line 0 of test.index is the last node; lines 1 to 5 are the nodes 514 to 518.
    assert features[[521, 514, 518]].argmax(1).tolist() == [0, 1, 0]
    assert raw.labels[[521, 514, 515]].tolist() == [0, 1, 2]
    train, val, test = raw.masks
    assert train.nonzero().ravel().tolist() == [0, 1, 2, 3]
    assert (int(val.sum()), val[4].item(), val[503].item()) == (500, True, True)
    assert test.nonzero().ravel().tolist() == [514, 515, 516, 517, 518, 521]


def test_nodes_in_no_file_have_no_features_and_no_part_in_the_split(planetoid_folder):
    raw = read_planetoid(planetoid_folder, "tiny")
    assert raw.features.to_dense()[519:521].abs().sum() == 0
    assert raw.labels[519:521].tolist() == [0, 0]
    assert not any(mask[519:521].any() for mask in raw.masks)


@pytest.mark.parametrize(
    ("function", "arguments", "named"),
    [
        (os.system, ("touch MARK",), "posix.system"),
        (eval, ("__import__('pathlib').Path('MARK').touch()",), "__builtin__.eval"),
    ],
)
def test_a_call_in_a_pickle_is_refused_and_not_executed(planetoid_folder, monkeypatch, function, arguments, named):
    monkeypatch.chdir(planetoid_folder)
    path = write(planetoid_folder, "graph", pickle.dumps(Call(function, *arguments), protocol=2))
    with pytest.raises(UnsafeFileError, match=f"ind.tiny.graph.*got the global {named}.*nothing was executed"):
        read_planetoid(planetoid_folder, "tiny")
    assert not Path("MARK").exists()
    with path.open("rb") as stream:
        pickle.load(stream)
    assert Path("MARK").exists(), "the pickle would have executed, so the refusal was real"


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_operations_beyond_those_of_the_files_are_refused(tmp_path, protocol):
    path = write(tmp_path, "graph", pickle.dumps([2**70, 1.5, Call(os.getcwd)], protocol=protocol))
    with pytest.raises(UnsafeFileError, match=r"pickle operation|the global"):
        read_pickle(path)


@pytest.mark.parametrize("shape", [(2**31 - 1, 2**31 - 1), (514, 4), (-1, 3), ()])
def test_an_array_whose_shape_is_not_that_of_its_bytes_is_refused(planetoid_folder, old_pickle, shape):
    body = old_pickle.array(np.ones((514, 3), "i4"), shape=shape or (3,))
    write(planetoid_folder, "ally", old_pickle.document(body))
    with pytest.raises(GraphError, match=r"ind\.tiny\.\*.*(reshape|without a shape)"):
        read_planetoid(planetoid_folder, "tiny")


def test_an_array_of_objects_is_refused(planetoid_folder, old_pickle):
    body = old_pickle.array(np.ones((514, 3), "f8")).replace(b"f8", b"O8")
    write(planetoid_folder, "ally", old_pickle.document(body))
    with pytest.raises(GraphError, match="an array of something that is no number"):
        read_planetoid(planetoid_folder, "tiny")


def test_a_list_shared_by_all_nodes_is_refused_before_it_fills_the_memory(planetoid_folder, old_pickle):
    entries = old_pickle.number(0) + b"]q\x01" + b"".join(old_pickle.number(n) + b"h\x01" for n in range(1, 522))
    graph = old_pickle.lists({}).removesuffix(b"(u") + b"(" + entries + b"u"
    write(planetoid_folder, "graph", old_pickle.document(graph))
    with pytest.raises(GraphError, match="without one list of neighbors for each node"):
        read_planetoid(planetoid_folder, "tiny")


def test_a_nested_tuple_as_key_is_refused_before_it_is_hashed(tmp_path, old_pickle):
    # Every level doubles the time of a hash: 200 levels would never end.
    nested = b")" + b"".join(b"q\x01h\x01\x86" for _ in range(200))
    path = write(tmp_path, "graph", old_pickle.document(b"}(" + nested + old_pickle.number(1) + b"u"))
    with pytest.raises(GraphError, match="an entry that does not fit a dict"):
        read_pickle(path)


def test_a_memo_index_of_four_billion_costs_nothing(tmp_path, old_pickle):
    assert read_pickle(write(tmp_path, "graph", old_pickle.document(b"]r\xff\xff\xff\xff"))) == []


@pytest.mark.parametrize("part", ["allx", "tx", "ally", "ty", "y", "graph", "test.index"])
def test_a_truncated_file_is_named_with_the_way_out(planetoid_folder, planetoid_bytes, part):
    write(planetoid_folder, part, planetoid_bytes[part][: len(planetoid_bytes[part]) // 2])
    with pytest.raises(GraphError, match=r"ind\.tiny\..*delete it and load again"):
        read_planetoid(planetoid_folder, "tiny")


@pytest.mark.parametrize(
    "content", [b"", b"<html>404: Not Found</html>", b"\x80\x02.", b"\x80\x02K\x01K\x02.", b"\x80\x02K\x01(K\x02\x86."]
)
def test_a_foreign_file_is_named(planetoid_folder, content):
    write(planetoid_folder, "graph", content)
    with pytest.raises(GraphError, match=r"ind\.tiny\.graph"):
        read_planetoid(planetoid_folder, "tiny")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"indptr": np.arange(6, dtype="i4")[::-1].copy()}, "row starts"),
        ({"indices": np.array([0, 1, 9, 3, 4, 0], "i4")}, r"CSR columns \(0 to 9\), expected 0 to 4"),
        ({"indices": np.array([0, 1, -1, 3, 4, 0], "i4")}, r"CSR columns \(-1 to 4\), expected 0 to 4"),
        ({"data": np.ones(3, "f4")}, "feature values"),
    ],
)
def test_unsound_csr_arrays_are_refused(planetoid_folder, old_pickle, changed, message):
    write(planetoid_folder, "tx", old_pickle.document(old_pickle.csr(np.eye(5)[[0, 1, 2, 3, 4, 0]], **changed)))
    with pytest.raises(GraphError, match=message):
        read_planetoid(planetoid_folder, "tiny")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([514, 515, 516, 517, 518, 522], "nodes 514 to 522, expected 514 to 521"),
        ([0, 515, 516, 517, 518, 521], "nodes 0 to 521"),
        ([514, 514, 516, 517, 518, 521], "5 different nodes, expected 6"),
    ],
)
def test_test_nodes_must_be_new_and_different(planetoid_folder, lines, message):
    write(planetoid_folder, "test.index", "\n".join(map(str, lines)).encode())
    with pytest.raises(GraphError, match=message):
        read_planetoid(planetoid_folder, "tiny")


@pytest.mark.parametrize("part", ["allx", "tx"])
@pytest.mark.parametrize("shape", [(520, 5), (6, 4)])
def test_features_must_fit_the_labels(planetoid_folder, old_pickle, part, shape):
    write(planetoid_folder, part, old_pickle.document(old_pickle.csr(np.ones(shape))))
    with pytest.raises(GraphError, match="expected 514 and 6 rows of one width"):
        read_planetoid(planetoid_folder, "tiny")


def test_rows_are_scaled_as_pyg_scales_them():
    from torch_geometric.data import Data
    from torch_geometric.transforms import NormalizeFeatures

    dense = torch.tensor([[2.0, 0, 6], [0, 0.25, 0.25], [0, 0, 0]])
    ours = row_scaled(SparseMatrix.from_dense(dense)).to_dense()
    assert ours.tolist() == [[0.25, 0, 0.75], [0, 0.25, 0.25], [0, 0, 0]]
    assert torch.equal(ours, NormalizeFeatures()(Data(x=dense)).x)


@pytest.mark.parametrize("name", ["Cora", "CiteSeer", "PubMed"])
def test_parity_with_pyg(real_root, tmp_path, name):
    from torch_geometric.datasets import Planetoid
    from torch_geometric.transforms import NormalizeFeatures
    from torch_geometric.utils import to_undirected

    from gebt.data import load_graph

    (tmp_path / name).mkdir()
    (tmp_path / name / "raw").symlink_to(real_root / name / "raw")
    theirs = NormalizeFeatures()(Planetoid(str(tmp_path), name)[0])
    ours = load_graph(name.lower(), tmp_path, download=False)
    assert torch.equal(to_undirected(ours.pairs), to_undirected(theirs.edge_index))
    assert 2 * ours.num_pairs == theirs.edge_index.shape[1]
    torch.testing.assert_close(ours.features.to_dense(), theirs.x, rtol=1e-6, atol=0)
    assert torch.equal(ours.labels, theirs.y)
    for mask in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(getattr(ours, mask), theirs[mask])
