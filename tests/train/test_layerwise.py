"""Inference layer by layer against the network on the whole graph, in memory and from disk, however it is cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gebt.data.mapped.convert import convert_stream
from gebt.data.mapped.mapped_graph import open_mapped
from gebt.data.mapped.streams import stream_graph
from gebt.graph import Edges, Graph
from gebt.graph.adjacency import adjacency_of
from gebt.graph.batch_schedule import BatchSchedule, BatchSettings
from gebt.graph.batches import Sampler
from gebt.models import GCN
from gebt.models.gnn import GAT, GIN, GraphSAGE
from gebt.models.resgcn import ResGCN
from gebt.prune.mask import Mask
from gebt.train import layerwise
from gebt.train.layerwise import LayerByLayer
from gebt.train.loop import NodeTask
from gebt.train.minibatch import Batched
from gebt.train.processes import Processes

MODELS: dict[str, Callable[..., nn.Module]] = {
    "one layer": lambda *sizes: GCN(*sizes, depth=1),
    "gcn": lambda *sizes: GCN(*sizes, depth=3, norm="batch", residual=True),
    "gat": lambda *sizes: GAT(*sizes, heads=2),
    "gin": GIN,
    "sage": lambda *sizes: GraphSAGE(*sizes, depth=3),
    "resgcn": lambda *sizes: ResGCN(*sizes, depth=3),
    "mean": lambda *sizes: ResGCN(*sizes, depth=1, aggregation="mean"),
}


def edges_of(graph: Graph) -> Edges:
    return Edges.from_pairs(graph.pairs, graph.num_nodes)


def half(graph: Graph) -> Mask:
    drawn = torch.rand(graph.num_pairs, generator=torch.Generator().manual_seed(1))
    return Mask({"edges": drawn < 0.5})


@pytest.mark.parametrize("most", [1, 50, 1 << 20])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_network_on_the_whole_graph(
    name: str, pruned: bool, most: int, sparse64: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(layerwise, "MOST_ENTRIES", most)
    model = MODELS[name](sparse64.num_features, 8, sparse64.num_classes).double().eval()
    edges, kept = edges_of(sparse64), half(sparse64) if pruned else None
    nodes = torch.tensor([0, 3, 17, 40, 59])
    seen = edges if kept is None else Edges.from_pairs(edges.pairs[:, kept.flat()], edges.num_nodes)
    with torch.no_grad():
        expected = NodeTask(sparse64, seen).logits(model)
        for some, scratch in ((nodes, None), (torch.arange(60), tmp_path)):
            found = LayerByLayer(sparse64, adjacency_of(edges), kept, scratch=scratch).logits(model, some)  # type: ignore[arg-type]
            torch.testing.assert_close(found, expected[some], rtol=1e-10, atol=1e-12)


def test_runs_are_cut_by_what_their_nodes_bring_along(sparse64: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = edges_of(sparse64)
    layers, degrees = LayerByLayer(sparse64, adjacency_of(edges)), adjacency_of(edges).degrees(torch.arange(60)) + 1
    runs = layers._runs(torch.arange(60), 8)
    assert len(runs) == 1
    monkeypatch.setattr(layerwise, "MOST_BYTES", 4 * 8 * 50)  # rows of fifty nodes, of sixty that there are
    runs = layers._runs(torch.arange(60), 8)
    assert torch.equal(torch.cat(runs), torch.arange(60))
    assert len(runs) > 1
    assert max(int(degrees[run].sum()) for run in runs) < 50 + int(degrees.max())
    assert len(layers._runs(torch.arange(60), 4)) == 1


@pytest.mark.parametrize("target", ["class", "multilabel", "regression"])
def test_a_graph_on_disk_is_evaluated_as_in_memory(target: Any, sparse: Graph, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    changed: dict[str, Any] = {
        "class": {},
        "multilabel": {
            "labels": torch.randint(-1, 2, (60, 3), generator=generator),
            "num_classes": 3,
            "metric": "micro_f1",
        },
        "regression": {"labels": torch.randn(60, generator=generator).float(), "num_classes": 1, "metric": "r2"},
    }[target]
    graph = replace(sparse, target=target, **changed)
    mapped = open_mapped(convert_stream(stream_graph(graph), tmp_path / "mapped"), verify=True)
    assert mapped.fingerprint == mapped.to_graph().fingerprint
    assert (mapped.target, mapped.metric, mapped.num_classes) == (graph.target, graph.metric, graph.num_classes)
    assert torch.equal(mapped.labels, graph.labels)
    model, edges = GCN(graph.num_features, 8, graph.num_classes), edges_of(graph)
    plan = BatchSchedule(
        Sampler(mapped), mapped.train_mask.nonzero().squeeze(1), BatchSettings("random", num_parts=3), seed=0
    )
    for kept in (None, half(graph)):
        seen = edges if kept is None else Edges.from_pairs(edges.pairs[:, kept.flat()], edges.num_nodes)
        expected = NodeTask(mapped.to_graph(), seen).evaluate(model)
        assert Batched(mapped, plan, kept=kept, scratch=tmp_path).evaluate(model) == pytest.approx(
            expected, rel=1e-5, abs=1e-6
        )


def test_processes_that_have_no_run_left_send_nothing(sparse64: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, one after the other: what each would send, put together, is what one alone finds."""
    monkeypatch.setattr(layerwise, "MOST_ENTRIES", 160)
    model = GCN(sparse64.num_features, 8, sparse64.num_classes, depth=1).eval()
    layers, nodes = LayerByLayer(sparse64, adjacency_of(edges_of(sparse64))), torch.arange(60)
    runs = layers._runs(nodes, sparse64.num_features)
    assert len(runs) % 2
    sent: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        expected = layers.logits(model, nodes)  # type: ignore[arg-type]
        for rank in (0, 1):
            own = Processes(rank, 2)
            # In the end all have all rows; here those of the other are made up.
            monkeypatch.setattr(Processes, "rows", lambda self, rows: (sent[self.rank].append(rows), rows)[1])
            layers._layer(model, 0, nodes, None, own)  # type: ignore[arg-type]
    assert len(sent[0]) == len(sent[1]) == (len(runs) + 1) // 2
    assert sent[1][-1].shape[0] == 0
    found = torch.cat([rows for turn in zip(*sent, strict=True) for rows in turn])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
