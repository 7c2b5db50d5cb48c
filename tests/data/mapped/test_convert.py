"""Conversion: every source gives the graph that load_graph gives, in any memory, whole or not at all."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import App
from numpy.typing import NDArray

from gebt.cli.convert import add_to
from gebt.data import load_graph, read_ogb, save_graph_folder, write_ogb
from gebt.data.mapped.convert import LEAST_MEMORY, convert, convert_stream
from gebt.data.mapped.mapped_graph import HEADER, open_mapped
from gebt.data.mapped.streams import GraphStream, pieces, stream_graph
from gebt.data.readers.ogb import PARTS, OgbGraph, OgbSet
from gebt.data.readers.ogb_graphs import ogb_graph
from gebt.graph.graph import Graph, GraphError, canonical_graph

NODES = 3000
OGB = OgbSet("ogbn-mine", 5, 6)


def drawn(edges: int = 20_000, loops: int = 50) -> tuple[torch.Tensor, Graph]:
    """Edges [2, E] as found, with repeats, loops and a node of many neighbors, and their graph."""
    source = torch.Generator().manual_seed(0)
    index = torch.randint(NODES, (2, edges), generator=source)
    index[1, :loops] = index[0, :loops]
    index[0, -1000:] = 7
    part = torch.arange(NODES) % 3
    features, labels = torch.randn(NODES, 6, generator=source), torch.randint(5, (NODES,), generator=source)
    graph = canonical_graph("mine", index, features, labels, (part == 0, part == 1, part == 2), 5, to_undirected=True)
    return index, graph


@pytest.fixture(scope="module")
def found() -> tuple[torch.Tensor, Graph]:
    return drawn()


def stream_of(found: tuple[torch.Tensor, Graph]) -> GraphStream:
    entries = found[0].t().numpy()
    return replace(stream_graph(found[1]), edges=lambda rows, _: pieces(entries, rows), num_edges=len(entries))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_memory_does_not_change_a_byte(found: tuple[torch.Tensor, Graph], tmp_path: Path) -> None:
    stream = stream_of(found)
    whole = contents(convert_stream(stream, tmp_path / "whole"))
    assert open_mapped(tmp_path / "whole").to_graph().fingerprint == found[1].fingerprint
    assert sorted(whole) == sorted(
        [HEADER, *(f"{name}.npy" for name in open_mapped(tmp_path / "whole").header.arrays())]
    )
    for memory in (LEAST_MEMORY, 3 * LEAST_MEMORY, 2**22):
        assert contents(convert_stream(stream, tmp_path / str(memory), memory=memory)) == whole


def test_the_memory_is_kept_to(tmp_path: Path) -> None:
    nodes, edges, memory = 20_000, 400_000, 2**21
    part = torch.arange(nodes) % 3

    def drawn_edges(rows: int, _: Path) -> Iterator[NDArray[Any]]:
        source = np.random.default_rng(0)
        for start in range(0, edges, rows):
            yield source.integers(0, nodes, (min(rows, edges - start), 2))

    def drawn_features(rows: int) -> Iterator[NDArray[Any]]:
        for start in range(0, nodes, rows):
            yield np.ones((min(rows, nodes - start), 64), np.float32)

    stream = GraphStream(
        "large", nodes, edges, 64, drawn_edges, drawn_features, part, (part == 0, part == 1, part == 2)
    )
    tracemalloc.start()
    convert_stream(stream, tmp_path / "large", memory=memory)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Of 6 MB as keys, 5 MB as features, 13 MB as files. Beside the memory: a few numbers a node.
    assert most < memory + 64 * nodes + 2**18
    assert open_mapped(tmp_path / "large").num_pairs > 0.99 * edges


def folder_of(found: tuple[torch.Tensor, Graph], folder: Path, form: str) -> Path:
    save_graph_folder(folder, found[1])
    entries = found[0].t().numpy()
    if form == "npy":
        np.save(folder / "edges.npy", entries.astype(np.int32))
        return folder
    if form == "fortran":
        np.save(folder / "edges.npy", np.asfortranarray(entries))
        np.save(folder / "features.npy", np.asfortranarray(np.load(folder / "features.npy").astype("f8")))
        return folder
    (folder / "edges.npy").unlink()
    if form == "csv":
        np.savetxt(folder / "edges.csv", entries, "%d", ",")
    else:
        pa = pytest.importorskip("pyarrow", reason="needs pyarrow; pip install 'gebt[parquet]'")
        from pyarrow import parquet

        parquet.write_table(pa.table({"a": entries[:, 0], "b": entries[:, 1]}), folder / "edges.parquet")
    return folder


@pytest.mark.parametrize("form", ["npy", "fortran", "csv", "parquet"])
def test_a_folder_gives_the_graph_that_is_loaded(found: tuple[torch.Tensor, Graph], form: str, tmp_path: Path) -> None:
    source = folder_of(found, tmp_path / "mine", form)
    mapped = open_mapped(convert(source, tmp_path / "out", memory=LEAST_MEMORY))
    loaded = load_graph(str(source))
    assert mapped.name == loaded.name == "mine"
    assert mapped.fingerprint == mapped.to_graph().fingerprint == loaded.fingerprint == found[1].fingerprint


def test_sparse_features_of_a_folder_and_a_set_by_name(
    toy: Graph, sparse: Graph, digits: Graph, tmp_path: Path
) -> None:
    for graph in (toy, sparse):
        source = save_graph_folder(tmp_path / graph.name, graph)
        assert open_mapped(convert(source, tmp_path / f"{graph.name}-out")).fingerprint == graph.fingerprint
    mapped = open_mapped(convert("digits", tmp_path / "digits"))
    assert mapped.to_graph().fingerprint == mapped.fingerprint == digits.fingerprint


def ogb_folder(found: tuple[torch.Tensor, Graph], folder: Path, binary: bool) -> tuple[Path, OgbSet]:
    index, graph = found
    assert isinstance(graph.features, torch.Tensor)
    info = replace(OGB, binary=binary)
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(0))
    split = dict(zip(PARTS, order.split(NODES // 3), strict=True))
    labels = graph.labels[:, None].clone()
    write_ogb(folder, OgbGraph(info, index, NODES, graph.features, labels, split=split))
    return folder, info


@pytest.mark.parametrize("binary", [False, True])
def test_folders_of_ogb(found: tuple[torch.Tensor, Graph], binary: bool, tmp_path: Path) -> None:
    source, info = ogb_folder(found, tmp_path / "mine", binary)
    mapped = open_mapped(convert(source, tmp_path / "out", memory=LEAST_MEMORY, ogb=info))
    assert mapped.fingerprint == ogb_graph(read_ogb(source, info)).fingerprint
    assert mapped.structure == found[1].structure


def test_which_set_of_ogb_a_folder_is(found: tuple[torch.Tensor, Graph], tmp_path: Path) -> None:
    source, _ = ogb_folder(found, tmp_path / "mine", False)
    (source / "split" / "random").rename(source / "split" / "time")
    with pytest.raises(GraphError, match=r"mine \(got one of OGB's layout\).*--ogb NAME"):
        convert(source, tmp_path / "out")
    for name in ("ogbn_arxiv", "arxiv"):
        with pytest.raises(GraphError, match=r"number of nodes .* \(got 3000\), expected 169343"):
            convert(source.rename(tmp_path / name), tmp_path / "out")
        source = tmp_path / name
    with pytest.raises(GraphError, match=r"set 'ogbn-proteins' \(got 112 tasks, 0 features\)"):
        convert(source, tmp_path / "out", ogb="ogbn-proteins")


def test_an_ogb_file_with_more_or_fewer_edges_is_refused(found: tuple[torch.Tensor, Graph], tmp_path: Path) -> None:
    import gzip

    source, info = ogb_folder(found, tmp_path / "mine", False)
    path = source / "raw" / "edge.csv.gz"
    lines = gzip.decompress(path.read_bytes())
    for content, got in ((lines + b"0,1\n", "more"), (lines[: lines.rindex(b"\n", 0, -1) + 1], "19999")):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(GraphError, match=rf"edge\.csv\.gz \(got {got} lines\), expected 20000"):
            convert(source, tmp_path / "out", ogb=info)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": lambda rows, _: iter((np.array([[0, 1]]), np.array([[2, 3], [5, 3000]])))},
         r"edges of 'mine' \(got \[5, 3000\] in row 3\), expected nodes 0 to 2999"),
        ({"edges": lambda rows, _: iter((np.array([[0, -1]]),))}, r"got \[0, -1\] in row 1"),
        ({"features": lambda rows: iter((np.full((2, 6), 1.0), np.full((9, 6), 1e39)))}, r"infinite values in row 3\)"),
        ({"features": lambda rows: iter((np.ones((9, 6)),))}, r"features of 'mine' \(got 9 rows\), expected 3000"),
        ({"labels": torch.full((NODES,), 5)}, r"labels of 'mine' \(got 5\), expected 0 to 4"),
        ({"masks": (torch.ones(NODES, dtype=torch.bool),) * 3}, r"split of 'mine' \(got 3000 nodes in two parts\)"),
        ({"num_nodes": 0}, r"got 0 nodes"),
    ],
)  # fmt: skip
def test_what_is_no_graph_is_refused_and_leaves_nothing(
    change: dict[str, Any], message: str, found: tuple[torch.Tensor, Graph], tmp_path: Path
) -> None:
    with pytest.raises(GraphError, match=message):
        convert_stream(replace(stream_of(found), **change), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_there_is_replaced_only_by_force_and_only_a_mapped_graph(
    found: tuple[torch.Tensor, Graph], tmp_path: Path
) -> None:
    target = convert("digits", tmp_path / "out")
    with pytest.raises(GraphError, match=r"out \(got one that is there\), expected a new folder; --force"):
        convert_stream(stream_of(found), target)
    assert open_mapped(target).name == "digits"
    convert_stream(stream_of(found), target, force=True)
    assert open_mapped(target).name == "mine"
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(GraphError, match=r"got something else than a mapped graph"):
        convert_stream(stream_of(found), tmp_path, force=True)


def test_too_little_memory_is_refused(found: tuple[torch.Tensor, Graph], tmp_path: Path) -> None:
    with pytest.raises(GraphError, match=r"memory \(got 1000 bytes\), expected at least 65536"):
        convert_stream(stream_of(found), tmp_path / "out", memory=1000)


def test_too_little_disk_is_told_before_anything_is_written(found: tuple[torch.Tensor, Graph], tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(GraphError, match=r"room on the disk .*\(got \d+ bytes free\), expected up to \d+ to convert"):
        convert_stream(replace(stream_of(found), num_edges=free // 8), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("most", [50_000, 75_000, 120_000])
def test_a_file_that_may_not_grow_leaves_nothing(most: int, found: tuple[torch.Tensor, Graph], tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(GraphError, match=r"writing .*out \(got: File too large\), expected room on the disk"):
            convert_stream(stream_of(found), tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


CHILD = """
import os, signal, sys
from pathlib import Path
from gebt.data.mapped.convert import convert

source, disk, way = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def kill(step, done, whole):
    if step == "rows":
        os.kill(os.getpid(), signal.SIGKILL)

def fill(step, done, whole):
    # Somebody else takes all the room once the conversion has begun.
    with (disk / "ballast").open("wb") as file:
        left = os.statvfs(disk)
        file.write(bytes(left.f_bavail * left.f_bsize))

try:
    convert(source, disk / "out", progress={"kill": kill, "fill": fill}[way])
except ValueError as error:
    print(error, [path.name for path in disk.iterdir()])
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def test_a_disk_that_fills_up_leaves_nothing(toy: Graph, tmp_path: Path, disk: Path) -> None:
    source = save_graph_folder(tmp_path / "toy", toy)
    mount = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=200k tmpfs {disk} && "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace of one's own")
    done = subprocess.run([*mount, sys.executable, "-c", CHILD, source, disk, "fill"], capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [
        f"writing {disk / 'out'} (got: No space left on device), expected room on the disk; nothing was kept of it "
        "['ballast']"
    ]


def test_a_killed_conversion_has_no_target_and_the_next_one_does_its_work(
    toy: Graph, tmp_path: Path, disk: Path
) -> None:
    source = save_graph_folder(tmp_path / "toy", toy)
    done = subprocess.run([sys.executable, "-c", CHILD, source, disk, "kill"], capture_output=True, check=False)
    assert done.returncode == -9
    assert not (disk / "out").exists()
    assert [path.name.startswith(".out.") for path in disk.iterdir()] == [True]
    assert open_mapped(convert(source, disk / "out")).fingerprint == toy.fingerprint


def test_the_command(digits: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(name="gebt")
    add_to(app)
    target = tmp_path / "out"
    app(["convert", "digits", str(target), "--memory-gib", "0.001", "--json"], result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    assert told["fingerprint"] == digits.fingerprint == open_mapped(target).fingerprint
    assert told["bytes"] == sum(path.stat().st_size for path in target.glob("*.npy"))
    with pytest.raises(GraphError, match="expected a new folder"):
        app(["convert", "digits", str(target)], exit_on_error=False, result_action="return_value")
    app(["convert", "digits", str(target), "--force"], result_action="return_value")
    assert f"{digits.num_pairs} pairs" in capsys.readouterr().out
