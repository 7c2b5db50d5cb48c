from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.graph import Edges, Graph
from gebt.models import GCN
from gebt.prune import Mask
from gebt.sparse.compaction import Group
from gebt.sparse.structure import entry_mask, features_share, groups_of, select_units, unit_scores

STREAM = {"norm": "batch", "residual": True}


def model_of(depth: int = 3, **options: Any) -> GCN:
    """Every number away from where it starts."""
    model = GCN(6, 5, 3, depth, dropout=0.0, **options).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def scores_of(model: GCN, score: Any, structure: Any = "joint") -> dict[str, Tensor]:
    return unit_scores(groups_of(model, structure), model, score)


def rows(weight: Tensor) -> Tensor:
    return weight.detach().square().sum(1)


def columns(weight: Tensor) -> Tensor:
    return weight.detach().square().sum(0)


def test_a_structure_takes_hidden_units_or_features_or_both() -> None:
    def names(structure: Any, **options: Any) -> list[str]:
        return [group.name for group in groups_of(model_of(**options), structure)]

    assert names("unit") == ["hidden.0", "hidden.1"]
    assert names("feature") == ["features"]
    assert names("joint") == ["features", "hidden.0", "hidden.1"]
    assert names("unit", residual=True) == ["hidden"]
    assert names("joint", residual=True) == ["features", "hidden"]
    assert names("joint", depth=1) == names("feature", depth=1) == ["features"]


def test_groups_name_every_tensor_of_a_unit_and_nothing_else() -> None:
    model = model_of(norm="batch")
    state = model.state_dict()
    features, first, second = model.groups()
    parts = ("lin.weight", "bias")
    norm = ("weight", "bias", "running_mean", "running_var")
    for number, group in enumerate((first, second)):
        made = {f"convs.{number}.{part}" for part in parts} | {f"norms.{number}.module.{part}" for part in norm}
        assert set(group.made) == {(name, 0) for name in made}
        assert group.read == [(f"convs.{number + 1}.lin.weight", 1)]
    assert (features.made, features.read) == ([], [("convs.0.lin.weight", 1)])
    assert [group.size(state) for group in model.groups()] == [6, 5, 5]
    (_, hidden) = model_of(**STREAM).groups()
    assert set(hidden.made) == {*first.made, *second.made}
    assert hidden.read == [*first.read, *second.read]


@pytest.mark.parametrize("structure", ["entry", "2:4", "block"])
def test_structures_without_groups_are_refused(structure: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"weight structure \(got '{structure}'\), expected 'unit', 'feature' or 'joint'"
    ):
        groups_of(model_of(), structure)


def test_models_without_what_a_structure_prunes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weight structure \(got 'unit'\), expected a model with hidden layers"):
        groups_of(model_of(depth=1), "unit")
    with pytest.raises(ValueError, match=r"model Linear \(got no groups\(\)\), expected one that lists its units"):
        groups_of(nn.Linear(2, 2), "unit")


def test_magnitude_is_the_product_of_the_norms_that_make_and_that_read_a_unit() -> None:
    model = model_of()
    w0, w1, w2 = (conv.lin.weight for conv in model.convs)
    expected = {
        "features": columns(w0).sqrt(),
        "hidden.0": (rows(w0) * columns(w1)).sqrt(),
        "hidden.1": (rows(w1) * columns(w2)).sqrt(),
    }
    torch.testing.assert_close(scores_of(model, "magnitude"), expected)


def test_magnitude_of_a_stream_is_over_all_layers_of_it() -> None:
    model = model_of(residual=True)
    w0, w1, w2 = (conv.lin.weight for conv in model.convs)
    expected = {
        "features": columns(w0).sqrt(),
        "hidden": ((rows(w0) + rows(w1)) * (columns(w1) + columns(w2))).sqrt(),
    }
    torch.testing.assert_close(scores_of(model, "magnitude"), expected)


def test_norm_is_the_size_of_the_scale_and_of_features_the_magnitude() -> None:
    model = model_of(norm="batch")
    g0, g1 = (norm.module.weight.detach().abs() for norm in model.norms)
    features = columns(model.convs[0].lin.weight).sqrt()
    torch.testing.assert_close(scores_of(model, "norm"), {"features": features, "hidden.0": g0, "hidden.1": g1})
    model.norms[1].module.weight.data.zero_()
    assert not scores_of(model, "norm")["hidden.1"].any()
    stream = model_of(**STREAM)
    g0, g1 = (norm.module.weight.detach().abs() for norm in stream.norms)
    torch.testing.assert_close(scores_of(stream, "norm", "unit"), {"hidden": g0 + g1})


def test_the_norm_score_wants_a_normalization() -> None:
    with pytest.raises(
        ValueError, match=r"unit score 'norm' \(got no normalization in 'hidden.0'\), expected norm='batch'"
    ):
        scores_of(model_of(), "norm")
    assert scores_of(model_of(), "norm", "feature").keys() == {"features"}


def test_unknown_scores_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"unit score \(got 'taylor'\), expected one of \('magnitude', 'norm', 'gradient'\)"
    ):
        scores_of(model_of(), "taylor")


@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"residual": True}, STREAM], ids=str)
def test_gradient_is_the_derivative_of_the_loss_to_a_gate_on_what_readers_get_of_a_unit(
    make_graph: Callable[..., Graph], options: dict[str, Any]
) -> None:
    graph = make_graph(nodes=15, features=6)
    edges, model = Edges.from_pairs(graph.pairs, graph.num_nodes), model_of(**options)
    gates = {
        group.name: torch.ones(group.size(model.state_dict())).double().requires_grad_() for group in model.groups()
    }
    values = torch.ones(graph.num_pairs, dtype=torch.float64)

    def loss() -> Tensor:
        logits = model(graph.features.double(), edges, values)
        return F.cross_entropy(logits[graph.train_mask], graph.labels[graph.train_mask])

    loss().backward()
    found = scores_of(model, "gradient")
    hidden = ["hidden", "hidden"] if model.residual else ["hidden.0", "hidden.1"]
    handles = [
        conv.register_forward_pre_hook(lambda _, inputs, name=name: (inputs[0] * gates[name], *inputs[1:]))
        for conv, name in zip(model.convs, ["features", *hidden], strict=True)
    ]
    gated = torch.autograd.grad(loss(), list(gates.values()))
    for handle in handles:
        handle.remove()
    expected = {name: gradient.abs() for name, gradient in zip(gates, gated, strict=True)}
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


def test_before_the_first_gradient_every_unit_is_worth_as_little() -> None:
    assert not any(score.any() for score in scores_of(model_of(**STREAM), "gradient").values())


def test_scores_are_no_part_of_a_graph() -> None:
    model = model_of(norm="batch")
    model.convs[0].lin.weight.square().sum().backward()
    for score in ("magnitude", "norm", "gradient"):
        assert not any(tensor.requires_grad for tensor in scores_of(model, score).values())


GROUPS = [Group("features", [], [("w", 1)]), Group("a", [("w", 0)], [("v", 1)]), Group("b", [("v", 0)], [("u", 1)])]


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("feature_ratio", [None, 0.0, 0.77])
def test_each_group_loses_exactly_its_share_of_the_lowest_scores(ratio: float, feature_ratio: float | None) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(size, generator=generator) for name, size in (("features", 100), ("a", 10), ("b", 7))}
    mask = select_units(GROUPS, scores, ratio=ratio, feature_ratio=feature_ratio, seed=0)
    shares = {"features": ratio if feature_ratio is None else feature_ratio, "a": ratio, "b": ratio}
    assert list(mask) == ["features", "a", "b"]
    for name, kept in mask.items():
        gone = int(round(shares[name] * 100) * len(kept) // 100)
        assert int((~kept).sum()) == gone
        assert gone == 0 or float(scores[name][~kept].max()) < float(scores[name][kept].min())


def test_equal_scores_are_settled_by_the_seed_and_not_by_position() -> None:
    scores = {"features": torch.ones(20), "a": torch.zeros(20), "b": torch.full((20,), 2.0)}

    def drawn(seed: int) -> Mask:
        return select_units(GROUPS, scores, ratio=0.5, feature_ratio=None, seed=seed)

    assert drawn(3) == drawn(3)
    kept = torch.stack([torch.stack(list(drawn(seed).values())) for seed in range(150)]).float()
    assert torch.equal(kept.sum(-1), torch.full((150, 3), 10.0))
    # A share of 150 draws around one half: standard deviation 0.041.
    assert float((kept.mean(0) - 0.5).abs().max()) < 4.5 * 0.041
    order = torch.linspace(-1, 1, 20)
    assert float((kept @ order).mean().abs()) < 4.5 * order.square().sum().sqrt() * 0.5 / 150**0.5


def test_scores_and_ratios_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores of 'a' \(got NaN\)"):
        select_units(GROUPS[1:2], {"a": torch.tensor([1.0, float("nan")])}, ratio=0.5, feature_ratio=None, seed=0)
    with pytest.raises(ValueError, match=r"prune ratio \(got 1.0\), expected 0 <= ratio < 1"):
        select_units(GROUPS[1:2], {"a": torch.ones(4)}, ratio=1.0, feature_ratio=None, seed=0)


def test_a_mask_over_units_is_rows_that_make_and_columns_that_read() -> None:
    model = model_of(norm="batch")
    features = torch.tensor([True, False, True, True, False, True])
    first, second = torch.tensor([True, True, False, True, False]), torch.tensor([False, True, True, True, True])
    every = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters() if p.dim() > 1}
    w0, w1, w2 = (f"convs.{i}.lin.weight" for i in range(3))

    def mask(structure: Any, **units: Tensor) -> Mask:
        named = {name.replace("_", "."): kept for name, kept in units.items()}
        return entry_mask(groups_of(model, structure), named, model)

    ones = torch.ones(5, dtype=torch.bool)
    assert mask("feature", features=features) == Mask(every | {w0: features.expand(5, 6)})
    assert mask("unit", hidden_0=first, hidden_1=second) == Mask(
        {w0: first[:, None].expand(5, 6), w1: second[:, None] & first, w2: second.expand(3, 5)}
    )
    assert mask("joint", features=features, hidden_0=first, hidden_1=ones) == Mask(
        {w0: first[:, None] & features, w1: first.expand(5, 5), w2: every[w2]}
    )
    assert mask("unit", hidden_1=second) == Mask(
        {w0: every[w0], w1: second[:, None].expand(5, 5), w2: second.expand(3, 5)}
    )


def test_a_mask_over_a_stream_reaches_all_of_its_layers() -> None:
    model, units = model_of(residual=True), torch.tensor([True, True, False, True, False])
    kept = entry_mask(groups_of(model, "unit"), {"hidden": units}, model)
    w0, w1, w2 = kept.values()
    assert torch.equal(w0, units[:, None].expand(5, 6))
    assert torch.equal(w1, units[:, None] & units)
    assert torch.equal(w2, units.expand(3, 5))


def test_the_share_of_features_is_the_ratio_where_it_is_not_given() -> None:
    for structure in ("feature", "joint"):
        assert features_share(structure, 0.3, None) == 0.3
        assert features_share(structure, 0.3, 0.0) == 0.0
    for structure in ("entry", "unit", "2:4"):
        assert features_share(structure, 0.3, None) is None
        with pytest.raises(
            ValueError, match=r"feature ratio \(got 0.1\), expected weight_structure='feature' or 'joint'"
        ):
            features_share(structure, 0.3, 0.1)
