"""Soft edge values in PyG's own layers: 0 is no edge, 1 is no hook, and inexact layers are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import nn as pyg
from torch_geometric.utils import scatter, softmax

from gebt.graph.pyg_gates import PairIndex, PygEdgeGates, layers_of, uncached

NODES, WIDTH = 12, 6


def ring(chords: int = 9) -> Tensor:
    """Pairs [2, P] of a ring with some chords, each once, smaller node first, in order."""
    generator = torch.Generator().manual_seed(3)
    keys = {(min(i, (i + 1) % NODES), max(i, (i + 1) % NODES)) for i in range(NODES)}
    while len(keys) < NODES + chords:
        u, v = sorted(torch.randint(NODES, (2,), generator=generator).tolist())
        if u != v:
            keys.add((u, v))
    return torch.tensor(sorted(keys)).t()


PAIRS = ring()
BOTH = torch.cat((PAIRS, PAIRS.flip(0)), 1)
EDGE_INDEX = BOTH[:, torch.randperm(BOTH.shape[1], generator=torch.Generator().manual_seed(0))]
X = torch.randn(NODES, WIDTH, generator=torch.Generator().manual_seed(1))


class OwnLayer(pyg.MessagePassing):
    """A user's layer: attention by PyG's softmax inside message, and a mean of edge differences."""

    def __init__(self) -> None:
        super().__init__(aggr="sum")
        self.lin = nn.Linear(2 * WIDTH, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)

    def message(self, x_i: Tensor, x_j: Tensor, index: Tensor, size_i: int) -> Tensor:
        return softmax(self.lin(torch.cat((x_i, x_j), 1)), index, num_nodes=size_i) * (x_j - x_i)


class Counting(pyg.MessagePassing):
    """A user's layer that divides by the number of edges behind everybody's back."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        degree = scatter(torch.ones(edge_index.shape[1]), edge_index[1], dim_size=len(x)).clamp(min=1)
        return self.propagate(edge_index, x=x) / degree.unsqueeze(1)


def exact_layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    return {
        "gcn": pyg.GCNConv(WIDTH, WIDTH),
        "gcn-plain": pyg.GCNConv(WIDTH, WIDTH, normalize=False),
        "graph-mean": pyg.GraphConv(WIDTH, WIDTH, aggr="mean"),
        "gin": pyg.GINConv(mlp),
        "sage": pyg.SAGEConv(WIDTH, WIDTH),
        "gat": pyg.GATConv(WIDTH, 2, heads=3),
        "gatv2": pyg.GATv2Conv(WIDTH, 2, heads=3),
        "transformer": pyg.TransformerConv(WIDTH, 2, heads=3, beta=True),
        "tag": pyg.TAGConv(WIDTH, WIDTH, K=2),
        "sg": pyg.SGConv(WIDTH, WIDTH, K=2),
        "appnp": pyg.APPNP(3, 0.1),
        "general": pyg.GENConv(WIDTH, WIDTH, aggr="softmax"),
        "own": OwnLayer(),
    }


class Alone(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index)


def without(kept: Tensor) -> Tensor:
    ids = PairIndex(PAIRS, NODES).of(EDGE_INDEX)
    return EDGE_INDEX[:, kept[ids]]


@pytest.mark.parametrize("name", exact_layers())
def test_a_value_of_zero_is_no_edge_and_one_is_no_hook(name: str) -> None:
    model = Alone(exact_layers()[name]).eval()
    kept = torch.rand(PAIRS.shape[1], generator=torch.Generator().manual_seed(5)) < 0.4
    plain, removed = model(X, EDGE_INDEX), model(X, without(kept))
    with PygEdgeGates(model, PairIndex(PAIRS, NODES)) as gates:
        gates.find_entry_points(lambda: model(X, EDGE_INDEX), torch.Generator().manual_seed(0))
        for values, expected in ((kept.float(), removed), (torch.ones(len(kept)), plain), (None, plain)):
            gates.values = values
            torch.testing.assert_close(model(X, EDGE_INDEX), expected, atol=1e-5, rtol=1e-4)
        values = torch.ones(len(kept), requires_grad=True)
        gates.values = values
        model(X, EDGE_INDEX).square().sum().backward()
        assert values.grad is not None
        assert float(values.grad.abs().min()) > 0
        gates.values = kept.float()
    torch.testing.assert_close(model(X, EDGE_INDEX), plain)


@pytest.mark.parametrize("name", ["gcn", "sage", "gatv2", "transformer", "own"])
def test_the_gradient_to_a_soft_value_is_that_of_the_difference(name: str) -> None:
    model = Alone(exact_layers()[name]).double().eval()
    values = torch.rand(PAIRS.shape[1], dtype=torch.float64).add_(0.5).requires_grad_()
    with PygEdgeGates(model, PairIndex(PAIRS, NODES)) as gates:
        gates.find_entry_points(lambda: model(X.double(), EDGE_INDEX), torch.Generator().manual_seed(0))

        def forward(own: Tensor) -> Tensor:
            gates.values = own
            return model(X.double(), EDGE_INDEX)

        assert torch.autograd.gradcheck(forward, (values,))


def inexact_layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    degrees = torch.bincount(torch.bincount(EDGE_INDEX[1], minlength=NODES))
    kinds: dict[str, Any] = {"aggregators": ["mean", "max", "std"], "scalers": ["identity", "amplification"]}
    return {
        "PNAConv": pyg.PNAConv(WIDTH, WIDTH, deg=degrees, **kinds),
        "SAGEConv": pyg.SAGEConv(WIDTH, WIDTH, aggr="max"),
        "Counting": Counting(),
    }


@pytest.mark.parametrize("name", inexact_layers())
def test_a_layer_in_which_soft_values_are_not_exact_is_refused_by_name(name: str) -> None:
    model = nn.Module()
    model.first, model.second = pyg.GCNConv(WIDTH, WIDTH), inexact_layers()[name]
    model.eval()
    message = rf"layer 'second', {name}\(.* expected none: soft edge values are not exact"
    forward, generator = lambda: model.second(model.first(X, EDGE_INDEX), EDGE_INDEX), torch.Generator().manual_seed(0)
    with PygEdgeGates(model, PairIndex(PAIRS, NODES)) as gates, pytest.raises(ValueError, match=message):
        gates.find_entry_points(forward, generator)


def hooks_of(model: nn.Module) -> list[int]:
    return [
        len(getattr(layer, name))
        for layer in layers_of(model).values()
        for name in vars(layer)
        if name.endswith("_hooks")
    ]


def test_the_model_is_restored_also_after_an_exception() -> None:
    from torch_geometric.nn.conv import gatv2_conv

    model = Alone(pyg.GATv2Conv(WIDTH, 2)).eval()
    before = hooks_of(model)

    def fail() -> None:
        with PygEdgeGates(model, PairIndex(PAIRS, NODES)):
            assert gatv2_conv.softmax is not softmax
            assert hooks_of(model) != before
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert gatv2_conv.softmax is softmax
    assert hooks_of(model) == before


def test_caches_are_set_aside_and_come_back() -> None:
    model = Alone(pyg.GCNConv(WIDTH, WIDTH, cached=True)).eval()
    model(X, EDGE_INDEX)
    cached, kept = model.conv._cached_edge_index, torch.arange(PAIRS.shape[1]) % 2 == 0
    with uncached(model):
        fewer = model(X, without(kept))
        assert model.conv._cached_edge_index is None
    assert model.conv._cached_edge_index is cached
    assert model.conv.cached
    fresh = Alone(pyg.GCNConv(WIDTH, WIDTH)).eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fewer, fresh(X, without(kept)))


def test_edges_are_found_in_any_order_and_strange_ones_are_named() -> None:
    index = PairIndex(PAIRS, NODES)
    ids = index.of(EDGE_INDEX)
    assert torch.equal(PAIRS[:, ids], torch.stack((EDGE_INDEX.amin(0), EDGE_INDEX.amax(0))))
    assert index.of(torch.tensor([[4], [4]])).tolist() == [-1]
    missing = next((0, v) for v in range(1, NODES) if not bool((PAIRS.t() == torch.tensor([0, v])).all(1).any()))
    with pytest.raises(ValueError, match=rf"edge \(0, {missing[1]}\) \(got one that the graph lacks\)"):
        index.of(torch.tensor([[0], [missing[1]]]))


def test_a_model_without_message_passing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model Linear \(got no layer that passes messages\)"):
        layers_of(nn.Linear(2, 2))
