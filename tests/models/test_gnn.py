from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch_geometric.nn
from torch import Tensor

from gebt.graph import Edges, Graph
from gebt.models import GCN
from gebt.sparse import SparseMatrix


def edges_of(graph: Graph) -> Edges:
    return Edges.from_pairs(graph.pairs, graph.num_nodes)


def model_of(graph: Graph, depth: int = 2, **options: float) -> GCN:
    return GCN(graph.num_features, 7, graph.num_classes, depth, **options)


@pytest.mark.parametrize("share", [1.0, 0.1], ids=["dense", "sparse"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("towards", ["pyg", "gebt"])
def test_weights_move_between_pyg_and_gebt_and_outputs_agree(
    make_graph: Callable[..., Graph], depth: int, share: float, towards: str
) -> None:
    graph = make_graph(share=share)
    assert isinstance(graph.features, SparseMatrix) == (share < 0.15)
    ours = model_of(graph, depth).eval()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = torch_geometric.nn.GCN(graph.num_features, 7, depth, graph.num_classes).eval()
        for bias in (p for p in theirs.parameters() if p.dim() == 1):
            torch.nn.init.normal_(bias)
    source, target = (ours, theirs) if towards == "pyg" else (theirs, ours)
    target.load_state_dict(source.state_dict())
    dense = graph.features.to_dense() if isinstance(graph.features, SparseMatrix) else graph.features
    both_ways = torch.cat((graph.pairs, graph.pairs.flip(0)), 1)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(graph.features, edges_of(graph)), theirs(dense, both_ways), atol=1e-5, rtol=1e-5
        )


def test_sparse_and_dense_features_give_equal_logits_and_gradients(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph(share=0.1)
    results = []
    for features in (graph.features, graph.features.to_dense()):
        model = model_of(graph).eval()
        logits = model(features, edges_of(graph))
        results.append((logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))))
    torch.testing.assert_close(*results)


def test_gates_of_one_are_no_gates(toy: Graph) -> None:
    model, edges = model_of(toy).eval(), edges_of(toy)
    gates = torch.ones(toy.num_pairs, requires_grad=True)
    assert torch.equal(model(toy.features, edges, gates), model(toy.features, edges))
    model(toy.features, edges, gates).square().sum().backward()
    assert gates.grad.any()


def test_gates_of_zero_and_one_equal_the_pruned_graph(toy: Graph) -> None:
    model, edges = model_of(toy).eval(), edges_of(toy)
    kept = torch.arange(toy.num_pairs) % 2 == 0
    torch.testing.assert_close(model(toy.features, edges, kept.float()), model(toy.features, edges.subset(kept)))


def test_a_pruned_edge_has_no_influence(toy: Graph) -> None:
    model, edges = model_of(toy, depth=1).eval(), edges_of(toy)
    source, target = toy.pairs[:, 0].tolist()
    changed = toy.features.clone()
    changed[source] += 10

    def moves(through: Edges) -> bool:
        return not torch.equal(model(toy.features, through)[target], model(changed, through)[target])

    kept = torch.arange(toy.num_pairs) != 0
    assert moves(edges)
    assert not moves(edges.subset(kept))


def test_equal_seeds_give_equal_weights_and_the_global_random_state_is_untouched() -> None:
    before = torch.random.get_rng_state()
    one, two, other = GCN(4, 3, 2, seed=7), GCN(4, 3, 2, seed=7), GCN(4, 3, 2, seed=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), atol=0, rtol=0)
    assert not torch.equal(one.convs[0].lin.weight, other.convs[0].lin.weight)
    other.reset(7)
    torch.testing.assert_close(other.state_dict(), one.state_dict(), atol=0, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_reset_replaces_every_trained_value() -> None:
    fresh, used = GCN(4, 3, 2), GCN(4, 3, 2)
    with torch.no_grad():
        for parameter in used.parameters():
            parameter.fill_(9.0)
    used.reset(0)
    torch.testing.assert_close(used.state_dict(), fresh.state_dict(), atol=0, rtol=0)


def test_weights_are_glorot_uniform_and_biases_zero() -> None:
    conv = GCN(300, 2, 100, depth=1).convs[0]
    bound = (6 / 400) ** 0.5
    assert conv.lin.weight.abs().max() <= bound
    assert float(conv.lin.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not conv.bias.any()


@pytest.mark.parametrize("share", [1.0, 0.1], ids=["dense", "sparse"])
def test_dropout_acts_in_training_only(make_graph: Callable[..., Graph], share: float) -> None:
    graph = make_graph(share=share)
    model, edges = model_of(graph, dropout=0.5), edges_of(graph)

    def run() -> Tensor:
        return model(graph.features, edges)

    with torch.random.fork_rng():
        assert not torch.equal(run(), run())
        model.eval()
        assert torch.equal(run(), run())
        assert torch.equal(model_of(graph, dropout=0.0)(graph.features, edges), run())


def test_dropout_of_features_keeps_their_mean_and_their_pattern(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph(nodes=200, features=40, share=0.1)
    model = model_of(graph, dropout=0.25)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = model._dropped(graph.features)
    assert isinstance(dropped, SparseMatrix)
    assert dropped.pattern is graph.features.pattern
    stays = dropped.values != 0
    assert float(stays.float().mean()) == pytest.approx(0.75, abs=0.05)
    torch.testing.assert_close(dropped.values[stays], graph.features.values[stays] / 0.75)


def test_relabelling_the_nodes_relabels_the_logits(toy: Graph) -> None:
    label = torch.randperm(toy.num_nodes, generator=torch.Generator().manual_seed(1))
    features = torch.empty_like(toy.features)
    features[label] = toy.features
    moved = replace(toy, pairs=label[toy.pairs], features=features)
    model = model_of(toy).eval()
    torch.testing.assert_close(
        model(moved.features, edges_of(moved))[label], model(toy.features, edges_of(toy)), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("sizes", [(0, 3, 2), (4, 0, 2), (4, 3, 0), (4, 3, 2, 0)])
def test_sizes_under_one_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"GCN sizes \(got in, hidden, out, depth = .*\), expected all at least 1"):
        GCN(*sizes)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_outside_zero_to_one_is_refused(dropout: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout \(got {dropout}\), expected 0 <= dropout < 1"):
        GCN(4, 3, 2, dropout=dropout)
