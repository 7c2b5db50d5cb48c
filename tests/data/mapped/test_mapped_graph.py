"""Mapped graphs: rows, batches and digests are those of the graph in memory; files that are not whole are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gebt.data.mapped.convert import convert_stream
from gebt.data.mapped.mapped_graph import HEADER, MappedGraph, open_mapped, rows_between
from gebt.data.mapped.streams import stream_graph
from gebt.graph.batches import Batch, Sampler
from gebt.graph.edges import Edges
from gebt.graph.graph import Graph, GraphError, canonical_graph, structure_digest
from gebt.sparse.pattern import SparseMatrix

NODES = 60


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(edges: int = 150, zeros: float = 0.0) -> Graph:
    """A random graph with repeats and loops, node 59 alone, as canonical form makes it."""
    source = generator(1)
    features = torch.randn(NODES, 7, generator=source) * (torch.rand(NODES, 7, generator=source) >= zeros)
    part = torch.arange(NODES) % 3
    masks = part == 0, part == 1, part == 2
    labels = torch.randint(4, (NODES,), generator=source)
    index = torch.randint(NODES - 1, (2, edges), generator=source)
    return canonical_graph("drawn", index, features, labels, masks, 4, to_undirected=True)


def opened(graph: Graph, folder: Path) -> MappedGraph:
    return open_mapped(convert_stream(stream_graph(graph), folder))


@pytest.fixture
def graph() -> Graph:
    return drawn()


@pytest.fixture
def mapped(graph: Graph, tmp_path: Path) -> MappedGraph:
    return opened(graph, tmp_path / "graph")


@pytest.mark.parametrize("edges", [0, 1, 150])
@pytest.mark.parametrize("zeros", [0.0, 0.95, 1.0])
def test_what_was_written_is_what_is_there(edges: int, zeros: float, tmp_path: Path) -> None:
    graph = drawn(edges, zeros)
    assert isinstance(graph.features, SparseMatrix) == (zeros > 0)
    mapped = opened(graph, tmp_path / "graph")
    mapped.verify()
    again = mapped.to_graph()
    assert mapped.fingerprint == graph.fingerprint == again.fingerprint
    assert mapped.structure == graph.structure == structure_digest(again.pairs, NODES)
    for name in ("name", "num_nodes", "num_pairs", "num_features", "num_classes", "metric"):
        assert getattr(mapped, name) == getattr(graph, name) == getattr(again, name)
    for name in ("labels", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(getattr(mapped, name), getattr(graph, name))


def test_rows_ends_degrees_and_features_are_those_of_the_graph(graph: Graph, mapped: MappedGraph) -> None:
    nodes = torch.tensor([59, 3, 58, 0, 17])
    wanted = [
        (place, int(other), number)
        for place, node in enumerate(nodes.tolist())
        for other, number in sorted(
            (int(graph.pairs[1 - end, number]), number)
            for end in range(2)
            for number in (graph.pairs[end] == node).nonzero().ravel().tolist()
        )
    ]
    assert list(zip(*(part.tolist() for part in mapped.rows(nodes)), strict=True)) == wanted
    assert mapped.degrees(nodes).tolist() == [sum(row[0] == place for row in wanted) for place in range(5)]
    assert torch.equal(mapped.ends(torch.arange(graph.num_pairs)), graph.pairs)
    assert isinstance(graph.features, torch.Tensor)
    assert torch.equal(mapped.features_of(nodes), graph.features[nodes])
    assert mapped.neighbor(torch.tensor([59]), torch.tensor([0])).tolist() == [59]


def batches_of(sampler: Sampler) -> dict[str, list[Batch]]:
    targets = torch.tensor([5, 40, 59, 12])
    return {
        "induced": [sampler.induced(torch.arange(0, NODES, 2), torch.tensor([12, 4]))],
        "neighbors": [sampler.neighbors(targets, [3, 2], generator(seed)) for seed in range(5)],
        "walks": [sampler.walks(targets, 4, generator(seed)) for seed in range(5)],
    }


def test_batches_are_the_same_wherever_the_graph_is(graph: Graph, mapped: MappedGraph) -> None:
    in_memory, on_disk = (batches_of(Sampler(g)) for g in (Edges.from_pairs(graph.pairs, NODES), mapped))
    for way, batches in in_memory.items():
        assert len(batches) == len(on_disk[way])
        assert sum(batch.pair_ids.numel() for batch in batches) > 10
        for one, other in zip(batches, on_disk[way], strict=True):
            for name in ("nodes", "pairs", "pair_ids", "targets"):
                first, second = getattr(one, name), getattr(other, name)
                assert first.dtype == second.dtype, (way, name)
                assert torch.equal(first, second), (way, name)


def resident(of: Path) -> int:
    """Bytes of a file that this process has resident, by the kernel's own account."""
    size, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(of))
        elif inside and line.startswith("Rss:"):
            size += int(line.split()[1]) * 1024
    return size


def test_released_pages_are_not_resident_and_come_back(tmp_path: Path) -> None:
    source, nodes = generator(), 40_000
    mask = torch.arange(nodes) % 3
    features = torch.randn(nodes, 32, generator=source)
    graph = Graph("wide", torch.tensor([[0], [1]]), features, mask, mask == 0, mask == 1, mask == 2, 3)
    mapped = opened(graph, tmp_path / "graph")
    path = tmp_path / "graph" / "features.npy"
    mapped.release()
    assert resident(path) == 0
    assert torch.equal(mapped.features_of(torch.arange(nodes)), features)
    assert resident(path) >= features.numel() * 4
    mapped.release()
    few = torch.arange(20)
    assert torch.equal(mapped.features_of(few), features[few])
    assert resident(path) < features.numel()


@pytest.mark.parametrize("name", ["crow", "col", "pair", "upper_crow", "upper_col", "features", "labels", "val"])
def test_a_file_that_is_not_whole_is_refused_by_name(name: str, mapped: MappedGraph) -> None:
    path = mapped.folder / f"{name}.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(GraphError, match=rf"{name}\.npy \(got {len(content) - 3} bytes\), expected the {len(content)}"):
        open_mapped(mapped.folder)
    path.unlink()
    with pytest.raises(GraphError, match=rf"got no {name}\.npy"):
        open_mapped(mapped.folder)


@pytest.mark.parametrize("name", ["crow", "col", "pair", "upper_crow", "upper_col", "features", "labels", "test"])
def test_numbers_that_were_changed_are_found_by_verify(name: str, mapped: MappedGraph) -> None:
    path = mapped.folder / f"{name}.npy"
    values = np.load(path)
    middle = len(values) // 2
    values[middle] = values[middle - 1] if (values[middle - 1] != values[middle]).all() else ~values[middle]
    np.save(path, values)
    with pytest.raises(GraphError, match=rf"{name}\.npy \(got other numbers than were written\)"):
        open_mapped(mapped.folder, verify=True)


def test_another_type_of_the_same_size_is_refused(mapped: MappedGraph) -> None:
    path = mapped.folder / "features.npy"
    np.save(path, np.load(path).view(np.int32))
    with pytest.raises(GraphError, match=r"features\.npy \(got: int32 \(60, 7\)"):
        open_mapped(mapped.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found | {"version": 2}, r"format \('gebt mapped graph', 2\)"),
        (lambda found: found | {"pairs": found["pairs"] - 1}, r"col\.npy \(got: int32"),
        (lambda found: found | {"nodes": -1}, r"header\.json \(got: \{'nodes': -1"),
        (lambda found: found | {"nodes": True}, r"header\.json \(got: \{'nodes': True"),
        (lambda found: found | {"metric": "luck"}, r"metric 'luck'"),
        (lambda found: found | {"classes": 2}, r"labels\.npy \(got \[\d+\]\), expected \[0\]"),
        (lambda found: found | {"files": {}}, r"crow\.npy \(got 616 bytes\), expected the None"),
        (lambda found: [found], r"header\.json \(got: "),
        (lambda found: {**found, "more": 1}, r"header\.json \(got: .*more"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, mapped: MappedGraph
) -> None:
    path = mapped.folder / HEADER
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(GraphError, match=message):
        open_mapped(mapped.folder)


def test_a_folder_without_a_header_is_refused(mapped: MappedGraph, tmp_path: Path) -> None:
    shutil.copytree(mapped.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(HEADER))
    with pytest.raises(GraphError, match=r"copy \(got no header\.json\)"):
        open_mapped(tmp_path / "copy")


def test_rows_between_are_those_of_every_entry() -> None:
    crow = np.array([0, 0, 3, 3, 4, 9, 9])
    rows = np.repeat(np.arange(6), np.diff(crow))
    for start in range(10):
        for stop in range(start, 10):
            assert rows_between(crow, start, stop).tolist() == rows[start:stop].tolist()
