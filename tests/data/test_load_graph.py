from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gebt.data import check_dataset, data_root, load_graph
from gebt.data.readers.splits import seeded_split
from gebt.graph.graph import GraphError, canonical_graph

LOADED = {
    "cora": (2708, 5278, 1433, 7, 140, 500, 1000),
    "citeseer": (3327, 4552, 3703, 6, 120, 500, 1000),
    "pubmed": (19717, 44324, 500, 3, 60, 500, 1000),
    "amazon-computers": (13752, 245861, 767, 10, 200, 300, 13252),
    "coauthor-cs": (18333, 81894, 6805, 15, 300, 450, 17583),
    "coauthor-physics": (34493, 247962, 8415, 5, 100, 150, 34243),
    "chameleon-filtered": (890, 8854, 2325, 5, 409, 287, 194),
    "squirrel-filtered": (2223, 46998, 2089, 5, 1053, 718, 452),
    "tolokers": (11758, 519000, 10, 2, 5879, 2939, 2940),
}


@pytest.fixture(scope="module")
def digits():
    return load_graph("digits")


def test_digits_are_the_same_on_every_machine(digits):
    assert (digits.num_nodes, digits.num_pairs, digits.num_features, digits.num_classes) == (1797, 9929, 64, 10)
    assert digits.fingerprint == "0f95e9fedf8bd62e6191047d980db90fb13b5a2e578812e3642f4ad84e0b639e"
    assert digits.notes == ()


def test_digits_link_nearest_neighbors(digits):
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits().data)
    assert torch.equal(digits.features, (pixels / 16).float())
    distances = torch.cdist(pixels, pixels).fill_diagonal_(torch.inf)
    eighth = distances.kthvalue(8).values
    source, target = digits.pairs
    gap = distances[source, target] - torch.maximum(eighth[source], eighth[target])
    assert gap.max() < 1e-9
    degrees = torch.bincount(digits.pairs.ravel())
    assert degrees.min() >= 8


def test_split_is_disjoint_and_counts_by_class(digits):
    masks = torch.stack((digits.train_mask, digits.val_mask, digits.test_mask))
    assert masks.sum(0).eq(1).all()
    assert torch.bincount(digits.labels[digits.train_mask]).tolist() == [5] * 10
    assert torch.bincount(digits.labels[digits.val_mask]).tolist() == [30] * 10


def test_fingerprint_follows_the_split_seed(digits):
    assert load_graph("digits").fingerprint == digits.fingerprint
    other = load_graph("digits", split_seed=1)
    assert other.fingerprint != digits.fingerprint
    assert torch.equal(other.pairs, digits.pairs)


def test_seeded_split_is_exact():
    # RandomState(0) orders 12 nodes 6 11 4 10 2 8 1 7 9 3 0 5.
    train, val, test = seeded_split("g", torch.arange(12) % 2, 2, 1, 2, seed=0)
    assert train.nonzero().ravel().tolist() == [6, 11]
    assert val.nonzero().ravel().tolist() == [1, 4, 7, 10]
    assert test.nonzero().ravel().tolist() == [0, 2, 3, 5, 8, 9]


def test_drawing_a_split_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    seeded_split("g", torch.arange(12) % 2, 2, 1, 2, seed=0)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_class_too_small_for_the_split_is_refused():
    labels = torch.tensor([0] * 60 + [1] * 50)
    with pytest.raises(GraphError, match=r"class 1 of 'g' \(got 50 nodes\), expected more than 20 .* and 30"):
        seeded_split("g", labels, 2, 20, 30, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_split_seed_out_of_range_is_refused(seed):
    with pytest.raises(GraphError, match=rf"split seed \(got {seed}\), expected 0 to 4294967295"):
        load_graph("digits", split_seed=seed)


@pytest.mark.parametrize("name", LOADED)
def test_real_sets_have_their_published_counts(real_root, name):
    graph = load_graph(name, real_root, download=False)
    parts = (int(mask.sum()) for mask in (graph.train_mask, graph.val_mask, graph.test_mask))
    assert (graph.num_nodes, graph.num_pairs, graph.num_features, graph.num_classes, *parts) == LOADED[name]
    assert all(status == "present" for _, status in check_dataset(name, real_root))


def test_a_public_split_has_no_other_seed(real_root):
    with pytest.raises(GraphError, match=r"split seed \(got 3\), expected 0: 'cora' has one public split"):
        load_graph("cora", real_root, split_seed=3, download=False)


def test_counts_other_than_the_manifests_are_refused_with_both(tmp_path, npz_arrays):
    sizes = np.array([240, 240])
    npz_arrays |= {"adj_indptr": np.zeros(241, "i4"), "adj_indices": np.zeros(0, "i4"), "adj_shape": sizes}
    npz_arrays |= {"attr_indptr": np.arange(241), "attr_indices": np.zeros(240, "i4"), "attr_data": np.ones(240)}
    path = tmp_path / "dblp" / "raw" / "dblp.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **npz_arrays | {"attr_shape": sizes, "labels": np.arange(240) % 4})
    with pytest.raises(GraphError, match=r"nodes of 'dblp' \(got 240\), expected 17716; .*gebt data check"):
        load_graph("dblp", tmp_path, download=False)
    assert check_dataset("dblp", tmp_path) == [(path, "sha256 differs")]


def test_missing_files_are_named_with_folder_and_origin(tmp_path):
    with pytest.raises(GraphError, match=r"got no ind\.cora\.x, ind\.cora\.tx") as caught:
        load_graph("cora", tmp_path, download=False)
    message = str(caught.value)
    assert str(tmp_path / "Cora" / "raw") in message
    for part in ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"):
        assert f"ind.cora.{part} from https://raw.githubusercontent.com/kimiyoung/planetoid/" in message
    assert not list(tmp_path.iterdir())
    assert {status for _, status in check_dataset("cora", tmp_path)} == {"missing"}


def test_a_failed_download_names_folder_and_origin(tmp_path, monkeypatch):
    def offline(*_):
        raise GraphError("download of it (got: no network)")

    monkeypatch.setattr("gebt.data.graphs.download_file", offline)
    with pytest.raises(GraphError, match=r"no network\); place by hand in .*Cora/raw:\n  ind.cora.x from https"):
        load_graph("cora", tmp_path)


def test_missing_files_are_downloaded_into_the_root(real_root, tmp_path, monkeypatch):
    def from_disk(file, folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(real_root / "Cora" / "raw" / file.name, folder)

    monkeypatch.setattr("gebt.data.graphs.download_file", from_disk)
    fetched = load_graph("cora", tmp_path)
    assert fetched.fingerprint == load_graph("cora", real_root, download=False).fingerprint


def test_the_root_is_the_first_that_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("GEBT_DATA", str(tmp_path / "variable"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root("there") == Path("there")
    assert data_root() == tmp_path / "variable"
    monkeypatch.delenv("GEBT_DATA")
    assert (data_root() / "manifest.toml").is_file()
    monkeypatch.setattr("gebt.data.graphs.CHECKOUT_DATASETS", tmp_path / "site-packages" / "datasets")
    assert data_root() == tmp_path / "cache" / "gebt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root() == Path.home() / ".cache" / "gebt"


def test_isolated_nodes_are_fine():
    masks = tuple(torch.arange(6) % 3 == part for part in range(3))
    graph = canonical_graph("g", torch.tensor([[0, 1], [1, 0]]), torch.eye(6), torch.arange(6) % 2, masks)
    assert (graph.num_nodes, graph.num_pairs) == (6, 1)
