"""Trainings on a device: recorded as plain, as on the CPU, the same again, and how often they wait."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gebt.graph import Graph, hold_out_links
from gebt.models import GAT, GCN, ResGCN
from gebt.models.links import LinkPredictor
from gebt.recipes.search import joint, search_preset
from gebt.ticket import Ticket
from gebt.train.loop import TrainingSettings, adam, fit
from gebt.train.tasks import task_for
from tests import pretend_cuda

SETTINGS = TrainingSettings(epochs=30)
# Sums over edges are added in no fixed order on a device: a few entries of a mask may come out differently.
MOST_DIFFERING = 0.001


def gcn(graph: Graph) -> nn.Module:
    return GCN(graph.num_features, 8, graph.num_classes, seed=0)


NETWORKS: dict[str, Callable[[Graph], nn.Module]] = {
    "gcn": gcn,
    "gat": lambda graph: GAT(graph.num_features, 8, graph.num_classes, heads=2, seed=0),
    "resgcn": lambda graph: ResGCN(graph.num_features, 8, graph.num_classes, depth=2, seed=0),
    "links": lambda graph: LinkPredictor(GCN(graph.num_features, 8, 6, seed=0), 8, seed=0),
}


def graph_of(place: str, make_graph: Any, name: str = "gcn") -> Graph:
    """Larger on a real device."""
    graph = make_graph(nodes=200 if place == "cuda" else 40)
    return hold_out_links(graph) if name == "links" else graph


def losses(graph: Graph, model: nn.Module, epochs: int, *, replay: bool) -> list[float]:
    torch.manual_seed(0)
    return fit(model.to("cuda"), task_for(graph.to("cuda")), [adam(model, SETTINGS)], epochs, replay=replay).losses


def searched(graph: Graph, device: str, preset: str, epochs: int, dropout: float = 0.5, **more: Any) -> Ticket:
    settings = dataclasses.replace(search_preset(preset), max_epochs=epochs)
    model = GCN(graph.num_features, 8, graph.num_classes, dropout=dropout, seed=0).to(device)
    return joint(model, graph.to(device), edge_ratio=0.3, weight_ratio=0.5, settings=settings, **more)


def differing(one: Ticket, other: Ticket) -> float:
    """Share of the mask entries that differ."""
    names = [("edges", one.edge_mask, other.edge_mask)]
    names += [(name, one.weight_mask, other.weight_mask) for name in one.weight_mask]
    pairs = [(first[name].cpu(), second[name].cpu()) for name, first, second in names]
    return sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "links"])
def test_a_recorded_training_is_the_plain_one(name: str, place: str, make_graph: Any) -> None:
    graph, epochs = graph_of(place, make_graph, name), 30 if place == "cuda" else 8
    plain, recorded = (losses(graph, NETWORKS[name](graph), epochs, replay=replay) for replay in (False, True))
    assert recorded == pytest.approx(plain, rel=1e-4 if place == "cuda" else 1e-6)


@pytest.mark.parametrize("preset", ["paper", "early-bird"])
def test_a_recorded_search_is_the_plain_one(
    preset: str, place: str, make_graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, epochs = graph_of(place, make_graph), 30 if place == "cuda" else 8
    recorded = searched(graph, "cuda", preset, epochs)
    monkeypatch.setattr("gebt.train.loop.replays", lambda *_: False)
    plain = searched(graph, "cuda", preset, epochs)
    assert recorded.epoch_drawn == plain.epoch_drawn
    assert differing(recorded, plain) <= (MOST_DIFFERING if place == "cuda" else 0.0)


@pytest.mark.parametrize("name", ["gcn", "links"])
def test_losses_are_those_of_the_cpu(name: str, place: str, make_graph: Any) -> None:
    graph, epochs = graph_of(place, make_graph, name), 50 if place == "cuda" else 8

    def model() -> nn.Module:
        encoder = GCN(graph.num_features, 8, 6 if name == "links" else graph.num_classes, dropout=0.0, seed=0)
        return LinkPredictor(encoder, 8, seed=0) if name == "links" else encoder

    on_device = losses(graph, model(), epochs, replay=True)
    own = model()
    torch.manual_seed(0)
    on_cpu = fit(own, task_for(graph), [adam(own, SETTINGS)], epochs).losses
    # Other random pairs are drawn for the links of a device.
    assert on_device[:1] == pytest.approx(on_cpu[:1], rel=0.2 if name == "links" else 1e-5)
    if name != "links":
        assert on_device == pytest.approx(on_cpu, rel=1e-4)


@pytest.mark.parametrize("preset", ["paper", "early-bird"])
def test_a_search_finds_the_ticket_of_the_cpu(preset: str, place: str, make_graph: Any) -> None:
    graph, epochs = graph_of(place, make_graph), 100 if place == "cuda" else 10
    on_device, on_cpu = (searched(graph, device, preset, epochs, dropout=0.0) for device in ("cuda", "cpu"))
    assert on_device.epoch_drawn == on_cpu.epoch_drawn
    assert on_device.fired == on_cpu.fired
    assert differing(on_device, on_cpu) <= MOST_DIFFERING


def test_the_same_search_twice(place: str, make_graph: Any) -> None:
    graph, epochs = graph_of(place, make_graph), 30 if place == "cuda" else 6
    one, other = (searched(graph, "cuda", "early-bird", epochs) for _ in "ab")
    assert one.epoch_drawn == other.epoch_drawn
    assert differing(one, other) <= (MOST_DIFFERING if place == "cuda" else 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("what", "most"), [("dense", 1), ("paper", 4), ("early-bird", 4)])
def test_how_often_an_epoch_waits(what: str, most: int, make_graph: Any) -> None:
    """`tests/recipes/test_search_waits.py` counts two a search epoch on the pretend device."""
    graph, counts = make_graph(nodes=200).to("cuda"), []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def after_epoch(*_: Any) -> bool:
            counts.append(sum("synchronizing" in str(warning.message) for warning in caught))
            return False

        torch.cuda.set_sync_debug_mode("warn")
        try:
            if what == "dense":
                model = gcn(graph).to("cuda")
                fit(model, task_for(graph), [adam(model, SETTINGS)], 20, on_epoch=after_epoch, replay=True)
            else:
                searched(graph, "cuda", what, 20, on_epoch=after_epoch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # The best epoch so far copies the state of the model: no wait either.
    assert max(after - before for before, after in itertools.pairwise(counts[10:])) <= most


def test_a_dense_epoch_waits_once_on_the_pretend_device(make_graph: Any) -> None:
    graph, counts = make_graph(nodes=40), []
    with pretend_cuda.pretend_cuda() as device:
        on_device = graph.to("cuda")
        model = gcn(graph).to("cuda")

        def after_epoch(*_: Any) -> bool:
            counts.append(sum(device.waits.values()))
            return False

        fit(model, task_for(on_device), [adam(model, SETTINGS)], 9, on_epoch=after_epoch, replay=True)
    assert [after - before for before, after in itertools.pairwise(counts[5:])] == [1, 1, 1]
    assert device.recordings == 1
