from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gebt.graph import Edges, Graph
from gebt.models import GCN
from gebt.models.compact import CompactedModel, compact_model
from gebt.models.linear import Linear, SparseLinear
from gebt.prune import Mask, prunable_weights
from gebt.sparse import SparseMatrix
from gebt.sparse.compaction import scattered, sliced
from gebt.sparse.structure import entry_mask, groups_of, select_units
from gebt.train.loop import copy_state

MakeGraph = Callable[..., Graph]
MaskOf = Callable[[GCN], Mask]
Prefer = Callable[[str], None]


@pytest.fixture
def prefer(monkeypatch: pytest.MonkeyPatch) -> Prefer:
    """Makes one way to multiply the fastest wherever there is a choice: a test must not hang on what a clock says."""

    def choose(way: str) -> None:
        def seconds(lin: Any, x: Any, *_: Any) -> float:
            is_way = {
                "dense": isinstance(lin, Linear) and isinstance(x, Tensor),
                "sparse weights": isinstance(lin, SparseLinear),
                "sparse features": isinstance(x, SparseMatrix),
            }
            return 1.0 if is_way[way] else 2.0

        monkeypatch.setattr("gebt.models.compact._seconds", seconds)

    return choose


def in_double(graph: Graph) -> Graph:
    if isinstance(graph.features, SparseMatrix):
        return replace(graph, features=SparseMatrix(graph.features.pattern, graph.features.values.double()))
    return replace(graph, features=graph.features.double())


def masked_model(graph: Graph, mask_of: MaskOf, depth: int = 2, hidden: Any = 8, **options: Any) -> tuple[GCN, Mask]:
    """A network in double with every number away from where it starts, and its mask, already applied."""
    model = GCN(graph.num_features, hidden, graph.num_classes, depth, dropout=0.0, **options).double()
    generator = torch.Generator().manual_seed(3)
    for tensor in (t for t in model.state_dict().values() if t.dim() == 1):
        tensor.uniform_(0.1, 1.0, generator=generator)
    mask = mask_of(model)
    mask.apply_(dict(model.named_parameters()))
    return model, mask


def entries(share: float, seed: int = 0) -> MaskOf:
    """Single weights kept at random."""

    def mask_of(model: GCN) -> Mask:
        generator = torch.Generator().manual_seed(seed)
        return Mask({n: torch.rand(p.shape, generator=generator) < share for n, p in prunable_weights(model).items()})

    return mask_of


def units(structure: Any) -> MaskOf:
    """Half of the units and two fifths of the features gone, as far as the structure takes them."""

    def mask_of(model: GCN) -> Mask:
        groups, state = groups_of(model, structure), model.state_dict()
        generator = torch.Generator().manual_seed(4)
        scores = {group.name: torch.rand(group.size(state), generator=generator) for group in groups}
        return entry_mask(groups, select_units(groups, scores, ratio=0.5, feature_ratio=0.4, seed=0), model)

    return mask_of


def without(*names: str) -> MaskOf:
    """Every weight of some tensors pruned, and half of the others."""

    def mask_of(model: GCN) -> Mask:
        return Mask({n: kept & (n not in names) for n, kept in entries(0.5)(model).items()})

    return mask_of


def results(model: GCN, graph: Graph) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and gradients to parameters and edge values."""
    edges = Edges.from_pairs(graph.pairs, graph.num_nodes)
    gates = torch.linspace(0.2, 1.0, graph.num_pairs, dtype=torch.float64, requires_grad=True)
    logits = model(graph.features, edges, gates)
    upstream = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    wanted = {**dict(model.named_parameters()), "gates": gates}
    found = torch.autograd.grad((logits * upstream + logits.square()).sum(), list(wanted.values()), allow_unused=True)
    # Where no path is left, as from an emptied group, no gradient arrives.
    return logits, {n: torch.zeros_like(wanted[n]) if g is None else g for n, g in zip(wanted, found, strict=True)}


def check_equal(model: GCN, mask: Mask, graph: Graph, small: CompactedModel) -> None:
    """Outputs and gradients of the small problem are those of the masked one, and what went received no gradient."""
    close = {"atol": 1e-10, "rtol": 1e-10}
    groups = model.groups()
    kept = sliced(mask, groups, small.live)
    moved = small.model.training and bool(small.model.norms)
    if moved:
        before = copy_state(small.model)
    (logits, gradients), (small_logits, small_gradients) = results(model, graph), results(small.model, small.graph)
    torch.testing.assert_close(small_logits, logits, **close)
    expected = sliced(gradients, groups, small.live)
    for name, lin in ((f"convs.{number}.lin", conv.lin) for number, conv in enumerate(small.model.convs)):
        if isinstance(lin, SparseLinear):
            values = small_gradients.pop(f"{name}.values")
            small_gradients[f"{name}.weight"] = SparseMatrix(lin.pattern, values).to_dense()
    # Pruned entries are held at zero whatever their gradient is.
    ours, theirs = (
        {name: gradient * kept.get(name, True) for name, gradient in found.items()}
        for found in (small_gradients, expected)
    )
    torch.testing.assert_close(ours, theirs, **close)
    held = {name: gradient * mask.get(name, True) for name, gradient in gradients.items() if name != "gates"}
    nothing = {name: torch.zeros_like(tensor) for name, tensor in sliced(held, groups, small.live).items()}
    for name, gradient in scattered(nothing, held, groups, small.live).items():
        assert float(gradient.abs().max()) < 1e-10, name
    if moved:
        # Statistics of the batch went the same way.
        assert not torch.equal(before["norms.0.module.running_mean"], small.model.norms[0].module.running_mean)
        large = sliced(model.state_dict(), groups, small.live)
        ours = {n: t for n, t in small.model.state_dict().items() if n.startswith("norms")}
        torch.testing.assert_close(ours, {n: large[n] for n in ours}, **close)


@pytest.mark.parametrize("share", [1.0, 0.12], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    "options", [{}, {"norm": "batch"}, {"residual": True}, {"norm": "batch", "residual": True}], ids=str
)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_outputs_and_gradients_are_those_of_the_masked_network(
    make_graph: MakeGraph, depth: int, options: dict[str, Any], share: float, prefer: Prefer
) -> None:
    graph = in_double(make_graph(nodes=15, features=9, share=share))
    assert isinstance(graph.features, SparseMatrix) == (share < 1)
    for way, kept, training in (
        ("dense", 0.8, True), ("dense", 0.12, False), ("sparse weights", 0.4, True), ("sparse features", 0.12, True),
        ("sparse weights", 0.05, True),
    ):  # fmt: skip
        prefer(way)
        model, mask = masked_model(graph, entries(kept), depth, **options)
        model.train(training)
        small = compact_model(model, mask, graph)
        assert small.model.training == training
        check_equal(model, mask, graph, small)


@pytest.mark.parametrize("options", [{}, {"norm": "batch", "residual": True}], ids=str)
@pytest.mark.parametrize("structure", ["unit", "feature", "joint"])
def test_masks_of_whole_units_leave_a_dense_network_of_the_asked_widths(
    make_graph: MakeGraph, structure: str, options: dict[str, Any]
) -> None:
    graph = in_double(make_graph(nodes=15, features=10))
    model, mask = masked_model(graph, units(structure), depth=3, **options)
    small = compact_model(model, mask, graph)
    hidden, features = 8 if structure == "feature" else 4, 10 if structure == "unit" else 6
    assert small.model.widths == [features, hidden, hidden, graph.num_classes]
    assert small.graph.features.shape == (15, features)
    assert small.mask is None
    check_equal(model, mask, graph, small)


def test_layers_of_different_widths_are_cut_each_for_itself(make_graph: MakeGraph) -> None:
    graph = in_double(make_graph(nodes=15, features=10))
    model, mask = masked_model(graph, units("joint"), hidden=[6, 12, 5], norm="batch")
    small = compact_model(model, mask, graph)
    assert small.model.widths == [6, 3, 6, 3, graph.num_classes]
    check_equal(model, mask, graph, small)


def test_chains_of_dead_units_go_as_a_whole(make_graph: MakeGraph) -> None:
    """No output reads unit 5 of the last hidden layer, which alone reads unit 2, which alone reads feature 1."""

    def mask_of(model: GCN) -> Mask:
        mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in prunable_weights(model).items()}
        mask["convs.2.lin.weight"][:, 5] = False
        mask["convs.1.lin.weight"][:, 2] = torch.arange(8) == 5
        mask["convs.0.lin.weight"][:, 1] = torch.arange(8) == 2
        mask["convs.1.lin.weight"][4] = False  # made by nothing but its bias, which is read
        return Mask(mask)

    graph = in_double(make_graph(nodes=15, features=10))
    model, mask = masked_model(graph, mask_of, depth=3)
    small = compact_model(model, mask, graph)
    rest = {name: live.tolist() for name, live in small.live.items()}
    assert rest == {
        "features": [0, 2, 3, 4, 5, 6, 7, 8, 9],
        "hidden.0": [0, 1, 3, 4, 5, 6, 7],
        "hidden.1": [0, 1, 2, 3, 4, 6, 7],
    }
    check_equal(model, mask, graph, small)


@pytest.mark.parametrize("way", ["dense", "sparse weights", "sparse features"])
@pytest.mark.parametrize("share", [1.0, 0.12], ids=["dense", "sparse"])
@pytest.mark.parametrize(
    ("emptied", "widths"),
    [
        ("convs.2.lin.weight", [None, None, 1]),
        ("convs.1.lin.weight", [None, 1, None]),
        ("convs.0.lin.weight", [1, None, None]),
    ],
)
@pytest.mark.parametrize("options", [{}, {"residual": True}], ids=str)
def test_an_emptied_group_keeps_one_unit(
    make_graph: MakeGraph, emptied: str, widths: list[int | None], share: float, options: dict[str, Any], way: str,
    prefer: Prefer,
) -> None:  # fmt: skip
    prefer(way)
    graph = in_double(make_graph(nodes=15, features=9, share=share))
    model, mask = masked_model(graph, without(emptied), depth=3, **options)
    small = compact_model(model, mask, graph)
    if not options:
        assert all(expected in (None, got) for expected, got in zip(widths, small.model.widths, strict=False))
    check_equal(model, mask, graph, small)


def test_everything_pruned_leaves_the_biases(make_graph: MakeGraph, prefer: Prefer) -> None:
    graph = in_double(make_graph())
    for way in ("dense", "sparse weights"):
        prefer(way)
        model, mask = masked_model(graph, entries(0.0), depth=3)
        small = compact_model(model, mask, graph)
        assert small.model.widths == [1, 1, 1, graph.num_classes]
        check_equal(model, mask, graph, small)


def test_a_mask_of_some_tensors_leaves_the_others_whole(make_graph: MakeGraph) -> None:
    graph = in_double(make_graph())
    model, mask = masked_model(graph, lambda m: Mask({"convs.1.lin.weight": entries(0.5)(m)["convs.1.lin.weight"]}))
    small = compact_model(model, mask, graph)
    assert small.graph.features is graph.features
    check_equal(model, mask, graph, small)


def test_only_the_features_of_the_graph_change(make_graph: MakeGraph) -> None:
    graph = make_graph(features=10)
    model, mask = masked_model(graph, units("joint"))
    small = compact_model(model.float(), mask, graph)
    assert replace(small.graph, features=graph.features).fingerprint == graph.fingerprint
    assert torch.equal(small.graph.features, graph.features[:, small.live["features"]])


@pytest.mark.parametrize(
    "frozen", ["convs.0.lin.weight", "convs.1.lin.weight", "convs.0.bias", "norms.0.module.weight"]
)
@pytest.mark.parametrize("way", ["measured", "dense", "sparse weights"])
def test_what_is_not_trained_stays_so(make_graph: MakeGraph, frozen: str, way: str, prefer: Prefer) -> None:
    if way != "measured":
        prefer(way)
    graph = in_double(make_graph(features=9))
    model, mask = masked_model(graph, entries(0.3), norm="batch")
    dict(model.named_parameters())[frozen].requires_grad_(False)
    small = compact_model(model, mask, graph).model
    held = [name.replace("lin.values", "lin.weight") for name, p in small.named_parameters() if not p.requires_grad]
    assert held == [frozen]


@pytest.mark.parametrize("way", ["dense", "sparse weights"])
@pytest.mark.parametrize("mask_of", [entries(0.3), entries(0.08), units("joint")], ids=["entries", "few", "units"])
@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"norm": "batch", "residual": True}], ids=str)
def test_restoring_writes_what_was_trained_and_nothing_else(
    make_graph: MakeGraph, options: dict[str, Any], mask_of: MaskOf, way: str, prefer: Prefer
) -> None:
    prefer(way)
    graph = in_double(make_graph(features=9))
    model, mask = masked_model(graph, mask_of, depth=4, **options)
    before, pruned = copy_state(model), {name: tensor.clone() for name, tensor in mask.items()}
    small = compact_model(model, mask, graph)
    small.restore(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    generator = torch.Generator().manual_seed(6)
    for tensor in small.model.state_dict().values():
        if tensor.is_floating_point():
            tensor += torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 1
        else:
            tensor += 41
    if small.mask is not None:
        small.mask.apply_(dict(small.model.named_parameters()))
    small.restore(model)
    after = copy_state(model)
    groups, kept = model.groups(), {name: pruned.get(name, torch.ones_like(t).bool()) for name, t in before.items()}
    trained = sliced(after, groups, small.live)
    for name, tensor in small.model.state_dict().items():
        if not name.endswith("lin.values"):
            assert torch.equal(trained[name], tensor)
    moved = {name: sliced({name: kept[name]}, groups, small.live)[name] for name in before}
    for name, tensor in after.items():
        changed = tensor != before[name]
        assert torch.equal(sliced({name: changed}, groups, small.live)[name], moved[name])
        assert int(changed.sum()) == int(moved[name].sum())
    small.model.eval(), model.eval()
    torch.testing.assert_close(results(small.model, small.graph)[0], results(model, graph)[0], atol=1e-9, rtol=1e-9)


def test_compaction_leaves_model_mask_and_graph_as_they_were(make_graph: MakeGraph) -> None:
    graph = make_graph(features=9, share=0.12)
    model, mask = masked_model(graph, entries(0.3))
    model = model.float()
    before, kept = copy_state(model), {name: tensor.clone() for name, tensor in mask.items()}
    numbers, fingerprint = torch.random.get_rng_state(), graph.fingerprint
    small = compact_model(model, mask, graph)
    with torch.no_grad():
        for parameter in small.model.parameters():
            parameter.fill_(5.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert mask == Mask(kept)
    assert replace(graph).fingerprint == fingerprint
    assert torch.equal(torch.random.get_rng_state(), numbers)
    assert all(parameter.grad is None for parameter in [*model.parameters(), *small.model.parameters()])


def test_options_of_the_network_stay(make_graph: MakeGraph) -> None:
    graph = make_graph(features=9)
    model = GCN(9, 8, 3, 3, dropout=0.3, input_dropout=0.1, norm="batch", residual=True)
    small = compact_model(model.eval(), Mask.ones(prunable_weights(model)), graph).model
    assert (small.dropout, small.input_dropout, small.residual, small.training) == (0.3, 0.1, True, False)
    assert small.widths == model.widths
    assert all(torch.equal(small.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_pruned_weight_that_is_not_zero_is_refused_by_name(make_graph: MakeGraph) -> None:
    graph = in_double(make_graph())
    model, mask = masked_model(graph, entries(0.3))
    with torch.no_grad():
        model.convs[1].lin.weight[~mask["convs.1.lin.weight"]] = 1e-300
    count = int((~mask["convs.1.lin.weight"]).sum())
    message = rf"compaction \(got {count} non-zero pruned entries in 'convs.1.lin.weight'\), expected zeros, .* first"
    with pytest.raises(ValueError, match=message):
        compact_model(model, mask, graph)


@pytest.mark.parametrize("training", [True, False])
def test_each_layer_says_how_it_multiplies_and_what_was_measured(make_graph: MakeGraph, training: bool) -> None:
    def mask_of(model: GCN) -> Mask:
        """Less than half of the first and last layer, in stripes, and most of the middle one: every unit is read."""
        stripes = {
            n: torch.arange(p.numel()).view_as(p.t()).t() % 7 % 3 == 0 for n, p in prunable_weights(model).items()
        }
        return Mask(stripes | {"convs.1.lin.weight": ~torch.eye(8, dtype=torch.bool)})

    def ways(share: float) -> list[set[str]]:
        graph = in_double(make_graph(nodes=15, features=9, share=share))
        model, mask = masked_model(graph, mask_of, depth=3)
        small = compact_model(model, mask, graph, training=training, choose=True)
        assert [row["layer"] for row in small.products] == ["convs.0", "convs.1", "convs.2"]
        found = []
        for row, conv in zip(small.products, small.model.convs, strict=True):
            seconds = {name: value for name, value in row.items() if name not in ("layer", "chosen")}
            assert all(isinstance(value, float) and 0 < value < 60 for value in seconds.values())
            if seconds:
                assert seconds[row["chosen"]] == min(seconds.values())
            assert isinstance(conv.lin, SparseLinear) == (row["chosen"] == "sparse weights")
            found.append(set(seconds))
        assert isinstance(small.graph.features, SparseMatrix) == (small.products[0]["chosen"] == "sparse features")
        check_equal(model, mask, graph, small)
        return found

    dense, sparse = {"dense", "sparse weights"}, {"sparse features", "dense", "sparse weights"}
    assert ways(1.0) == [dense, set(), dense]
    assert ways(0.12) == [sparse, set(), dense]


def test_features_of_few_entries_are_not_tried_as_a_dense_matrix(make_graph: MakeGraph) -> None:
    graph = make_graph(nodes=30, features=40, share=0.03)
    model, mask = masked_model(graph, entries(0.9))
    (first, _) = compact_model(model.float(), mask, graph, choose=True).products
    assert first == {"layer": "convs.0", "chosen": "sparse features"}


def test_what_is_left_of_the_mask_covers_the_dense_weights_alone(make_graph: MakeGraph, prefer: Prefer) -> None:
    graph = in_double(make_graph(nodes=15, features=9))
    model, mask = masked_model(graph, entries(0.4))
    prefer("dense")
    small = compact_model(model, mask, graph, choose=True)
    assert small.mask == Mask(sliced(mask, model.groups(), small.live))
    prefer("sparse weights")
    assert compact_model(model, mask, graph, choose=True).mask is None


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("rows", "out", "width"), [(6, 4, 5), (1, 1, 1), (5, 1, 7), (5, 7, 1)])
def test_a_sparse_projection_is_the_dense_masked_product_with_both_gradients(
    rows: int, out: int, width: int, share: float
) -> None:
    generator = torch.Generator().manual_seed(7)
    weight, x, upstream = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((out, width), (rows, width), (rows, out))
    )
    kept = torch.rand(out, width, generator=generator) < share
    lin = SparseLinear(weight, kept)
    x.requires_grad_()
    dense = (weight * kept).requires_grad_()
    assert torch.equal(lin.weight, dense)
    assert lin.values.numel() == int(kept.sum())
    got, expected = lin(x), x @ dense.t()
    torch.testing.assert_close(got, expected)
    to_x, to_values = torch.autograd.grad(got, (x, lin.values), upstream)
    dense_to_x, to_dense = torch.autograd.grad(expected, (x, dense), upstream)
    torch.testing.assert_close(to_x, dense_to_x)
    torch.testing.assert_close(SparseMatrix(lin.pattern, to_values).to_dense(), to_dense * kept)


def test_a_sparse_projection_has_values_of_its_own() -> None:
    weight = torch.rand(3, 4)
    lin = SparseLinear(weight, torch.ones(3, 4, dtype=torch.bool))
    with torch.no_grad():
        lin.values.zero_()
    assert weight.all()
    assert not lin.weight.any()
