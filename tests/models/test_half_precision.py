"""Networks in bfloat16, by torch's autocast and by `model.bfloat16()`: near the float32 ones, gradients too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gebt.graph import Edges, Graph
from gebt.models.attention import row_softmax
from gebt.models.compact import _on_tensor_cores
from gebt.models.dropout import dropout
from gebt.models.gnn import GCN
from gebt.models.graph_classifier import GraphClassifier
from gebt.models.linear import SemiStructuredLinear, SparseLinear
from gebt.models.links import LinkPredictor
from gebt.models.registry import build
from gebt.models.resgcn import GENConv
from gebt.models.stacked_gcn import StackedGCN, StackedInput
from gebt.sparse import SparseMatrix
from gebt.sparse.backends import using
from gebt.sparse.ops import mixed_spmm, spmm
from gebt.sparse.precision import autocasted, without_autocast
from gebt.sparse.precision import using as precision

BF16 = torch.bfloat16
NODES = 40
# Of the norm. One rounding is 2^-9; logits are at most 1.1 % off, gradients of weights 2 %. Those of edge values are
# differences of neighbors that are nearly alike: up to 15 %.
LOGITS, GRADIENTS, OF_EDGES = 2e-2, 4e-2, 0.25
KINDS = ("gcn", "sage", "gin", "gat", "resgcn7", "links", "graphs")


def network(kind: str, features: int) -> tuple[nn.Module, dict[str, Any]]:
    if kind == "graphs":
        graph_of = torch.arange(NODES) % 5
        return GraphClassifier(features, 16, 3, 3, 0.0), {"graph_of": graph_of, "num_graphs": 5}
    if kind == "links":
        pairs = torch.stack((torch.arange(NODES), torch.arange(NODES).flip(0)))
        return LinkPredictor(GCN(features, 16, 8, 2, 0.0), 16), {"pairs": pairs}
    return build(kind, features, 16, 3, 7 if kind == "resgcn7" else 2, 0.0, 0, heads=4), {}  # type: ignore[arg-type]


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.double()).norm() / expected.double().norm())


def outputs(model: nn.Module, x: Any, edges: Edges, gates: Tensor | None, more: dict[str, Any]) -> tuple[Tensor, ...]:
    """The output and the gradients of all weights, flat, and of the gates."""
    model.zero_grad()
    wanted = [*model.parameters(), *([] if gates is None else [gates])]
    y = model(x, edges, gates, **more)
    weight = torch.rand(y.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((y.float() * weight).sum(), wanted, allow_unused=True)
    own = [g.float().flatten() for g in gradients[: len(wanted) - (gates is not None)] if g is not None]
    return y.detach(), torch.cat(own), *([] if gates is None else [gradients[-1]])


@pytest.mark.parametrize("way", ["autocast", "bfloat16"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "edge values"])
@pytest.mark.parametrize("share", [1.0, 0.1], ids=["dense", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_bf16_is_near_the_float32_one(
    make_graph: Callable[..., Graph], kind: str, share: float, gated: bool, way: str
) -> None:
    graph = make_graph(nodes=NODES, features=40, share=share)
    edges = Edges.from_pairs(graph.pairs, graph.num_nodes)
    assert isinstance(graph.features, SparseMatrix) == (share < 1)
    gates = torch.linspace(0.2, 1, graph.num_pairs).requires_grad_() if gated else None
    model, more = network(kind, graph.num_features)
    model.eval()  # statistics of 5 graphs would magnify what is rounded
    expected = outputs(model, graph.features, edges, gates, more)
    x: Any = graph.features
    if way == "autocast":
        with torch.autocast("cpu", BF16):
            found = outputs(model, x, edges, gates, more)
        assert all(p.dtype == torch.float32 for p in model.parameters())
    else:
        x = x.to(BF16) if isinstance(x, Tensor) else SparseMatrix(x.pattern, x.values.to(BF16))
        found = outputs(model.bfloat16(), x, edges, gates, more)
        assert found[0].dtype == BF16
    for ours, right, tolerance in zip(found, expected, (LOGITS, GRADIENTS, OF_EDGES), strict=False):
        assert 0 < off(ours, right) < tolerance


@pytest.mark.parametrize("backend", ["torch-csr", "dense", "auto"])
def test_an_upcast_product_is_the_float32_one_rounded_once(make_graph: Callable[..., Graph], backend: str) -> None:
    edges = Edges.from_pairs(make_graph().pairs, 12)
    values, x = torch.linspace(0.1, 1, edges.pattern.nnz).requires_grad_(), torch.randn(12, 5).to(BF16)
    x.requires_grad_()
    with using(backend):
        found = mixed_spmm(edges.pattern, values, x)
        found.float().sum().backward()
        exact = values.detach().clone().requires_grad_(), x.detach().float().requires_grad_()
        expected = spmm(edges.pattern, *exact)
        expected.sum().backward()
    torch.testing.assert_close(found, expected.to(BF16), rtol=2**-8, atol=0)
    assert (values.grad.dtype, x.grad.dtype) == (torch.float32, BF16)  # type: ignore[union-attr]
    torch.testing.assert_close(values.grad, exact[0].grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad, exact[1].grad.to(BF16), rtol=2**-7, atol=0)  # type: ignore[union-attr]


def test_half_precision_works_as_bfloat16_does(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph(nodes=NODES)
    edges = Edges.from_pairs(graph.pairs, graph.num_nodes)
    for kind in ("gcn", "gat"):
        model, _ = network(kind, graph.num_features)
        expected = model(graph.features, edges).detach()
        with torch.autocast("cpu", torch.float16):
            assert off(model(graph.features, edges), expected) < 2e-3
        assert off(model.half()(graph.features.half(), edges), expected) < 2e-3  # type: ignore[union-attr]


def test_stacked_networks_take_autocast_with_gradients(sparse: Graph) -> None:
    models = [GCN(sparse.num_features, 8, 3, 3, 0.0, seed) for seed in range(2)]
    pairs = torch.cat((sparse.pairs, sparse.pairs + sparse.num_nodes), 1)
    edges = Edges.from_pairs(pairs, 2 * sparse.num_nodes)
    x: Any = sparse.features
    reading = StackedInput.of([x, x], edges, torch.arange(2 * sparse.num_nodes), 3)
    stacked, gates = StackedGCN(models), torch.linspace(0.2, 1, pairs.shape[1]).requires_grad_()

    def both() -> tuple[Tensor, ...]:
        y = stacked(reading, edges, gates)
        return y.detach(), *torch.autograd.grad(y.float().square().sum(), [*stacked.parameters(), gates])

    expected = both()
    with torch.autocast("cpu", BF16):
        found = both()
    assert 0 < off(found[0], expected[0]) < LOGITS
    for ours, right in zip(found[1:], expected[1:], strict=True):
        assert off(ours, right) < GRADIENTS


def test_sparse_weights_take_bf16() -> None:
    weight, x = torch.randn(6, 8), torch.randn(5, 8)
    lin = SparseLinear(weight, weight > 0)
    expected = lin(x).detach()
    with torch.autocast("cpu", BF16):
        assert lin(x).dtype == BF16
        assert off(lin(x), expected) < 1e-2
    assert off(lin.bfloat16()(x.to(BF16)), expected) < 1e-2


def test_autocast_leaves_double_precision_and_whole_numbers_alone(toy: Graph) -> None:
    edges = Edges.from_pairs(toy.pairs, toy.num_nodes)
    x = torch.randn(toy.num_nodes, 3, dtype=torch.float64)
    expected = edges.propagate(edges.unit_weights.double(), x)
    with torch.autocast("cpu", BF16):
        assert torch.equal(edges.propagate(edges.unit_weights.double(), x), expected)
        assert autocasted(torch.arange(3)).dtype == torch.int64
        with without_autocast(x):
            assert torch.mm(x.float(), x.float().t()).dtype == torch.float32


def test_sums_over_neighbors_of_16_bit_values_are_float32(toy: Graph) -> None:
    # 300 neighbors of value 1: sums of bfloat16 end at 256.
    star = Edges.from_pairs(torch.stack((torch.zeros(300, dtype=torch.int64), torch.arange(1, 301))), 301)
    ones = torch.ones(300, dtype=BF16)
    assert star.incident_sum(ones)[0] == 300
    torch.testing.assert_close(star.normalized(ones), star.normalized(ones.float()), rtol=0, atol=0)
    assert mixed_spmm(star.pattern, star.to_entries(ones), torch.ones(301, 1, dtype=BF16))[0] == 300


def test_readout_sums_are_float32() -> None:
    # bfloat16 has no 301.
    model = GraphClassifier(1, 4, 2, 2, 0.0).eval()
    taken: list[Tensor] = []
    readout: Any = model.convs[-1]
    readout.norms[0].register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    x = torch.ones(302, 4, dtype=BF16)
    readout([x], torch.tensor([0] * 301 + [1]), 2, 0.0)
    assert taken[0].tolist() == [[301.0] * 4, [1.0] * 4]


def test_attention_of_16_bit_scores_is_the_float32_softmax(toy: Graph) -> None:
    pattern = Edges.from_pairs(toy.pairs, toy.num_nodes).pattern
    to, of = (torch.randn(toy.num_nodes, 2).to(BF16) for _ in "ab")
    found = row_softmax(pattern, to, of, 0.2)
    assert torch.equal(found, row_softmax(pattern, to.float(), of.float(), 0.2))


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_softmax_aggregation_is_float32_under_autocast(
    toy: Graph, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges, conv, seen = Edges.from_pairs(toy.pairs, toy.num_nodes), GENConv(4, "softmax"), []
    conv.mlp = nn.Sequential()
    x = torch.randn(toy.num_nodes, 4).to(dtype)
    expected = conv(x.float(), edges, conv.weigh(edges, None))

    def product(pattern: Any, values: Tensor, z: Tensor, **options: Any) -> Tensor:
        seen.append((z.dtype, torch.is_autocast_enabled("cpu")))
        return mixed_spmm(pattern, values, z, **options)

    monkeypatch.setattr("gebt.graph.edges.mixed_spmm", product)
    with torch.autocast("cpu", BF16):
        found = conv(x, edges, conv.weigh(edges, None))
    assert seen == [(torch.float32, False)]
    torch.testing.assert_close(found.float(), expected, rtol=2**-6 if dtype == BF16 else 0, atol=2e-2 * (dtype == BF16))


@pytest.mark.parametrize("relu", [False, True])
def test_dropout_of_16_bits_keeps_the_entries_that_it_keeps_of_32(relu: bool) -> None:
    x, seeds = torch.randn(50, 3), torch.tensor([7])
    wide, narrow = (dropout(t, 0.5, True, relu=relu, seeds=seeds) for t in (x, x.to(BF16)))
    assert narrow.dtype == BF16
    torch.testing.assert_close(narrow.float(), wide, rtol=2**-8, atol=0)


def test_2_of_4_is_packed_in_the_precision_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebt.models.linear.to_sparse_semi_structured", lambda weight: weight)
    weight, x = torch.randn(4, 8), torch.randn(5, 8)
    assert SemiStructuredLinear(weight)(x).dtype == torch.float32
    with precision("bf16"):
        lin = SemiStructuredLinear(weight)
        assert (lin(x).dtype, lin.weight.dtype) == (BF16, torch.float32)


def test_a_2_of_4_kernel_that_refuses_is_told_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def multiply(x: Tensor, weight: Tensor) -> Tensor:
        raise RuntimeError("no kernel for float32")

    monkeypatch.setattr("gebt.models.linear.to_sparse_semi_structured", lambda weight: weight)
    monkeypatch.setattr("gebt.models.linear.F.linear", multiply)
    caplog.set_level("INFO", "gebt.compaction")
    stored: dict[str, Any] = {"dense": torch.randn(5, 8)}
    assert _on_tensor_cores(stored, torch.randn(4, 8)) == {}
    with precision("bf16"):
        assert _on_tensor_cores(stored, torch.randn(4, 8)) == {}
    assert [record.getMessage() for record in caplog.records] == [
        "2:4 product of (4, 8): no kernel for float32; on an H100 it takes 16 bits alone: --precision bf16",
        "2:4 product of (4, 8): no kernel for float32",
    ]
