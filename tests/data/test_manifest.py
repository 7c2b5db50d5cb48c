from __future__ import annotations

import re

import pytest

from gebt.data import OGB, RecordedSettings, dataset_info, dataset_names
from gebt.data import manifest as manifest_module
from gebt.graph.graph import GraphError


def test_names_start_with_the_default_set():
    assert dataset_names()[:4] == ("digits", "cora", "citeseer", "pubmed")
    assert len(dataset_names()) == 29


@pytest.mark.parametrize(("name", "near"), [("Cora", "cora"), ("pubmet", "pubmed"), ("coauthor_cs", "coauthor-cs")])
def test_an_unknown_name_is_answered_with_the_nearest_and_the_list(name, near):
    with pytest.raises(GraphError, match=rf"got '{name}'.*citeseer, pubmed.*did you mean {near}"):
        dataset_info(name)


def test_a_name_near_to_nothing_is_answered_with_the_list():
    with pytest.raises(GraphError, match=r"got 'zzz'\), expected one of digits, cora.*; see 'gebt data list'"):
        dataset_info("zzz")


@pytest.mark.parametrize("name", dataset_names())
def test_every_entry_is_complete(name):
    info = dataset_info(name)
    assert min(info.nodes, info.pairs, info.features) > 0
    assert (info.classes > 0) == (info.task != "links")
    assert info.license
    assert info.source
    assert len(info.files) == {"planetoid": 8, "npz": 1, "heterophilous": 1, "graphs": 2}.get(info.format, 0)
    assert not info.archive or (info.format == "pyg" and info.archive.startswith("https://"))
    for file in info.files:
        assert re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert file.url.startswith("https://")
        assert "/" not in file.name
    assert (info.format == "surrogate") == (info.surrogate is not None) == name.endswith("-surrogate")
    per_class = info.split == "seeded" and info.surrogate is None
    assert per_class == (info.train_per_class > 0) == (info.val_per_class > 0)
    assert info.features_scaling in ("row", "none")


def test_settings_of_the_planetoid_sets_are_those_of_the_gcn_paper():
    expected = RecordedSettings(hidden=16, depth=2, dropout=0.5, learning_rate=0.01, weight_decay=5e-4, epochs=200)
    assert dataset_info("cora").training == expected


def test_the_packaged_manifest_goes_before_the_checkouts(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "__file__", str(tmp_path / "manifest.py"))
    assert manifest_module.manifest_path() == manifest_module.CHECKOUT_DATASETS / "manifest.toml"
    (tmp_path / "manifest.toml").touch()
    assert manifest_module.manifest_path() == tmp_path / "manifest.toml"


@pytest.mark.parametrize("name", [name for name in dataset_names() if dataset_info(name).format == "ogb"])
def test_entries_of_ogb_say_what_its_table_says(name):
    info, told = dataset_info(name), OGB[name]
    assert (info.nodes, info.pairs, info.folder) == (told.nodes, told.edges, name.replace("-", "_"))
    assert info.classes == (told.classes if told.tasks == 1 else told.tasks)
    assert info.features == (told.features or told.edge_features)
    assert info.metric == {"acc": "accuracy", "rocauc": "mean_roc_auc", "hits@50": "hits@50"}[told.metric]
    assert told.address.startswith("https://")


def test_settings_of_ogbn_arxiv_are_those_of_its_gcn():
    expected = RecordedSettings(
        hidden=256, depth=3, dropout=0.5, input_dropout=0.0, learning_rate=0.01, weight_decay=0.0, epochs=500
    )
    assert dataset_info("ogbn-arxiv").training == expected
