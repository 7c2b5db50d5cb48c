"""Tickets of other people's networks: found, applied to data and model, trained; what cannot be is refused by name."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.data import Data, HeteroData

import gebt
from gebt.graph import Graph
from gebt.graph.pyg_gates import layers_of
from gebt.models import GCN
from gebt.pyg import find_ticket, from_pyg, retrain, to_pyg
from gebt.recipes import baselines
from gebt.recipes.retrain import RetrainSettings
from gebt.recipes.search import search_preset
from gebt.ticket import Ticket, TicketError
from gebt.train import TrainingSettings
from tests.pretend_cuda import pretend_cuda

RATIOS = {"edge_ratio": 0.3, "weight_ratio": 0.6}
TAUGHT = dataclasses.replace(search_preset("best"), max_epochs=4)
GATED = dataclasses.replace(search_preset("early-bird"), max_epochs=4)
HIDDEN, FEATURES, CLASSES = 8, 64, 10


@pytest.fixture(scope="module")
def data(digits: Graph) -> Data:
    both = torch.cat((digits.pairs, digits.pairs.flip(0)), 1)
    order = torch.randperm(both.shape[1], generator=torch.Generator().manual_seed(0))
    edge_index = torch.cat((both[:, order], torch.tensor([[5], [5]])), 1)  # a self-loop, that no ticket prunes
    masks = {name: getattr(digits, name) for name in ("train_mask", "val_mask", "test_mask")}
    weight = torch.arange(edge_index.shape[1], dtype=torch.float)
    return Data(x=digits.features, edge_index=edge_index, y=digits.labels, edge_attr=weight.unsqueeze(1), **masks)


class Stack(nn.Module):
    """Two layers of any kind, called with x and edge_index."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first_conv, self.second_conv = first, second

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second_conv(self.first_conv(x, edge_index).relu(), edge_index)


class GymStyle(nn.Module):
    """As GraphGym designs networks: a layer before, message passing with skips and normalization, one after."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.post = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.convs = nn.ModuleList(pyg.GeneralConv(HIDDEN, HIDDEN, aggr="add") for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(HIDDEN) for _ in range(2))

    def forward(self, batch: Data) -> Tensor:
        x = self.pre(batch.x).relu()
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + norm(conv(x, batch.edge_index)).relu()
        return self.post(x)


class Own(pyg.MessagePassing):
    """One layer that a user wrote, its edges' attributes in the messages."""

    def __init__(self) -> None:
        super().__init__(aggr="add")
        self.lin, self.edge = nn.Linear(FEATURES, CLASSES), nn.Linear(1, CLASSES)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        return self.propagate(edge_index, x=self.lin(x), edge_attr=edge_attr)

    def message(self, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        return x_j * self.edge(edge_attr / 20000).sigmoid()


def build(name: str, data: Data) -> nn.Module:
    torch.manual_seed(0)
    degrees = torch.bincount(torch.bincount(data.edge_index[1]))
    pna: dict[str, Any] = {"aggregators": ["mean", "max"], "scalers": ["identity", "attenuation"], "deg": degrees}
    made = {
        "pna": lambda: Stack(pyg.PNAConv(FEATURES, HIDDEN, **pna), pyg.PNAConv(HIDDEN, CLASSES, **pna)),
        "gatv2": lambda: Stack(pyg.GATv2Conv(FEATURES, 4, heads=2), pyg.GATv2Conv(HIDDEN, CLASSES)),
        "transformer": lambda: Stack(pyg.TransformerConv(FEATURES, 4, heads=2), pyg.TransformerConv(HIDDEN, CLASSES)),
        "cached": lambda: Stack(pyg.GCNConv(FEATURES, HIDDEN, cached=True), pyg.GCNConv(HIDDEN, CLASSES, cached=True)),
        "gym": GymStyle,
        "own": Own,
    }
    return made[name]()


def logits(model: nn.Module, data: Data) -> Tensor:
    model.eval()
    given = (data,) if isinstance(model, GymStyle) else (data.x, data.edge_index)
    return model(*given, data.edge_attr) if isinstance(model, Own) else model(*given)


NAMES = ("pna", "gatv2", "transformer", "cached", "gym", "own")


@pytest.mark.parametrize("settings", [TAUGHT, GATED], ids=["taught", "gated"])
@pytest.mark.parametrize("name", NAMES)
def test_a_ticket_is_found_applied_and_trained(name: str, settings: Any, data: Data) -> None:
    model = build(name, data)
    if (name, settings) == ("pna", GATED):
        with pytest.raises(ValueError, match=r"layer 'first_conv', PNAConv\(.*use preset 'best' or 'fast'"):
            find_ticket(model, data, **RATIOS, preset=settings)
        return
    hooks = [len(layer._message_forward_hooks) for layer in layers_of(model).values()]
    ticket = find_ticket(model, data, **RATIOS, preset=settings, seed=1)
    assert [len(layer._message_forward_hooks) for layer in layers_of(model).values()] == hooks
    pairs = ticket.edge_mask.size
    assert ticket.edge_mask.kept == pairs - int(0.3 * pairs)
    assert ticket.weight_mask.kept == ticket.weight_mask.size - int(0.6 * ticket.weight_mask.size)
    assert set(ticket.weight_mask) <= set(dict(model.named_parameters()))
    assert (ticket.soft_labels is not None) == (settings is TAUGHT)
    fewer, pruned = ticket.apply(data), ticket.apply(model)
    assert fewer.edge_index.shape[1] == 2 * ticket.edge_mask.kept + 1
    few = RetrainSettings(TrainingSettings(epochs=3, learning_rate=0.01))
    trained = retrain(ticket, pruned, data, settings=few)
    hits = logits(pruned, fewer)[data.test_mask].argmax(1) == data.y[data.test_mask]
    assert trained.test_accuracy == pytest.approx(float(hits.float().mean()), abs=2e-3)
    for parameter, kept in ticket.weight_mask.items():
        assert not bool(dict(pruned.named_parameters())[parameter][~kept].any())


def network(kind: str, graph: Graph) -> nn.Module:
    torch.manual_seed(0)
    if kind == "own":
        return GCN(graph.num_features, HIDDEN, graph.num_classes, seed=0)
    return Stack(pyg.GCNConv(graph.num_features, HIDDEN), pyg.GCNConv(HIDDEN, graph.num_classes))


@pytest.mark.parametrize("settings", [TAUGHT, GATED], ids=["taught", "gated"])
@pytest.mark.parametrize("form", ["graph", "data"])
@pytest.mark.parametrize("kind", ["own", "pyg"])
def test_the_two_verbs_take_both_kinds_of_networks_and_of_graphs(
    kind: str, form: str, settings: Any, digits: Graph, data: Data
) -> None:
    model, graph = network(kind, digits), digits if form == "graph" else data
    ticket = gebt.find_ticket(model, graph, **RATIOS, preset=settings, seed=1)
    assert isinstance(ticket, Ticket)
    assert ticket.edge_mask.kept == digits.num_pairs - int(0.3 * digits.num_pairs)
    assert ticket.weight_mask.kept == ticket.weight_mask.size - int(0.6 * ticket.weight_mask.size)
    assert set(ticket.weight_mask) <= set(dict(model.named_parameters()))
    result = gebt.retrain(ticket, model, graph, settings=RetrainSettings(TrainingSettings(epochs=3)))
    assert result.edges.num_pairs == ticket.edge_mask.kept
    assert len(result.history.losses) == 3
    for parameter, kept in ticket.weight_mask.items():
        assert not bool(dict(model.named_parameters())[parameter][~kept].any())


@pytest.mark.parametrize("settings", [TAUGHT, GATED], ids=["taught", "gated"])
@pytest.mark.parametrize("kind", ["own", "pyg"])
def test_a_graph_and_its_data_have_the_same_ticket(kind: str, settings: Any, digits: Graph) -> None:
    tickets = [
        gebt.find_ticket(network(kind, digits), graph, **RATIOS, preset=settings, seed=1)
        for graph in (digits, to_pyg(digits))
    ]
    assert torch.equal(tickets[0].edge_mask.flat(), tickets[1].edge_mask.flat())
    assert torch.equal(tickets[0].weight_mask.flat(), tickets[1].weight_mask.flat())
    torch.testing.assert_close(tickets[0].state_at_draw, tickets[1].state_at_draw)


def test_a_graph_comes_back_from_its_data(digits: Graph) -> None:
    data = to_pyg(digits)
    assert data.edge_index.shape == (2, 2 * digits.num_pairs)
    assert from_pyg(data).fingerprint == digits.fingerprint
    again = to_pyg(from_pyg(data))
    assert set(again.keys()) == set(data.keys())
    assert all(torch.equal(again[key], data[key]) for key in data.keys())  # noqa: SIM118, a Data iterates pairs


def test_apply_leaves_what_it_is_given_and_aligns_edge_attributes(data: Data) -> None:
    model = build("own", data)
    ticket = find_ticket(model, data, **RATIOS, preset=TAUGHT)
    before, edges = copy.deepcopy(model.state_dict()), data.edge_index.clone()
    fewer, pruned = ticket.apply(data), ticket.apply(model)
    assert torch.equal(data.edge_index, edges)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    entry = fewer.edge_attr.squeeze(1).long()
    assert torch.equal(data.edge_index[:, entry], fewer.edge_index)
    assert [5, 5] in fewer.edge_index.t().tolist()
    reverse = {tuple(edge) for edge in fewer.edge_index.flip(0).t().tolist()}
    assert reverse == {tuple(edge) for edge in fewer.edge_index.t().tolist()}
    assert pruned is not model
    zeros = sum(int((p == 0).sum()) for name, p in pruned.named_parameters() if name in ticket.weight_mask)
    assert zeros >= int(0.6 * ticket.weight_mask.size)


def test_the_transform_reads_a_ticket_file(data: Data, tmp_path: Path) -> None:
    ticket = find_ticket(build("gatv2", data), data, **RATIOS, preset=TAUGHT)
    path = ticket.save(tmp_path / "ticket.safetensors")
    transform = gebt.ApplyTicket(path)
    assert torch.equal(transform(data).edge_index, ticket.apply(data).edge_index)
    assert repr(transform) == f"ApplyTicket({str(path)!r})"
    loaded = Ticket.load(path)
    torch.testing.assert_close(loaded.apply(build("gatv2", data)).state_dict(), ticket.state_at_draw)


def test_a_ticket_of_our_own_network_applies_to_data_of_the_same_graph_only(data: Data, digits: Graph) -> None:
    model = GCN(digits.num_features, HIDDEN, digits.num_classes, seed=0)
    ticket = baselines.random_ticket(model, digits, edge_ratio=0.5, weight_ratio=0.5)
    kept = digits.pairs[:, ticket.edge_mask["edges"]]
    found = ticket.apply(data).edge_index
    found = found[:, found[0] < found[1]]
    assert {tuple(edge) for edge in found.t().tolist()} == {tuple(edge) for edge in kept.t().tolist()}
    other = data.clone()
    other.edge_index = (data.edge_index + 1) % digits.num_nodes
    with pytest.raises(TicketError, match=r"data \(got 9929 pairs of other nodes"):
        ticket.apply(other)
    with pytest.raises(TicketError, match=r"tensor 'convs.0.bias' of the model \(got no such tensor\)"):
        ticket.apply(build("own", data))
    with pytest.raises(TicketError, match=r"data \(got HeteroData without a tensor edge_index"):
        ticket.apply(HeteroData())


def test_what_cannot_have_a_ticket_is_refused(data: Data) -> None:
    with pytest.raises(ValueError, match=r"model Sequential \(got no layer that passes messages\)"):
        find_ticket(nn.Sequential(nn.Linear(FEATURES, CLASSES)), data, **RATIOS)
    with pytest.raises(ValueError, match=r"model APPNP \(got no trainable matrix\)"):
        find_ticket(pyg.APPNP(2, 0.1), data, **RATIOS)
    hetero = HeteroData()
    hetero["author"].x = torch.zeros(2, 1)
    with pytest.raises(ValueError, match=r"data \(got HeteroData of node types \['author'\]\), expected one type"):
        find_ticket(build("gatv2", data), hetero, **RATIOS)
    bare = Data(**{key: value for key, value in data if key != "edge_attr"})
    with pytest.raises(ValueError, match=r"forward of Own \(got no 'edge_attr' in the data\)"):
        find_ticket(build("own", data), bare, **RATIOS, preset=TAUGHT)
    flat = lambda model, own: model(own.x, own.edge_index).sum(1)  # noqa: E731
    with pytest.raises(ValueError, match=r"output of Stack \(got \(1797,\)\), expected logits"):
        find_ticket(build("gatv2", data), data, **RATIOS, preset=TAUGHT, call=flat)


@pytest.mark.parametrize("moved", ["model", "data", "x"])
def test_tensors_of_two_devices_are_refused(moved: str) -> None:
    with pretend_cuda():
        graph = gebt.load_graph("digits")
        model, data = gebt.models.GCN(graph.num_features, 4, graph.num_classes), to_pyg(graph)
        if moved == "x":
            data.x = data.x.to("cuda")
        else:
            model, data = (model.to("cuda"), data) if moved == "model" else (model, data.to("cuda"))
        with pytest.raises(ValueError, match=r"devices \(got the data's x on .*, the .* on .*\), expected one"):
            gebt.find_ticket(model, data, edge_ratio=0.2, weight_ratio=0.5)
