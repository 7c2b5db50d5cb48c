from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor

from gebt.graph import Edges, Graph
from gebt.models import GCN, gnn
from gebt.models.convs import GCNConv
from gebt.models.linear import SparseLinear
from gebt.sparse import SparseMatrix


def edges_of(graph: Graph) -> Edges:
    return Edges.from_pairs(graph.pairs, graph.num_nodes)


def model_of(graph: Graph, depth: int = 2, **options: Any) -> GCN:
    return GCN(graph.num_features, 7, graph.num_classes, depth, **options)


def of_pyg(graph: Graph, depth: int, norm: str | None) -> torch_geometric.nn.GCN:
    """PyG's network with every number, also statistics, away from where it starts."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = torch_geometric.nn.GCN(
            graph.num_features, 7, depth, graph.num_classes, norm="batch_norm" if norm else None
        )
        for tensor in (t for t in model.state_dict().values() if t.dim() == 1):
            torch.nn.init.uniform_(tensor, 0.5, 2.0)
    return model


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("share", [1.0, 0.1], ids=["dense", "sparse"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("towards", ["pyg", "gebt"])
def test_weights_move_between_pyg_and_gebt_and_outputs_agree(
    make_graph: Callable[..., Graph], depth: int, share: float, towards: str, norm: Any
) -> None:
    graph = make_graph(share=share)
    assert isinstance(graph.features, SparseMatrix) == (share < 0.15)
    ours = model_of(graph, depth, norm=norm).eval()
    theirs = of_pyg(graph, depth, norm).eval()
    source, target = (ours, theirs) if towards == "pyg" else (theirs, ours)
    target.load_state_dict(source.state_dict())
    dense = graph.features.to_dense() if isinstance(graph.features, SparseMatrix) else graph.features
    both_ways = torch.cat((graph.pairs, graph.pairs.flip(0)), 1)
    with torch.no_grad():
        torch.testing.assert_close(
            ours(graph.features, edges_of(graph)), theirs(dense, both_ways), atol=1e-5, rtol=1e-5
        )


def test_training_with_batch_norm_is_that_of_pyg_statistics_and_all(toy: Graph) -> None:
    ours, theirs = model_of(toy, 3, norm="batch", dropout=0.0), of_pyg(toy, 3, "batch")
    ours.load_state_dict(theirs.state_dict())
    both_ways = torch.cat((toy.pairs, toy.pairs.flip(0)), 1)
    for _ in range(2):
        outputs = ours(toy.features, edges_of(toy)), theirs(toy.features, both_ways)
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    grads = [
        dict(zip(dict(m.named_parameters()), g, strict=True))
        for m, g in zip(
            (ours, theirs),
            (
                torch.autograd.grad(out.square().sum(), list(m.parameters()))
                for out, m in zip(outputs, (ours, theirs), strict=True)
            ),
            strict=True,
        )
    ]
    for name in ("convs.0.bias", "convs.1.bias"):  # before a normalization: rounding in PyG, exact zeros here
        assert not grads[0].pop(name).any()
        del grads[1][name]
    torch.testing.assert_close(*grads, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()), atol=1e-5, rtol=1e-5)
    assert int(ours.norms[0].module.num_batches_tracked) == int(theirs.norms[0].module.num_batches_tracked)


def by_hand(model: GCN, graph: Graph) -> Tensor:
    """Logits from the equation in the class's docstring, in double, dense, without dropout."""
    state = {name: tensor.double() for name, tensor in model.state_dict().items()}
    edges = edges_of(graph)
    through = SparseMatrix(edges.pattern, edges.normalized(torch.ones(graph.num_pairs).double())).to_dense()
    x = graph.features.double()
    for number in range(len(model.convs)):
        y = through @ x @ state[f"convs.{number}.lin.weight"].t() + state[f"convs.{number}.bias"]
        if number == len(model.convs) - 1:
            return y
        if model.norms is not None:
            mean, var, scale, shift = (
                state[f"norms.{number}.module.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
            )
            y = (y - mean) / (var + 1e-5).sqrt() * scale + shift
        y = y.relu()
        x = y + x if model.residual and number else y
    raise AssertionError


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("residual", [False, True])
def test_outputs_are_those_of_the_equation(toy: Graph, depth: int, norm: Any, residual: bool) -> None:
    model = model_of(toy, depth, norm=norm, residual=residual).eval()
    generator = torch.Generator().manual_seed(2)
    for tensor in (t for t in model.state_dict().values() if t.dim() == 1):
        tensor.uniform_(0.5, 2.0, generator=generator)
    expected = by_hand(model, toy)
    torch.testing.assert_close(model(toy.features, edges_of(toy)).double(), expected, atol=1e-5, rtol=1e-5)


def test_hidden_layers_may_have_widths_of_their_own(toy: Graph) -> None:
    model = GCN(toy.num_features, [9, 4, 6], toy.num_classes, norm="batch").eval()
    assert model.widths == [toy.num_features, 9, 4, 6, toy.num_classes]
    assert [norm.module.num_features for norm in model.norms] == [9, 4, 6]
    torch.testing.assert_close(model(toy.features, edges_of(toy)).double(), by_hand(model, toy), atol=1e-5, rtol=1e-5)
    assert GCN(4, [], 2).widths == [4, 2]
    equal = GCN(4, 5, 2, depth=3, seed=1).state_dict()
    torch.testing.assert_close(GCN(4, [5, 5], 2, seed=1).state_dict(), equal, atol=0, rtol=0)


def test_input_dropout_is_the_rate_of_the_features_alone(toy: Graph) -> None:
    edges = edges_of(toy)

    def drawn(**rates: Any) -> tuple[bool, bool]:
        """Whether features and hidden units are dropped."""
        model, seen = model_of(toy, **rates), []
        for conv in model.convs:
            conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.random.fork_rng():
            model(toy.features, edges)
            model.eval()(toy.features, edges)
        return not torch.equal(seen[0], seen[2]), not torch.allclose(seen[1], seen[3])

    assert drawn(dropout=0.0, input_dropout=0.5) == (True, True)
    assert drawn(dropout=0.5, input_dropout=0.0) == (False, True)
    assert drawn(dropout=0.0) == drawn(dropout=0.0, input_dropout=0.0) == (False, False)
    assert model_of(toy, dropout=0.4).input_dropout == 0.4


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_either_order_of_a_layers_two_products_gives_equal_outputs_and_gradients(
    toy: Graph, depth: int, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for narrow_first in (True, False):
        monkeypatch.setattr(GCNConv, "_narrow_first", lambda *_, chosen=narrow_first: chosen)
        model = model_of(toy, depth, dropout=0.0).double()
        for parameter in model.parameters():
            parameter.requires_grad_(trained)
        gates = (torch.arange(toy.num_pairs).double() / toy.num_pairs + 0.1).requires_grad_()
        features = toy.features.double().requires_grad_()
        logits = model(features, edges_of(toy), gates)
        wanted = [gates, features, *(p for p in model.parameters() if trained)]
        found.append((logits, torch.autograd.grad(logits.square().sum(), wanted)))
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense weights", "sparse weights"])
@pytest.mark.parametrize(
    ("sizes", "back_to_x", "trained", "first"),
    [
        # A X: in columns, twice with a gradient to x. A (X W): out columns, twice with a gradient to anything.
        ((4, 5), None, True, True),
        ((5, 4), None, True, False),
        ((7, 4), False, True, True),
        ((8, 4), False, True, False),
        ((7, 4), True, True, False),
        ((4, 5), True, True, True),
        ((4, 5), False, False, True),
        ((5, 4), False, False, False),
        ((4, 5), True, False, True),
    ],
)
def test_the_order_with_fewer_columns_through_the_graph_is_taken(
    toy: Graph, sizes: tuple[int, int], back_to_x: bool | None, trained: bool, first: bool, sparse: bool
) -> None:
    """`back_to_x` None: no gradient is wanted at all."""
    conv = GCN(sizes[0], 1, sizes[1], depth=1).convs[0]
    if sparse:
        conv.lin = SparseLinear(conv.lin.weight, torch.ones(sizes[1], sizes[0], dtype=torch.bool))
    for parameter in conv.parameters():
        parameter.requires_grad_(trained)
    edges, seen = edges_of(toy), []
    object.__setattr__(edges, "propagate", lambda weights, x: seen.append(x.shape[1]) or x)
    with torch.set_grad_enabled(back_to_x is not None):
        conv(torch.rand(toy.num_nodes, sizes[0], requires_grad=bool(back_to_x)), edges, edges.unit_weights)
    assert seen == [sizes[0] if first else sizes[1]]


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


def test_with_gates_the_features_are_not_taken_as_aggregated(toy: Graph) -> None:
    model, edges = model_of(toy).eval(), edges_of(toy)
    gates = torch.linspace(0.1, 1.0, toy.num_pairs)
    aggregated = edges.propagate(edges.unit_weights, toy.features)
    assert torch.equal(model(toy.features, edges, gates, aggregated), model(toy.features, edges, gates))
    assert not torch.equal(model(toy.features, edges, None, aggregated), model(toy.features, edges, gates))


def test_gates_of_zero_and_one_equal_the_pruned_graph(toy: Graph) -> None:
    model, edges = model_of(toy).eval(), edges_of(toy)
    kept = torch.arange(toy.num_pairs) % 2 == 0
    torch.testing.assert_close(
        model(toy.features, edges, kept.float()),
        model(toy.features, Edges.from_pairs(edges.pairs[:, kept], edges.num_nodes)),
    )


def test_a_pruned_edge_has_no_influence(toy: Graph) -> None:
    model, edges = model_of(toy, depth=1).eval(), edges_of(toy)
    source, target = toy.pairs[:, 0].tolist()
    changed = toy.features.clone()
    changed[source] += 10

    def moves(through: Edges) -> bool:
        return not torch.equal(model(toy.features, through)[target], model(changed, through)[target])

    kept = torch.arange(toy.num_pairs) != 0
    assert moves(edges)
    assert not moves(Edges.from_pairs(edges.pairs[:, kept], edges.num_nodes))


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
        dropped = gnn.dropped(graph.features, model.input_dropout, True)
    assert isinstance(dropped, SparseMatrix)
    assert dropped.pattern is graph.features.pattern
    stays = dropped.values != 0
    assert float(stays.float().mean()) == pytest.approx(0.75, abs=0.05)
    torch.testing.assert_close(dropped.values[stays], graph.features.values[stays] / 0.75)


def test_relabeling_the_nodes_relabels_the_logits(toy: Graph) -> None:
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


def test_options_that_make_no_network_are_refused() -> None:
    with pytest.raises(ValueError, match=r"norm \(got 'layer'\), expected 'batch' or None"):
        GCN(4, 3, 2, norm="layer")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"residual network \(got widths \[3, 5\]\), expected one width for all hidden"
    ):
        GCN(4, [3, 5], 2, residual=True)
    with pytest.raises(ValueError, match=r"dropout \(got 1.0\), expected 0 <= dropout < 1"):
        GCN(4, 3, 2, input_dropout=1.0)
