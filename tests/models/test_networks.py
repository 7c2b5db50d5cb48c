"""GAT, GIN, GraphSAGE and ResGCN beside PyG's, and a pruned edge that is really gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gebt.graph import Edges, Graph, canonical_graph
from gebt.models import GAT, GCN, GIN, GraphSAGE, ResGCN
from gebt.models.attention import row_softmax
from gebt.models.gnn import GNN
from gebt.prune.scores import prunable_weights
from gebt.sparse import SparseMatrix
from gebt.sparse.pattern import Pattern

HIDDEN, HEADS = 8, 4
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "gcn": GCN,
    "gat": lambda *sizes, **options: GAT(*sizes, heads=HEADS, **options),
    "gin": GIN,
    "sage": GraphSAGE,
    "softmax": lambda *sizes, **options: ResGCN(*sizes, aggregation="softmax", temperature=0.7, **options),
    "mean": lambda *sizes, **options: ResGCN(*sizes, aggregation="mean", **options),
    "add": lambda *sizes, **options: ResGCN(*sizes, aggregation="add", **options),
}


@pytest.fixture(params=list(NETWORKS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def edges_of(graph: Graph) -> Edges:
    return Edges.from_pairs(graph.pairs, graph.num_nodes)


def network(kind: str, graph: Graph, depth: int = 2, **options: Any) -> Any:
    return NETWORKS[kind](graph.num_features, HIDDEN, graph.num_classes, depth, **options)


class PygResGCN(nn.Module):
    """The network of PyG's DeeperGCN example."""

    def __init__(self, features: int, classes: int, depth: int, aggregation: str) -> None:
        super().__init__()
        self.node_encoder = nn.Linear(features, HIDDEN)
        temperature = {"t": 0.7} if aggregation == "softmax" else {}
        self.layers = nn.ModuleList(
            pyg.DeepGCNLayer(
                pyg.GENConv(HIDDEN, HIDDEN, aggr=aggregation, **temperature), nn.BatchNorm1d(HIDDEN), nn.ReLU()
            )
            for _ in range(depth)
        )
        self.lin = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.layers[0].conv(self.node_encoder(x), edge_index)
        for layer in self.layers[1:]:
            x = layer(x, edge_index)
        return self.lin(self.layers[0].act(self.layers[0].norm(x)))


def of_pyg(kind: str, graph: Graph, depth: int, norm: str | None) -> nn.Module:
    """PyG's network with every vector, also statistics and eps, away from where it starts."""
    sizes = (graph.num_features, HIDDEN, depth, graph.num_classes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind in ("softmax", "mean", "add"):
            model: nn.Module = PygResGCN(graph.num_features, graph.num_classes, depth, kind)
        else:
            name, more = {
                "gcn": ("GCN", {}), "gat": ("GAT", {"heads": HEADS}), "gin": ("GIN", {}), "sage": ("GraphSAGE", {})
            }[kind]  # fmt: skip
            model = getattr(pyg, name)(*sizes, norm="batch_norm" if norm else None, **more)
        for tensor in (t for t in model.state_dict().values() if t.dim() == 1):
            nn.init.uniform_(tensor, 0.5, 2.0)
    return model


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize("share", [1.0, 0.1], ids=["dense", "sparse"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_weights_of_pyg_give_its_outputs(
    make_graph: Callable[..., Graph], kind: str, depth: int, share: float, norm: str | None
) -> None:
    if norm and kind not in ("gcn", "gat", "sage"):
        pytest.skip("norm is part of ResGCN, and of GIN's MLPs in PyG")
    graph = make_graph(share=share)
    theirs = of_pyg(kind, graph, depth, norm).eval()
    ours = network(kind, graph, depth, **({"norm": norm} if norm else {})).eval()
    ours.load_state_dict(theirs.state_dict())
    dense = graph.features.to_dense() if isinstance(graph.features, SparseMatrix) else graph.features
    both_ways = torch.cat((graph.pairs, graph.pairs.flip(0)), 1)
    with torch.no_grad():
        expected = theirs(dense, both_ways)
        torch.testing.assert_close(ours(graph.features, edges_of(graph)), expected, atol=1e-5, rtol=1e-5)
        theirs.load_state_dict(ours.state_dict())
        assert torch.equal(theirs(dense, both_ways), expected)


def test_a_bias_before_a_normalization_is_added_and_has_a_gradient_of_exact_zeros(toy: Graph, kind: str) -> None:
    if kind not in ("gcn", "gat", "gin", "sage"):
        pytest.skip("the normalizations of a ResGCN do not follow its biases")
    model = network(kind, toy, 3, norm="batch", dropout=0.0).train()
    plain = copy.deepcopy(model)
    biases = [conv.biased.bias for conv in model.convs]
    for conv in plain.convs:
        conv.biased.normed = False
    for bias, twin in zip(biases, (conv.biased.bias for conv in plain.convs), strict=True):
        with torch.no_grad():
            bias.copy_(torch.linspace(-1, 1, len(bias)))
            twin.copy_(bias)
    logits = model(toy.features, edges_of(toy))
    assert torch.equal(logits, plain(toy.features, edges_of(toy)))
    logits.square().sum().backward()
    assert not any(bias.grad.any() for bias in biases[:-1])
    assert biases[-1].grad.all()


def test_gates_of_one_are_no_gates(toy: Graph, kind: str) -> None:
    model, edges = network(kind, toy).eval(), edges_of(toy)
    gates = torch.ones(toy.num_pairs, requires_grad=True)
    logits = model(toy.features, edges, gates)
    torch.testing.assert_close(logits, model(toy.features, edges), atol=1e-6, rtol=1e-6)
    logits.square().sum().backward()
    assert gates.grad is not None
    assert gates.grad.all()


def test_gates_of_zero_and_one_equal_the_pruned_graph(toy: Graph, kind: str) -> None:
    model, edges = network(kind, toy, 3).eval(), edges_of(toy)
    kept = torch.arange(toy.num_pairs) % 3 == 0
    hard = model(toy.features, Edges.from_pairs(edges.pairs[:, kept], edges.num_nodes))
    torch.testing.assert_close(model(toy.features, edges, kept.float()), hard, atol=1e-5, rtol=1e-5)


def test_a_pruned_edge_has_no_influence(toy: Graph, kind: str) -> None:
    model, edges = network(kind, toy, 1).eval(), edges_of(toy)
    source, target = toy.pairs[:, 0].tolist()
    changed = toy.features.clone()
    changed[source] += 10

    def moves(through: Edges) -> bool:
        # Softmax aggregation shifts by the highest of all nodes: that rounds, and moves nothing else.
        return not torch.allclose(model(toy.features, through)[target], model(changed, through)[target], atol=1e-6)

    assert moves(edges)
    assert not moves(Edges.from_pairs(edges.pairs[:, torch.arange(toy.num_pairs) != 0], edges.num_nodes))


def test_the_gradient_of_the_gates_is_that_of_finite_differences(
    double: None, make_graph: Callable[..., Graph], kind: str
) -> None:
    graph = make_graph(nodes=7, features=3)
    features = graph.features.double()
    model, edges = network(kind, graph).eval(), edges_of(graph)
    gates = torch.linspace(0.4, 1.3, graph.num_pairs, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: model(features, edges, values), gates)


def test_the_gradients_of_the_weights_are_those_of_finite_differences(
    double: None, make_graph: Callable[..., Graph], kind: str
) -> None:
    graph = make_graph(nodes=7, features=3)
    features = graph.features.double()
    model, edges = network(kind, graph).eval(), edges_of(graph)
    names = [name for name, _ in model.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())

    def logits(*given: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, given, strict=True)), (features, edges))

    assert torch.autograd.gradcheck(logits, values)


class Largest(TorchDispatchMode):
    """Notes the most entries that any tensor an operation returns has."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
            self.entries = max(self.entries, tensor.numel())
        return out


def test_no_tensor_has_an_entry_for_every_edge_and_channel(kind: str) -> None:
    nodes, hidden = 60, 64
    edge_index = torch.ones(nodes, nodes).triu(1).nonzero().t()
    edge_index = torch.cat((edge_index, edge_index.flip(0)), 1)
    part = torch.arange(nodes) % 3
    split = (part == 0, part == 1, part == 2)
    graph = canonical_graph("full", edge_index, torch.rand(nodes, 16), part, split)
    model, edges = NETWORKS[kind](16, hidden, 3, 2), edges_of(graph)
    gates = torch.ones(graph.num_pairs, requires_grad=True)
    with Largest() as seen:
        model(graph.features, edges, gates).sum().backward()
    assert edges.pattern.nnz <= seen.entries < edges.pattern.nnz * hidden / 4


@pytest.mark.parametrize("weighted", [False, True])
def test_row_softmax_is_the_dense_formula_and_its_gradient(double: None, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(6, 5, generator=generator) < 0.5
    dense[2] = False  # a row without entries
    row, col = dense.nonzero(as_tuple=True)
    pattern, _ = Pattern.from_entries(row, col, (6, 5))
    to, of = (4 * torch.randn(size, 3, generator=generator).requires_grad_() for size in (6, 5))
    weights = torch.rand(pattern.nnz, generator=generator).requires_grad_() if weighted else None
    alpha = row_softmax(pattern, to, of, 0.2, weights)
    scores = nn.functional.leaky_relu(to[:, None] + of[None], 0.2).exp()
    full = torch.zeros(6, 5)
    full[row, col] = 1.0
    if weights is not None:
        full = full.index_put((row, col), weights)
    share = scores * full[..., None]
    total = share.sum(1, keepdim=True).masked_fill(~dense.any(1)[:, None, None], 1.0)
    expected = (share / total)[row, col]
    torch.testing.assert_close(alpha, expected)
    wanted = [to, of, *([weights] if weights is not None else [])]
    grad = torch.randn(alpha.shape, generator=generator)
    torch.testing.assert_close(
        torch.autograd.grad(alpha, wanted, grad, retain_graph=True), torch.autograd.grad(expected, wanted, grad)
    )


def test_attention_of_large_scores_stays_finite() -> None:
    pattern, _ = Pattern.from_entries(torch.tensor([0, 0]), torch.tensor([0, 1]), (1, 2))
    alpha = row_softmax(pattern, torch.tensor([[500.0]]), torch.tensor([[500.0], [-500.0]]), 0.2)
    assert alpha.flatten().tolist() == [1.0, 0.0]


def test_attention_vectors_are_not_pruned(toy: Graph) -> None:
    names = set(prunable_weights(network("gat", toy)))
    assert names == {"convs.0.lin.weight", "convs.1.lin.weight"}


def test_heads_that_do_not_divide_are_refused(toy: Graph) -> None:
    with pytest.raises(ValueError, match=r"heads \(got 3\), expected a divisor of the 8 channels"):
        GAT(toy.num_features, HIDDEN, toy.num_classes, heads=3)
    with pytest.raises(ValueError, match=r"heads \(got 0\)"):
        GAT(toy.num_features, HIDDEN, toy.num_classes, heads=0)


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aggregation \(got 'max'\), expected one of"):
        ResGCN(4, 4, 2, aggregation="max")  # type: ignore[arg-type]


def test_a_node_without_neighbors_has_no_nan(toy: Graph, kind: str) -> None:
    model, edges = network(kind, toy).train(), Edges.from_pairs(toy.pairs[:, :0], toy.num_nodes)
    logits = model(toy.features, edges)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_equal_seeds_give_equal_weights_and_resized_networks_are_of_their_kind(toy: Graph, kind: str) -> None:
    first, second, third = (network(kind, toy, seed=seed) for seed in (1, 1, 2))
    weights = [dict(model.state_dict()) for model in (first, second, third)]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    assert any(not torch.equal(weights[0][name], tensor) for name, tensor in weights[2].items())
    small = first.resized({"features": 2})
    same = {name: tensor.shape for name, tensor in small.state_dict().items()}
    changed = {name for name, tensor in weights[0].items() if tensor.shape != same[name]}
    assert type(small) is type(first)
    assert changed == {name for name, _ in first.groups()[0].read}


def test_what_networks_share_is_no_network() -> None:
    with pytest.raises(TypeError, match="abstract"):
        GNN(4, 4, 2)  # type: ignore[abstract]
