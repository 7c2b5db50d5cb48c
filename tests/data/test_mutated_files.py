"""Whatever the bytes of a file, a reader gives a sound graph or a `GraphError`, and nothing else."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gebt.data.fetch.archive import unpack
from gebt.data.readers.folder import read_folder
from gebt.data.readers.npz import read_npz
from gebt.data.readers.ogb import OGB, PARTS, OgbGraph, read_ogb
from gebt.data.readers.ogb_graphs import ogb_graph
from gebt.data.readers.ogb_write import write_ogb
from gebt.data.readers.planetoid import read_planetoid
from gebt.data.readers.pyg_sets import FILES, read_pyg_set
from gebt.data.readers.reading import RawGraph
from gebt.data.readers.tu import read_graph_dataset
from gebt.graph.graph import Graph, GraphError, canonical_graph

pytestmark = pytest.mark.filterwarnings(
    # numpy on a header that a mutation made look like one of Python 2.
    "ignore:Reading `.npy` or `.npz` file required additional header parsing",
    "ignore::DeprecationWarning",
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BRIEF = settings(QUICK, max_examples=60)
# Where, as a share of the file; what to do there; with which bytes.
MUTATIONS = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.sampled_from(["set", "insert", "cut", "repeat", "truncate"]),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    for share, kind, extra in mutations:
        at = int(share * len(content))
        head, tail = content[:at], content[at:]
        content = {
            "set": head + extra + tail[len(extra) :],
            "insert": head + extra + tail,
            "cut": head + tail[len(extra) :],
            "repeat": head + tail[:64] + tail,
            "truncate": head,
        }[kind]
    return content


def accepted(read) -> Graph | None:
    try:
        raw: RawGraph = read()
        nodes = torch.arange(len(raw.labels))
        masks = raw.masks or (nodes == 0, nodes == 1, nodes > 1)
        given = (raw.edge_index, raw.features, raw.labels, masks)
        return canonical_graph("mutated", *given, to_undirected=True, target=raw.target)
    except GraphError:
        return None


def accepted_of(read):
    try:
        return read()
    except GraphError:
        return None


def assert_sound(graph: Graph | None) -> None:
    if graph is None:
        return
    source, target = graph.pairs
    assert ((source >= 0) & (source < target) & (target < graph.num_nodes)).all()
    assert graph.features.shape[0] == graph.num_nodes
    if graph.target == "regression":
        assert torch.isfinite(graph.labels).all()
    elif graph.target == "multilabel":
        assert -1 <= graph.labels.min() <= graph.labels.max() <= 1
    else:
        assert 0 <= graph.labels.min() <= graph.labels.max() < graph.num_classes


@QUICK
@given(part=st.sampled_from(["tx", "allx", "y", "ty", "ally", "graph", "test.index"]), mutations=MUTATIONS)
def test_planetoid(planetoid_folder: Path, planetoid_bytes: dict[str, bytes], part, mutations):
    path = planetoid_folder / f"ind.tiny.{part}"
    path.write_bytes(mutated(planetoid_bytes[part], mutations))
    try:
        assert_sound(accepted(lambda: read_planetoid(planetoid_folder, "tiny")))
    finally:
        path.write_bytes(planetoid_bytes[part])


@QUICK
@given(mutations=MUTATIONS)
def test_npz(tmp_path: Path, npz_arrays: dict[str, np.ndarray], mutations):
    path = tmp_path / "g.npz"
    np.savez(path, **npz_arrays)
    path.write_bytes(mutated(path.read_bytes(), mutations))
    assert_sound(accepted(lambda: read_npz(path)))


@QUICK
@given(member=st.sampled_from(["labels", "adj_indptr", "attr_data", "attr_shape"]), mutations=MUTATIONS)
def test_npy_inside_a_sound_npz(tmp_path: Path, npz_arrays: dict[str, np.ndarray], member, mutations):
    """The zip's checksum would hide most mutations from the code behind it: these are made before zipping."""
    import io

    path = tmp_path / "g.npz"
    np.savez(path, **{key: value for key, value in npz_arrays.items() if key != member})
    body = io.BytesIO()
    np.save(body, npz_arrays[member])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{member}.npy", mutated(body.getvalue(), mutations))
    assert_sound(accepted(lambda: read_npz(path)))


@pytest.fixture(scope="module")
def ogb_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny node sets, "csv" and "binary", and a tiny link set in OGB's layout."""
    root = tmp_path_factory.mktemp("ogb")
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    for name, info in OGB_INFOS.items():
        split = {part: torch.tensor([number]) for number, part in enumerate(PARTS)}
        links = {part: {"edge": edges.t().contiguous(), "weight": torch.ones(4)} for part in PARTS}
        kept = {"links": links} if info.links else {"split": split}
        labels = None if info.links else torch.tensor([[0], [1], [0], [1], [0]])
        write_ogb(root / name, OgbGraph(info, edges, 5, torch.eye(5)[:, :2], labels, **kept))
    return root


OGB_INFOS = {
    name: replace(OGB[of], nodes=0, edges=0, features=2, node_more=(), edge_more=())
    for name, of in (("csv", "ogbn-arxiv"), ("binary", "ogbn-papers100M"), ("links", "ogbl-collab"))
}


@BRIEF
@given(name=st.sampled_from(["raw/edge", "raw/num-node-list", "raw/node-label", "raw/node-feat", "split/time/test"]),
       inside=st.booleans(), mutations=MUTATIONS)  # fmt: skip
def test_ogb_tables(ogb_folder: Path, name, inside, mutations):
    """`inside`: the text is mutated and packed anew, as gzip's checksum would hide most from the code behind it."""
    path = ogb_folder / "csv" / f"{name}.csv.gz"
    sound = path.read_bytes()
    try:
        text = mutated(gzip.decompress(sound), mutations)
        path.write_bytes(gzip.compress(text, mtime=0) if inside else mutated(sound, mutations))
        assert_sound(accepted_of(lambda: ogb_graph(read_ogb(ogb_folder / "csv", OGB_INFOS["csv"]))))
    finally:
        path.write_bytes(sound)


@BRIEF
@given(name=st.sampled_from(["binary/raw/data.npz", "binary/raw/node-label.npz", "links/split/time/train.pt"]),
       mutations=MUTATIONS)  # fmt: skip
def test_ogb_arrays_and_links(ogb_folder: Path, name, mutations):
    path = ogb_folder / name
    sound = path.read_bytes()
    kind = name.partition("/")[0]
    try:
        path.write_bytes(mutated(sound, mutations))
        found = accepted_of(lambda: read_ogb(ogb_folder / kind, OGB_INFOS[kind]))
        if found is not None and kind == "links":
            assert all(0 <= part["edge"].min() <= part["edge"].max() < 5 for part in found.links.values())
    finally:
        path.write_bytes(sound)


@BRIEF
@given(mutations=MUTATIONS)
def test_links_that_numpy_pickled_the_old_way(ogb_folder: Path, mutations):
    path = ogb_folder / "links" / "split" / "time" / "valid.pt"
    sound = path.read_bytes()
    try:
        torch.save({"edge": np.arange(4).reshape(2, 2)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(mutated(path.read_bytes(), mutations))
        accepted_of(lambda: read_ogb(ogb_folder / "links", OGB_INFOS["links"]))
    finally:
        path.write_bytes(sound)


@BRIEF
@given(name=st.sampled_from(["edges.npy", "features.npy", "labels.csv", "splits.npz"]), mutations=MUTATIONS)
def test_folder(tmp_path: Path, name, mutations):
    np.save(tmp_path / "edges.npy", np.array([[0, 1], [1, 2]]))
    np.save(tmp_path / "features.npy", np.eye(3))
    (tmp_path / "labels.csv").write_text("0\n1\n0\n", encoding="ascii")
    np.savez(tmp_path / "splits.npz", train=[0], val=[1], test=[2])
    (tmp_path / name).write_bytes(mutated((tmp_path / name).read_bytes(), mutations))
    assert_sound(accepted(lambda: read_folder(tmp_path)))


@BRIEF
@given(mutations=MUTATIONS, archive=st.booleans())
def test_graph_set(real_root: Path, tmp_path: Path, mutations, archive):
    text = b"".join((real_root / "graph_classification/MUTAG/MUTAG.txt").read_bytes().splitlines(True)[:120])
    folds = (real_root / "graph_classification/MUTAG/10fold_idx.tar.gz").read_bytes()
    (tmp_path / f"{tmp_path.name}.txt").write_bytes(text if archive else mutated(text, mutations))
    (tmp_path / "10fold_idx.tar.gz").write_bytes(mutated(folds, mutations) if archive else folds)
    accepted_of(lambda: read_graph_dataset(tmp_path))


@BRIEF
@given(labels=st.sampled_from(["0,1\n1,-1\n-1,0\n", "0.5\n-2e1\n3\n"]), mutations=MUTATIONS)
def test_labels_of_tasks_and_numbers(tmp_path: Path, labels, mutations):
    np.save(tmp_path / "edges.npy", np.array([[0, 1], [1, 2]]))
    np.save(tmp_path / "features.npy", np.eye(3))
    (tmp_path / "labels.csv").write_bytes(mutated(labels.encode(), mutations))
    np.savez(tmp_path / "splits.npz", train=[0], val=[1], test=[2])
    assert_sound(accepted(lambda: read_folder(tmp_path)))


@pytest.fixture(scope="module")
def pyg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny PPI, two nodes a part, and a tiny Flickr, as PyG's raw files."""
    folder = tmp_path_factory.mktemp("raw")
    for part in ("train", "valid", "test"):
        (folder / f"{part}_graph.json").write_text(json.dumps({"links": [{"source": 0, "target": 1}]}))
        for name, values in (("graph_id", [1, 1]), ("feats", np.eye(2)), ("labels", np.eye(2))):
            np.save(folder / f"{part}_{name}.npy", values)
    np.savez(folder / "adj_full.npz", indices=[1, 0], indptr=[0, 1, 2, 2], shape=[3, 3])
    np.save(folder / "feats.npy", np.eye(3))
    (folder / "class_map.json").write_text(json.dumps({"0": 1, "1": 0, "2": 0}))
    (folder / "role.json").write_text(json.dumps({"tr": [0], "va": [1], "te": [2]}))
    for name in ("ppi", "flickr"):
        assert accepted(lambda name=name: read_pyg_set(name, folder))
    return folder


RAW = [("ppi", name) for name in ("train_graph.json", "valid_graph_id.npy", "test_labels.npy", "train_feats.npy")]
RAW += [("flickr", name) for name in FILES["flickr"]]


@BRIEF
@given(raw=st.sampled_from(RAW), mutations=MUTATIONS)
def test_raw_files_of_pyg(pyg_folder: Path, raw, mutations):
    of, name = raw
    path = pyg_folder / name
    sound = path.read_bytes()
    try:
        path.write_bytes(mutated(sound, mutations))
        assert_sound(accepted(lambda: read_pyg_set(of, pyg_folder)))
    finally:
        path.write_bytes(sound)


@BRIEF
@given(mutations=MUTATIONS)
def test_zip_files(tmp_path: Path, mutations):
    """Mutations of a zip stay inside the folder, or are refused and leave nothing."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("set/raw/a", b"a" * 99)
        archive.writestr("set/b", b"b", zipfile.ZIP_DEFLATED)
    path, root = tmp_path / "set.zip", tmp_path / "root"
    path.write_bytes(mutated(path.read_bytes(), mutations))
    root.mkdir(exist_ok=True)
    accepted_of(lambda: unpack(path, root / "set", "set.zip"))
    assert {entry.name for entry in root.iterdir()} <= {"set"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"set.zip", "root"}
    shutil.rmtree(root)
