from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.graph import Graph
from gebt.models import GCN
from gebt.prune import prunable_weights
from gebt.prune.selection import pruned_count
from gebt.recipes import baselines, retrain
from gebt.recipes.search import SearchSettings, joint
from gebt.ticket import Ticket
from gebt.train import NodeTask, TrainingSettings, fit
from gebt.train.loop import adam, copy_state

MakeModel = Callable[..., GCN]


def test_dense_is_a_plain_fit_of_the_whole_network(digits: Graph, make_model: MakeModel) -> None:
    settings, model, other = TrainingSettings(epochs=3), make_model(), make_model()
    history = baselines.dense(model, digits, settings, seed=4)
    expected = fit(other, NodeTask(digits), [adam(other, settings)], 3, seed=4)
    assert history.losses == expected.losses
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_a_random_ticket_removes_as_many_as_a_search_would(digits: Graph, make_model: MakeModel, found: Any) -> None:
    model = make_model()
    before = copy_state(model)
    ticket = baselines.random_ticket(model, digits, edge_ratio=0.37, weight_ratio=0.61, seed=1)
    assert ticket.edge_mask.kept == found.ticket.edge_mask.kept
    assert ticket.weight_mask.kept == found.ticket.weight_mask.kept
    assert (ticket.epoch_drawn, ticket.fired) == (0, False)
    for name, kept in ticket.weight_mask.items():
        assert torch.equal(ticket.state_at_draw[name], before[name] * kept)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    rewound = make_model(seed=8)
    ticket.start(rewound, "rewind")
    assert all(torch.equal(ticket.state_at_draw[name], tensor) for name, tensor in rewound.state_dict().items())


def test_random_tickets_are_seeded_and_know_nothing_of_the_weights(
    digits: Graph, make_model: MakeModel, tmp_path: Path
) -> None:
    def draw(seed: int, model_seed: int = 0) -> Ticket:
        ratios = {"edge_ratio": 0.5, "weight_ratio": 0.5}
        return baselines.random_ticket(make_model(seed=model_seed), digits, **ratios, seed=seed)

    assert draw(1).save(tmp_path / "a").read_bytes() == draw(1).save(tmp_path / "b").read_bytes()
    assert draw(1).weight_mask == draw(1, model_seed=7).weight_mask
    assert draw(1).weight_mask != draw(2).weight_mask
    assert draw(1).edge_mask != draw(2).edge_mask


def test_random_edges_keep_the_tickets_weights_and_count(digits: Graph, found: Any) -> None:
    ticket = baselines.random_edges(found.ticket, digits, seed=1)
    assert ticket.edge_mask.kept == found.ticket.edge_mask.kept
    assert ticket.edge_mask != found.ticket.edge_mask
    assert ticket.edge_mask == baselines.random_edges(found.ticket, digits, seed=1).edge_mask
    assert ticket.edge_mask != baselines.random_edges(found.ticket, digits, seed=2).edge_mask
    assert ticket.weight_mask == found.ticket.weight_mask
    assert ticket.state_at_draw is found.ticket.state_at_draw
    assert ticket.provenance == found.ticket.provenance | {"method": "random_edges_control"}
    assert found.ticket.provenance["method"] == "gebt"


@pytest.mark.parametrize("ratio", [0.0, 0.9])
def test_baseline_tickets_can_be_saved_loaded_and_retrained(
    digits: Graph, make_model: MakeModel, tmp_path: Path, ratio: float
) -> None:
    drawn = baselines.random_ticket(make_model(), digits, edge_ratio=ratio, weight_ratio=ratio)
    ticket = Ticket.load(drawn.save(tmp_path / "t"))
    settings = retrain.RetrainSettings(TrainingSettings(epochs=2))
    result = retrain.run(ticket, make_model(), digits, settings)
    assert result.edges.num_pairs == digits.num_pairs - pruned_count(digits.num_pairs, ratio)


def test_a_random_ticket_that_empties_a_layer_is_refused_by_name(digits: Graph) -> None:
    model = GCN(digits.num_features, 1, 1)
    assert [weight.numel() for weight in prunable_weights(model).values()] == [64, 1]
    with pytest.raises(ValueError, match=r"would remove all 1 entries of 'convs.1.lin.weight'"):
        baselines.random_ticket(model, digits, edge_ratio=0.0, weight_ratio=0.98)


@pytest.mark.parametrize("bad", [{"edge_ratio": 1.0}, {"weight_ratio": -0.5}])
def test_a_bad_ratio_is_refused(digits: Graph, make_model: MakeModel, bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"prune ratio \(got .*\), expected 0 <= ratio < 1"):
        baselines.random_ticket(make_model(), digits, **{"edge_ratio": 0.1, "weight_ratio": 0.1} | bad)


@pytest.mark.parametrize("options", [{}, {"norm": "batch", "residual": True}], ids=str)
@pytest.mark.parametrize(
    ("structure", "ratios"),
    [
        ("unit", {"weight_ratio": 0.61}),
        ("feature", {"weight_ratio": 0.61, "feature_ratio": 0.3}),
        ("joint", {"weight_ratio": 0.61}),
        ("joint", {"weight_ratio": 0.61, "feature_ratio": 0.9}),
        ("2:4", {"weight_ratio": 0.5}),
    ],
)
def test_a_random_ticket_of_a_structure_has_the_counts_of_a_searched_one(
    digits: Graph, structure: Any, ratios: dict[str, float], options: dict[str, Any]
) -> None:
    def fresh() -> GCN:
        return GCN(digits.num_features, 16, digits.num_classes, 3, **options)

    settings = SearchSettings(max_epochs=1, weight_structure=structure)
    searched = joint(fresh(), digits, edge_ratio=0.37, **ratios, settings=settings)
    drawn = [
        baselines.random_ticket(fresh(), digits, edge_ratio=0.37, **ratios, weight_structure=structure, seed=seed)
        for seed in (1, 1, 2)
    ]
    for ticket in drawn:
        assert ticket.edge_mask.kept == searched.edge_mask.kept
        for name, kept in ticket.weight_mask.items():
            assert int(kept.sum()) == int(searched.weight_mask[name].sum())
            assert int(kept.any(0).sum()) == int(searched.weight_mask[name].any(0).sum())
            assert int(kept.any(1).sum()) == int(searched.weight_mask[name].any(1).sum())
    assert drawn[0].weight_mask == drawn[1].weight_mask
    assert drawn[0].weight_mask != drawn[2].weight_mask
    assert drawn[0].weight_mask != searched.weight_mask


@pytest.mark.parametrize("structure", ["entry", "unit", "2:4"])
def test_a_feature_ratio_is_refused_where_no_features_are_pruned(
    digits: Graph, make_model: MakeModel, structure: Any
) -> None:
    ratios = {"edge_ratio": 0.3, "weight_ratio": 0.5, "feature_ratio": 0.4}
    with pytest.raises(ValueError, match=r"feature ratio \(got 0.4\), expected weight_structure='feature' or 'joint'"):
        baselines.random_ticket(make_model(), digits, **ratios, weight_structure=structure)


def test_drop_edge_draws_anew_each_epoch_and_is_evaluated_on_the_whole_graph(sparse: Graph) -> None:
    settings = TrainingSettings(epochs=5, learning_rate=0.02)
    model = GCN(sparse.num_features, 8, sparse.num_classes, seed=0)
    history = baselines.drop_edge(model, sparse, settings, rate=0.4, seed=1)
    assert history.accuracy == NodeTask(sparse).evaluate(model)[2]
    plain, nothing = (GCN(sparse.num_features, 8, sparse.num_classes, seed=0) for _ in range(2))
    dense = baselines.dense(plain, sparse, settings, seed=1)
    assert history.losses != dense.losses
    whole = baselines.drop_edge(nothing, sparse, settings, rate=0.0, seed=1)
    torch.testing.assert_close(torch.tensor(whole.losses), torch.tensor(dense.losses))
