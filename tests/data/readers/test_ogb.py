"""OGB's folders: written, read back, read by the ogb package too, and refused by file and row where unsound."""

from __future__ import annotations

import gzip
import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gebt.data import load_graph
from gebt.data.readers.ogb import OGB, PARTS, UNKNOWN, OgbGraph, OgbSet, read_ogb
from gebt.data.readers.ogb_graphs import ogb_graph
from gebt.data.readers.ogb_write import as_ogb, write_ogb
from gebt.data.readers.reading import UnsafeFileError
from gebt.graph.graph import GraphError
from gebt.sparse.memory import OutOfRoomError

NODES, EDGES = 12, 30


def drawn(name: str, **changes: Any) -> OgbGraph:
    """A small random set in the layout of a published one."""
    info = replace(OGB[name], nodes=0, edges=0, **changes)
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(NODES, (2, EDGES), generator=generator)
    features = torch.randn(NODES, info.features, generator=generator) if info.features else None
    labels = None if info.links else torch.randint(info.classes, (NODES, info.tasks), generator=generator)
    node = {name: torch.randint(1990, 2020, (NODES, 1), generator=generator) for name in info.node_more}
    edge = {name: torch.randint(9, (EDGES, 1), generator=generator) for name in info.edge_more}
    if info.edge_features:
        edge["edge_feat"] = torch.rand(EDGES, info.edge_features, generator=generator)
    order = torch.randperm(NODES, generator=generator)
    split = {} if info.links else dict(zip(PARTS, (order[:6], order[6:9], order[9:]), strict=True))
    links = (
        {part: {"edge": edges[:, start::3].t().contiguous()} for start, part in enumerate(PARTS)} if info.links else {}
    )
    for part in links.values():
        part |= {
            "weight": torch.ones(10, dtype=torch.long),
            "edge_neg": torch.randint(NODES, (7, 2), generator=generator),
        }
    return OgbGraph(info, edges, NODES, features, labels, node, edge, split, links)


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif theirs is None:
        assert ours is None
    else:
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def rewritten(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes())), mtime=0))


@pytest.fixture
def arxiv(tmp_path: Path) -> Path:
    write_ogb(tmp_path / "arxiv", drawn("ogbn-arxiv", features=3))
    return tmp_path / "arxiv"


@pytest.mark.parametrize("name", OGB)
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    graph = drawn(name)
    write_ogb(tmp_path / "set", graph)
    found = read_ogb(tmp_path / "set", graph.info)
    for part in ("edges", "features", "labels", "node", "edge", "split", "links"):
        assert_same(getattr(found, part), getattr(graph, part))
    assert found.num_nodes == NODES


def test_written_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    for number in range(2):
        write_ogb(tmp_path / str(number), drawn("ogbn-proteins"))
    for path in (tmp_path / "0").rglob("*.gz"):
        assert path.read_bytes() == (tmp_path / "1" / path.relative_to(tmp_path / "0")).read_bytes()
    with pytest.raises(GraphError, match="got one with files in it"):
        write_ogb(tmp_path / "0", drawn("ogbn-proteins"))


@pytest.fixture
def ogb_package(monkeypatch: pytest.MonkeyPatch) -> None:
    # ogb asks PyPI for its newest version in a thread that its import starts, unless `outdated` cannot be imported.
    monkeypatch.setitem(sys.modules, "outdated", None)
    pytest.importorskip("ogb", reason="needs the ogb package: pip install 'gebt[ogb]'")


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-products", "ogbn-proteins", "ogbn-papers100M"])
def test_ogb_reads_a_node_set_as_we_do(tmp_path: Path, ogb_package: None, name: str) -> None:
    from ogb.nodeproppred import NodePropPredDataset

    graph = drawn(name)
    theirs = NodePropPredDataset(name, meta_dict=write_ogb(tmp_path / "set", graph))
    held, labels = theirs[0]
    edges = graph.edges.numpy()
    if graph.info.both_ways:
        edges = np.stack((edges, edges[::-1]), 2).reshape(2, -1)
    assert np.array_equal(held["edge_index"], edges)
    assert held["num_nodes"] == NODES
    ours = read_ogb(tmp_path / "set", graph.info)
    assert (ours.features is None) == (held["node_feat"] is None)
    assert ours.features is None or np.array_equal(ours.features.numpy(), held["node_feat"])
    for key, values in {**ours.node, **ours.edge}.items():
        assert np.array_equal(values.numpy().repeat(2, 0) if key in ours.edge else values.numpy(), held[key])
    assert np.array_equal(ours.labels.numpy(), labels)
    for part, indices in theirs.get_idx_split().items():
        assert np.array_equal(ours.split[part].numpy(), indices)


def test_ogb_reads_a_link_set_as_we_do(tmp_path: Path, ogb_package: None) -> None:
    from ogb.linkproppred import LinkPropPredDataset

    graph = drawn("ogbl-collab")
    theirs = LinkPropPredDataset("ogbl-collab", meta_dict=write_ogb(tmp_path / "set", graph))
    ours = read_ogb(tmp_path / "set", graph.info)
    assert_same(ours.links, theirs.get_edge_split())
    assert np.array_equal(ours.features.numpy(), theirs[0]["node_feat"])
    assert np.array_equal(ours.edge["edge_year"].numpy().repeat(2, 0), theirs[0]["edge_year"])


def test_species_are_found_under_the_name_they_were_published_with(tmp_path: Path) -> None:
    graph = drawn("ogbn-proteins")
    write_ogb(tmp_path, graph)
    (tmp_path / "raw" / "node_species.csv.gz").rename(tmp_path / "raw" / "species.csv.gz")
    assert_same(read_ogb(tmp_path, graph.info).node, graph.node)


def test_a_canonical_graph_comes_back_as_it_went(tmp_path: Path) -> None:
    digits = load_graph("digits")
    graph = as_ogb(digits)
    write_ogb(tmp_path, graph)
    assert ogb_graph(read_ogb(tmp_path, graph.info)).fingerprint == digits.fingerprint


def test_one_way_edges_become_pairs_and_unknown_labels_zero_outside_the_split(tmp_path: Path) -> None:
    graph = drawn("ogbn-papers100M")
    graph = replace(graph, split=graph.split | {"test": graph.split["test"][1:]})
    graph.labels[graph.split["test"]], unknown = 1, (~sum(graph.masks()).bool()).nonzero().item()
    graph.labels[unknown] = UNKNOWN
    write_ogb(tmp_path / "set", graph)
    found = read_ogb(tmp_path / "set", graph.info)
    assert found.labels[unknown] == UNKNOWN
    canonical = ogb_graph(found)
    assert canonical.labels[unknown] == 0
    assert canonical.num_classes == 172
    directed = {tuple(sorted(pair)) for pair in graph.edges.t().tolist() if pair[0] != pair[1]}
    assert {tuple(pair) for pair in canonical.pairs.t().tolist()} == directed
    graph.labels[graph.split["test"][0]] = UNKNOWN
    with pytest.raises(GraphError, match=r"label -1 of node \d+, which is in the split"):
        ogb_graph(graph)


def test_many_tasks_of_two_classes_are_a_multilabel_graph_on_the_mean_of_the_edges() -> None:
    drawn_set = drawn("ogbn-proteins")
    drawn_set.labels[0, 0] = UNKNOWN
    graph = ogb_graph(drawn_set)
    assert (graph.target, graph.metric, graph.num_classes) == ("multilabel", "mean_roc_auc", 112)
    assert torch.equal(graph.labels, drawn_set.labels)
    for node in range(NODES):
        ends = [k for end in drawn_set.edges for k in (end == node).nonzero().ravel().tolist()]
        expected = drawn_set.edge["edge_feat"][ends].mean(0) if ends else torch.zeros(8)
        assert torch.allclose(graph.features[node], expected)


def test_other_sets_are_no_canonical_graph() -> None:
    for name, changes in (("ogbn-proteins", {"edge_features": 0}), ("ogbn-proteins", {"classes": 3})):
        with pytest.raises(GraphError, match=r"'ogbn-proteins' \(got 112 tasks of . classes, 0 features of nodes"):
            ogb_graph(drawn(name, **changes))
    with pytest.raises(GraphError, match=r"'ogbl-collab' \(got 0 tasks"):
        ogb_graph(drawn("ogbl-collab"))


def test_tasks_come_back_as_they_went(tmp_path: Path) -> None:
    tasks = ogb_graph(drawn("ogbn-proteins"))
    graph = as_ogb(tasks)
    write_ogb(tmp_path / "tasks", graph)
    assert ogb_graph(read_ogb(tmp_path / "tasks", graph.info)).fingerprint == tasks.fingerprint
    with pytest.raises(GraphError, match=r"got labels of the kind 'regression'\), expected classes or tasks"):
        as_ogb(replace(tasks, target="regression"))


def test_missing_files_are_named_with_their_origin(arxiv: Path) -> None:
    (arxiv / "raw" / "edge.csv.gz").unlink()
    (arxiv / "split" / "time" / "test.csv.gz").unlink()
    with pytest.raises(GraphError, match=r"raw/edge\.csv\.gz, split/time/test\.csv\.gz\).*arxiv\.zip"):
        read_ogb(arxiv, "ogbn-arxiv")
    with pytest.raises(GraphError, match=r"set \(got 'ogbn-mag'\), expected one of ogbn-arxiv"):
        read_ogb(arxiv, "ogbn-mag")


def test_counts_other_than_the_published_ones_are_refused(arxiv: Path) -> None:
    with pytest.raises(GraphError, match=r"nodes in .*num-node-list\.csv\.gz \(got 12\), expected 169343"):
        read_ogb(arxiv, "ogbn-arxiv")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("raw/num-node-list.csv.gz", lambda text: b"11\n", r"with \[\d+, \d+\] in row \d+, expected 0 to 10"),
        ("raw/num-node-list.csv.gz", lambda text: b"13\n", r"node_year\.csv\.gz \(got 12 lines\), expected 13"),
        ("raw/num-node-list.csv.gz", lambda text: b"-1\n", r"number of nodes in .* \(got \[-1\]\)"),
        ("raw/num-node-list.csv.gz", lambda text: b"12\n12\n", "got more than 1 lines"),
        ("raw/num-edge-list.csv.gz", lambda text: b"29\n", r"edge\.csv\.gz \(got more than 29 lines\)"),
        ("raw/num-edge-list.csv.gz", lambda text: b"31\n", r"edge\.csv\.gz \(got 30 lines\), expected 31"),
        ("raw/edge.csv.gz", lambda text: text[: text.rindex(b"\n", 0, -1)] + b"\n12,3\n", r"\[12, 3\] in row 30"),
        ("raw/edge.csv.gz", lambda text: b"-1,3\n" + text.partition(b"\n")[2], r"\[-1, 3\] in row 1, expected"),
        ("raw/node-feat.csv.gz", lambda text: b"nan,1,1\n" + text.partition(b"\n")[2], r"line 1 .*'nan,1,1'"),
        ("raw/node-feat.csv.gz", lambda text: b"1,1\n" * 12, r"line 1 .* expected 3 finite numbers"),
        (
            "raw/node-label.csv.gz",
            lambda text: text.partition(b"\n")[2] + b"40\n",
            r"label 40 in line 12\), expected 0 to",
        ),
        ("raw/node_year.csv.gz", lambda text: b"x\n" * 12, r"node_year\.csv\.gz \(got 'x'\)"),
        (
            "split/time/train.csv.gz",
            lambda text: text + b"12\n",
            r"train split with 12 in row 7, expected 0 to 11",
        ),
        ("split/time/valid.csv.gz", lambda text: text + text, "3 different nodes in 6 rows"),
        ("split/time/test.csv.gz", lambda text: b"", r"test\.csv\.gz \(got 0 lines\)"),
        ("split/time/test.csv.gz", lambda text: b"0\n" * 13, "got more than 12 lines"),
    ],
)
def test_unsound_tables_are_refused_by_file_and_row(arxiv: Path, name: str, change: Any, message: str) -> None:
    rewritten(arxiv, name, change)
    with pytest.raises(GraphError, match=message):
        read_ogb(arxiv, drawn("ogbn-arxiv", features=3).info)


def test_a_node_in_two_parts_of_the_split_is_named(arxiv: Path) -> None:
    graph = drawn("ogbn-arxiv", features=3)
    rewritten(arxiv, "split/time/test.csv.gz", lambda text: text + b"%d\n" % graph.split["train"][0])
    with pytest.raises(GraphError, match=f"1 nodes in two parts, the first of them {graph.split['train'][0]}"):
        read_ogb(arxiv, graph.info)


def test_counts_beyond_the_memory_are_refused_before_allocation(arxiv: Path) -> None:
    rewritten(arxiv, "raw/num-edge-list.csv.gz", lambda text: b"60000000000\n")
    with pytest.raises(OutOfRoomError, match=r"table of .*edge\.csv\.gz \(got a need of 894\.1 GiB\)"):
        read_ogb(arxiv, drawn("ogbn-arxiv", features=3).info)


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["raw/edge.csv.gz", "raw/node-feat.csv.gz", "split/time/train.csv.gz"])
def test_half_downloaded_files_are_named(arxiv: Path, name: str, cut: float) -> None:
    path = arxiv / name
    path.write_bytes(path.read_bytes()[: int(cut * path.stat().st_size)])
    with pytest.raises(GraphError, match=path.name):
        read_ogb(arxiv, drawn("ogbn-arxiv", features=3).info)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"edge_index": np.zeros((2, 29), int)}, r"edge_index of shape \(2, 29\), expected \(2, 30\)"),
        ({"edge_index": np.full((2, 30), 12)}, r"\[12, 12\] in row 1, expected 0 to 11"),
        ({"num_nodes_list": np.array([6, 6])}, r"number of nodes in .* \(got \[6, 6\]\)"),
        (
            {"node_feat": np.diag(np.arange(12) / 1e-39)[:, [3] * 128]},
            "node_feat with NaN or infinite numbers in row 4",
        ),
        ({"node_year": np.zeros((12, 4000))}, r"bytes once unpacked, more than"),
        ({"node_year": np.zeros((12, 2), "f4")}, r"node_year of shape \(12, 2\), expected \(12, 1\)"),
        ({"node_year": np.array([["x"]] * 12, object)}, "expected numbers"),
    ],
)
def test_unsound_arrays_are_refused(tmp_path: Path, changed: dict[str, np.ndarray], message: str) -> None:
    graph = drawn("ogbn-papers100M")
    write_ogb(tmp_path, graph)
    path = tmp_path / "raw" / "data.npz"
    with np.load(path) as arrays:
        np.savez_compressed(path, **dict(arrays) | changed)
    with pytest.raises(GraphError, match=message):
        read_ogb(tmp_path, graph.info)


@pytest.mark.parametrize(("bad", "message"), [(0.5, r"label 0\.5 in row 3"), (172.0, "label 172 in line 3")])
def test_labels_of_the_binary_layout_are_classes_or_nan(tmp_path: Path, bad: float, message: str) -> None:
    graph = drawn("ogbn-papers100M")
    write_ogb(tmp_path, graph)
    labels = graph.labels.float().numpy()
    labels[2] = bad
    np.savez(tmp_path / "raw" / "node-label.npz", node_label=labels)
    with pytest.raises(GraphError, match=message):
        read_ogb(tmp_path, graph.info)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_numpy_arrays_of_a_link_split_are_read_as_published(tmp_path: Path, zipped: bool) -> None:
    graph = drawn("ogbl-collab")
    write_ogb(tmp_path, graph)
    for part, held in graph.links.items():
        path = tmp_path / "split" / "time" / f"{part}.pt"
        arrays = {key: values.numpy() for key, values in held.items()}
        torch.save(arrays, path, _use_new_zipfile_serialization=zipped)
        if not zipped:  # numpy 1 spelled the module so, as in OGB's files
            path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multi", b"cnumpy.core.multi"))
    assert_same(read_ogb(tmp_path, graph.info).links, graph.links)


class Call:
    """Pickles as a call: what an attacker writes."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch MARK",)


def test_a_call_in_a_link_split_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    graph = drawn("ogbl-collab")
    write_ogb(tmp_path / "set", graph)
    for content in ({"edge": Call()}, Call()):
        torch.save(content, tmp_path / "set" / "split" / "time" / "valid.pt")
        with pytest.raises(UnsafeFileError, match=r"valid\.pt \(got: .*GLOBAL posix\.system"):
            read_ogb(tmp_path / "set", graph.info)
    (tmp_path / "set" / "split" / "time" / "valid.pt").write_bytes(pickle.dumps(Call(), 4))
    with pytest.raises(GraphError, match=r"valid\.pt") as caught:
        read_ogb(tmp_path / "set", graph.info)
    assert "weights_only" not in str(caught.value)
    assert not Path("MARK").exists()


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"weight": torch.ones(3)}, "got: a dict"),
        ([torch.ones(3)], "got: a list"),
        ({"edge": torch.ones(3, 2)}, r"edge of float32, expected the numbers of nodes"),
        ({"edge": torch.ones(3, 3, dtype=torch.long)}, r"edge of shape \(3, 3\), expected \(3, 2\)"),
        ({"edge": torch.tensor([[0, 1], [0, 12]])}, r"edge with \[0, 12\] in row 2, expected 0 to 11"),
        ({"edge": torch.ones(1, 2, dtype=torch.long), "year": torch.ones(2)}, r"year of shape \(2,\)"),
        ({"edge": torch.ones(1, 2, dtype=torch.long), "weight": torch.tensor([torch.nan])}, "expected a finite number"),
    ],
)
def test_unsound_links_are_refused(tmp_path: Path, held: Any, message: str) -> None:
    graph = drawn("ogbl-collab")
    write_ogb(tmp_path, graph)
    torch.save(held, tmp_path / "split" / "time" / "test.pt")
    with pytest.raises(GraphError, match=message):
        read_ogb(tmp_path, graph.info)


def test_a_set_of_ones_own_needs_no_entry(tmp_path: Path) -> None:
    graph = replace(drawn("ogbn-arxiv", features=3), info=OgbSet("ogbn-mine", 40, 3), node={})
    write_ogb(tmp_path, graph)
    assert_same(read_ogb(tmp_path, graph.info).split, graph.split)
