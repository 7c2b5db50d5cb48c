from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.graph import Graph
from gebt.graph.edges import EDGES
from gebt.models import GCN
from gebt.models.compact import compact_model
from gebt.prune import Mask, magnitude, mask_distance, prunable_weights
from gebt.prune.n_m_sparsity import is_two_of_four
from gebt.prune.selection import pruned_count
from gebt.recipes.search import SearchSettings, graph_only, joint, search_preset, weights_only
from gebt.ticket import Ticket
from gebt.train import History
from gebt.train.loop import copy_state
from gebt.train.search_settings import PRESETS

MakeModel = Callable[..., GCN]
RATIOS = {"edge_ratio": 0.37, "weight_ratio": 0.61}
NEVER = 1e-9


def weights_of(model: GCN) -> int:
    return sum(weight.numel() for weight in prunable_weights(model).values())


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_joint_removes_exactly_the_asked_for_counts(digits: Graph, found: Any) -> None:
    pairs, weights = digits.num_pairs, weights_of(found.model)
    assert found.ticket.edge_mask.kept == pairs - pruned_count(pairs, 0.37) == pairs - int(37 * pairs) // 100
    assert found.ticket.weight_mask.kept == weights - int(61 * weights) // 100
    assert found.ticket.edge_sparsity == pytest.approx(0.37, abs=1 / pairs)
    assert list(found.ticket.edge_mask) == [EDGES]
    assert list(found.ticket.weight_mask) == list(prunable_weights(found.model))


def test_a_search_that_does_not_fire_ends_at_its_limit_and_says_so(found: Any) -> None:
    assert (found.ticket.fired, found.ticket.epoch_drawn) == (False, 6)
    assert len(found.ticket.provenance["trajectory"]) == 5


@pytest.mark.parametrize(("window", "warmup"), [(1, 0), (2, 1)])
def test_a_search_that_fires_ends_in_that_epoch(digits: Graph, make_model: MakeModel, window: int, warmup: int) -> None:
    settings = SearchSettings(max_epochs=9, threshold=10, window=window, warmup=warmup)
    ticket = joint(make_model(), digits, **RATIOS, settings=settings)
    assert (ticket.fired, ticket.epoch_drawn) == (True, window + warmup + 1)


def test_the_ticket_holds_the_weights_before_and_after_with_pruned_entries_zero(
    found: Any, make_model: MakeModel
) -> None:
    rewound = make_model(seed=9)
    found.ticket.start(rewound, "rewind")
    for name, kept in found.ticket.weight_mask.items():
        for stored, model_state in (
            (rewound.state_dict(), found.before),
            (found.ticket.state_at_draw, found.model.state_dict()),
        ):
            assert torch.equal(stored[name][kept], model_state[name][kept])
            assert not stored[name][~kept].any()
    assert not same_state(found.before, found.model.state_dict())


def test_the_kept_weights_are_the_largest_of_the_trained_ones(found: Any) -> None:
    scores, mask = magnitude(prunable_weights(found.model)), found.ticket.weight_mask
    kept = torch.cat([scores[name][bits] for name, bits in mask.items()])
    pruned = torch.cat([scores[name][~bits] for name, bits in mask.items()])
    assert float(pruned.max()) <= float(kept.min())


def test_equal_seeds_give_equal_bytes_whatever_the_global_random_state(
    digits: Graph, make_model: MakeModel, tmp_path: Path
) -> None:
    def saved(name: str, seed: int) -> bytes:
        settings = SearchSettings(max_epochs=3, threshold=NEVER)
        return joint(make_model(), digits, **RATIOS, settings=settings, seed=seed).save(tmp_path / name).read_bytes()

    before = torch.random.get_rng_state()
    first = saved("a", 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert saved("b", 1) == first
    assert saved("c", 2) != first


def test_draws_are_watched_and_change_nothing(digits: Graph, make_model: MakeModel) -> None:
    seen: list[tuple[int, Mask, Mask]] = []

    def run(ratio: float, watched: bool) -> tuple[Ticket, GCN]:
        model, settings = make_model(), SearchSettings(max_epochs=4, threshold=NEVER)
        on_draw = (lambda *drawn: seen.append(drawn)) if watched else None
        ratios = {"edge_ratio": ratio, "weight_ratio": ratio}
        return joint(model, digits, **ratios, settings=settings, on_draw=on_draw), model

    (ticket, model), (_, other) = run(0.5, True), run(0.1, False)
    assert [epoch for epoch, *_ in seen] == [1, 2, 3, 4]
    assert (seen[-1][1], seen[-1][2]) == (ticket.weight_mask, ticket.edge_mask)
    assert same_state(model.state_dict(), other.state_dict())
    for row, before, after in zip(ticket.provenance["trajectory"], seen, seen[1:], strict=False):
        # The file holds millionths.
        weights, edges = (mask_distance(after[i], before[i], "exchanged") for i in (1, 2))
        rounded = {"weights": round(weights, 6), "edges": round(edges, 6), "criterion": round(weights + edges, 6)}
        assert row == row | rounded


def test_on_epoch_can_end_a_search_early(digits: Graph, make_model: MakeModel) -> None:
    def stop(epoch: int, history: History) -> bool:
        return epoch == 2

    ticket = joint(make_model(), digits, **RATIOS, settings=SearchSettings(threshold=NEVER), on_epoch=stop)
    assert (ticket.fired, ticket.epoch_drawn) == (False, 2)


def test_the_edges_kept_are_those_whose_values_rise_along_the_gradient(toy: Graph) -> None:
    """After one step of Adam from equal values, against the dense formula."""
    model = GCN(toy.num_features, 8, toy.num_classes, dropout=0.0)
    u, v = toy.pairs
    values = torch.ones(toy.num_pairs, dtype=torch.float64, requires_grad=True)
    adjacency = torch.eye(toy.num_nodes, dtype=torch.float64)
    adjacency = adjacency.index_put((torch.cat((u, v)), torch.cat((v, u))), values.repeat(2))
    scale = adjacency.sum(1).rsqrt()
    through = scale[:, None] * adjacency * scale
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    hidden = torch.relu(through @ toy.features.double() @ weights["convs.0.lin.weight"].t())
    logits = through @ hidden @ weights["convs.1.lin.weight"].t()
    loss = torch.nn.functional.cross_entropy(logits[toy.train_mask], toy.labels[toy.train_mask])
    (gradient,) = torch.autograd.grad(loss, values)
    rising = gradient < -1e-6
    assert bool(((gradient.abs() > 1e-6) | (gradient == 0)).all())
    ratio = 1 - int(rising.sum()) / toy.num_pairs + 1e-6
    settings = SearchSettings(max_epochs=1, edge_score="magnitude")
    ticket = joint(model, toy, edge_ratio=ratio, weight_ratio=0.0, settings=settings)
    assert torch.equal(ticket.edge_mask[EDGES], rising)


def test_graph_only_leaves_the_weights_and_what_is_trainable_as_they_were(digits: Graph, make_model: MakeModel) -> None:
    model = make_model()
    model.convs[1].bias.requires_grad_(False)
    before = copy_state(model)
    ticket = graph_only(model, digits, edge_ratio=0.5, settings=SearchSettings(max_epochs=3, threshold=NEVER))
    assert same_state(model.state_dict(), before)
    assert same_state(ticket.state_at_draw, before)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["convs.1.bias"]
    assert ticket.edge_mask.kept == digits.num_pairs - digits.num_pairs // 2
    assert ticket.weight_sparsity == 0
    assert [row["criterion"] for row in ticket.provenance["trajectory"]] == [
        row["edges"] for row in ticket.provenance["trajectory"]
    ]


def test_weights_only_keeps_every_edge(digits: Graph, make_model: MakeModel) -> None:
    model = make_model()
    ticket = weights_only(model, digits, weight_ratio=0.8, settings=SearchSettings(max_epochs=3, threshold=NEVER))
    assert ticket.edge_sparsity == 0
    assert ticket.weight_mask.kept == weights_of(model) - pruned_count(weights_of(model), 0.8)
    assert [row["criterion"] for row in ticket.provenance["trajectory"]] == [
        row["weights"] for row in ticket.provenance["trajectory"]
    ]


@pytest.mark.parametrize("bad", [{"edge_ratio": 1.0}, {"edge_ratio": -0.1}, {"weight_ratio": 1.5}])
def test_a_bad_ratio_is_refused_before_any_training(
    digits: Graph, make_model: MakeModel, bad: dict[str, float]
) -> None:
    model, epochs = make_model(), []
    before = copy_state(model)
    with pytest.raises(ValueError, match=r"prune ratio \(got .*\), expected 0 <= ratio < 1"):
        joint(model, digits, **RATIOS | bad, on_epoch=lambda epoch, _: bool(epochs.append(epoch)))
    assert epochs == []
    assert same_state(model.state_dict(), before)


def test_a_ratio_that_empties_a_layer_is_refused_by_name_and_scope_tensor_avoids_it(digits: Graph) -> None:
    def small_last_layer() -> GCN:
        model = GCN(digits.num_features, 16, digits.num_classes)
        with torch.no_grad():
            model.convs[1].lin.weight.mul_(1e-4)
        return model

    ratios = {"edge_ratio": 0.1, "weight_ratio": 0.9}
    with pytest.raises(ValueError, match=r"prune ratio \(got 0.9\) would remove all 160 entries of 'convs.1.lin.weig"):
        joint(small_last_layer(), digits, **ratios, settings=SearchSettings(max_epochs=1))
    ticket = joint(small_last_layer(), digits, **ratios, settings=SearchSettings(max_epochs=1, scope="layer"))
    assert int(ticket.weight_mask["convs.1.lin.weight"].sum()) == 16


def test_presets_are_named() -> None:
    assert search_preset("early-bird") == SearchSettings()
    assert (PRESETS["paper"].threshold, PRESETS["paper"].normalization, PRESETS["paper"].criterion) == (
        0.1,
        "hamming",
        "sum",
    )
    with pytest.raises(
        ValueError, match=r"preset \(got 'swift'\), expected one of \['best', 'early-bird', 'fast', 'paper'\]"
    ):
        search_preset("swift")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edge_learning_rate": 0.0}, r"edge learning rate, edge L1 \(got \(0.0, 0.0\)\), expected > 0 and >= 0"),
        ({"edge_l1": -1.0}, r"edge learning rate, edge L1 \(got \(0.001, -1.0\)\)"),
        ({"max_epochs": 0}, r"epochs \(got 0\), expected at least 1"),
        ({"learning_rate": -1.0}, r"learning rate, weight decay \(got \(-1.0"),
        ({"threshold": 0.0}, r"threshold \(got 0.0\)"),
        ({"normalization": "x"}, r"normalization \(got 'x'\)"),
        ({"scope": "row"}, "scope"),
        (
            {"weight_structure": "rows"},
            r"weight structure \(got 'rows'\), expected one of \('entry', 'unit', 'feature'",
        ),
        ({"unit_score": "size"}, r"unit score \(got 'size'\), expected one of \('magnitude', 'norm', 'gradient'\)"),
        ({"edge_l1": float("nan")}, "L1"),
    ],
)
def test_settings_that_make_no_sense_are_refused_when_they_are_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSettings(**settings)


def structured(structure: Any, score: Any = "magnitude", **settings: Any) -> SearchSettings:
    chosen = {"max_epochs": 3, "threshold": NEVER} | settings
    return SearchSettings(weight_structure=structure, unit_score=score, **chosen)


@pytest.mark.parametrize("options", [{"norm": "batch"}, {"norm": "batch", "residual": True}], ids=str)
@pytest.mark.parametrize("score", ["magnitude", "norm", "gradient"])
@pytest.mark.parametrize("structure", ["unit", "feature", "joint"])
def test_a_structured_ticket_is_a_network_of_exactly_the_asked_widths(
    digits: Graph, structure: Any, score: Any, options: dict[str, Any]
) -> None:
    model = GCN(digits.num_features, 16, digits.num_classes, 3, **options)
    before, seen = copy_state(model), []
    ratios = {"edge_ratio": 0.37, "weight_ratio": 0.61}
    if structure != "unit":
        ratios["feature_ratio"] = 0.3
    ticket = joint(
        model,
        digits,
        **ratios,
        settings=structured(structure, score),
        seed=2,
        on_draw=lambda *drawn: seen.append(drawn),
    )
    hidden = 16 if structure == "feature" else 16 - int(0.61 * 16)
    features = 64 if structure == "unit" else 64 - int(0.3 * 64)
    assert ticket.edge_mask.kept == digits.num_pairs - pruned_count(digits.num_pairs, 0.37)
    whole = dict(zip((f"convs.{i}.lin.weight" for i in range(3)), ((16, 64), (16, 16), (10, 16)), strict=True))
    left = dict(zip(whole, ((hidden, features), (hidden, hidden), (10, hidden)), strict=True))
    for name, kept in ticket.weight_mask.items():
        assert kept.shape == whole[name]
        assert (int(kept.any(1).sum()), int(kept.any(0).sum())) == left[name]
        assert int(kept.sum()) == left[name][0] * left[name][1]
    ticket.start(model)
    small = compact_model(model, ticket.weight_mask, digits)
    assert small.model.widths == [features, hidden, hidden, digits.num_classes]
    assert small.mask is None
    # What is watched are masks over units.
    groups = {"features": 64, **({"hidden": 16} if model.residual else {"hidden.0": 16, "hidden.1": 16})}
    wanted = {
        n: size for n, size in groups.items() if structure == "joint" or (n == "features") == (structure != "unit")
    }
    assert {name: kept.numel() for name, kept in seen[-1][1].items()} == wanted
    assert ticket.provenance.get("feature_ratio") == ratios.get("feature_ratio")
    rewound = GCN(digits.num_features, 16, digits.num_classes, 3, seed=7, **options)
    ticket.start(rewound, "rewind")
    ticket.weight_mask.apply_(before)
    assert same_state(rewound.state_dict(), before)


@pytest.mark.parametrize("structure", ["feature", "joint"])
def test_the_feature_ratio_is_the_weight_ratio_where_it_is_not_given(
    digits: Graph, make_model: MakeModel, structure: Any
) -> None:
    ticket = joint(make_model(), digits, **RATIOS, settings=structured(structure))
    assert int(ticket.weight_mask["convs.0.lin.weight"].any(0).sum()) == 64 - int(0.61 * 64)
    assert ticket.provenance["feature_ratio"] == 0.61


@pytest.mark.parametrize("structure", ["entry", "unit"])
def test_a_feature_ratio_is_refused_where_no_features_are_pruned(
    digits: Graph, make_model: MakeModel, structure: Any
) -> None:
    message = r"feature ratio \(got 0.4\), expected weight_structure='feature' or 'joint'"
    for run, ratios in ((joint, RATIOS), (weights_only, {"weight_ratio": 0.5})):
        with pytest.raises(ValueError, match=message):
            run(make_model(), digits, **ratios, feature_ratio=0.4, settings=structured(structure))  # type: ignore[operator]


def test_units_of_a_network_without_hidden_layers_are_refused(digits: Graph) -> None:
    model = GCN(digits.num_features, 16, digits.num_classes, depth=1)
    with pytest.raises(ValueError, match=r"weight structure \(got 'unit'\), expected a model with hidden layers"):
        joint(model, digits, **RATIOS, settings=structured("unit"))
    with pytest.raises(
        ValueError, match=r"unit score 'norm' \(got no normalization in 'hidden.0'\), expected norm='batch'"
    ):
        joint(GCN(digits.num_features, 16, 10), digits, **RATIOS, settings=structured("unit", "norm"))


def test_whole_units_can_be_searched_for_on_the_full_graph(digits: Graph, make_model: MakeModel) -> None:
    ticket = weights_only(make_model(), digits, weight_ratio=0.5, feature_ratio=0.25, settings=structured("joint"))
    assert ticket.edge_sparsity == 0
    assert [int(kept.sum()) for kept in ticket.weight_mask.values()] == [48 * 8, 8 * 10]


def test_edges_alone_are_searched_for_whatever_the_structure(digits: Graph, make_model: MakeModel) -> None:
    ticket = graph_only(make_model(), digits, edge_ratio=0.5, settings=structured("joint"))
    assert ticket.weight_sparsity == 0
    assert ticket.provenance["settings"]["weight_structure"] == "entry"


def test_two_of_every_four_weights_can_be_searched_for(digits: Graph, make_model: MakeModel) -> None:
    settings = structured("2:4")
    ticket = joint(make_model(), digits, edge_ratio=0.2, weight_ratio=0.5, settings=settings)
    assert all(is_two_of_four(kept) for kept in ticket.weight_mask.values())
    assert ticket.weight_sparsity == 0.5
    with pytest.raises(ValueError, match=r"weight ratio \(got 0.6\), expected 0.5 for weight_structure='2:4'"):
        joint(make_model(), digits, edge_ratio=0.2, weight_ratio=0.6, settings=settings)


def test_equal_seeds_give_equal_structured_tickets(digits: Graph, make_model: MakeModel, tmp_path: Path) -> None:
    def saved(seed: int) -> bytes:
        ticket = joint(make_model(), digits, **RATIOS, settings=structured("joint", "gradient"), seed=seed)
        return ticket.save(tmp_path / "t").read_bytes()

    assert saved(1) == saved(1)
    assert saved(1) != saved(2)
