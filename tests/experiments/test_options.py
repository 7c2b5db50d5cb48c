"""Options: filled in from preset and data set, refused when wrong, reproduced from their own file."""

import json

import pytest

from gebt.data.manifest import dataset_info
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import macs_for
from gebt.recipes.retrain import RetrainSettings
from gebt.train.search_settings import PRESETS, SearchSettings


def test_open_options_come_from_the_data_set_and_the_preset():
    options = RunOptions(dataset="cora", edge_ratio=0.2, weight_ratio=0.9).resolved()
    assert (options.hidden, options.depth, options.dropout, options.epochs) == (16, 2, 0.5, 200)
    assert options.retrain_learning_rate == pytest.approx(4 * options.learning_rate)
    assert options.search() == PRESETS["early-bird"] == SearchSettings()
    assert options.retraining() == RetrainSettings()


def test_paper_preset_is_the_papers_settings():
    options = RunOptions(dataset="cora", edge_ratio=0.2, weight_ratio=0.9, preset="paper").resolved()
    search = options.search()
    assert (options.hidden, options.depth, options.epochs, options.retrain_epochs) == (16, 2, 100, 100)
    assert (search.max_epochs, search.learning_rate, search.edge_learning_rate) == (100, 0.01, 0.001)
    assert (search.threshold, search.window, search.criterion, search.normalization) == (0.1, 3, "sum", "hamming")
    assert (search.edge_score, search.warmup, search.scope) == ("magnitude", 0, "global")
    assert options.retrain_learning_rate == options.learning_rate == 0.01
    assert options.start == "inherit"


def test_given_options_win():
    options = RunOptions(dataset="cora", hidden=8, epochs=3, threshold=0.5, warmup=2, preset="paper").resolved()
    assert (options.hidden, options.epochs, options.threshold, options.warmup) == (8, 3, 0.5, 2)


def test_the_structure_of_the_weights_and_the_compaction_reach_search_and_retraining():
    plain = RunOptions(dataset="cora").resolved()
    assert (plain.search().weight_structure, plain.search().unit_score) == ("entry", "magnitude")
    assert plain.retraining().compaction
    structured = {"weight_structure": "joint", "unit_score": "gradient", "feature_ratio": 0.8}
    options = RunOptions(dataset="cora", compaction=False, **structured).resolved()
    assert (options.search().weight_structure, options.search().unit_score) == ("joint", "gradient")
    assert not options.retraining().compaction
    again = RunOptions(**json.loads(options.to_json()))
    assert again.resolved() == options
    assert (again.feature_ratio, again.compaction) == (0.8, False)


@pytest.mark.parametrize("structure", ["feature", "joint"])
@pytest.mark.parametrize("ratio", [None, 0.0, 0.99])
def test_a_feature_ratio_is_taken_where_features_are_pruned(structure, ratio):
    assert RunOptions(weight_structure=structure, feature_ratio=ratio).resolved().feature_ratio == ratio


def test_features_are_dropped_as_units_are_where_nothing_else_is_said_or_recorded():
    def rates(**given):
        options = RunOptions(**given).resolved()
        return options.dropout, options.input_dropout

    assert rates(dataset="cora") == (0.5, 0.5)
    assert rates(dataset="cora", dropout=0.2) == (0.2, 0.2)
    assert rates(dataset="cora", input_dropout=0.0) == (0.5, 0.0)
    recorded = dataset_info("reddit-surrogate").training
    assert rates(dataset="reddit-surrogate", dropout=0.2) == (0.2, recorded.input_dropout)
    assert rates(dataset="reddit-surrogate", input_dropout=0.3) == (recorded.dropout, 0.3)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"--device \(got 'cuda', but torch sees no CUDA device\), expected 'cpu'"):
        RunOptions(device="cuda").resolved()
    assert RunOptions(device="cpu").resolved().device == "cpu"


def test_resolving_twice_changes_nothing():
    once = RunOptions(dataset="citeseer", edge_ratio=0.4, weight_ratio=0.9, seeds=3).resolved()
    assert once.resolved() == once


def test_the_written_configuration_gives_the_same_options():
    options = RunOptions(dataset="cora", edge_ratio=0.3, weight_ratio=0.7, seeds=2, preset="paper", epochs=7).resolved()
    assert RunOptions(**json.loads(options.to_json())).resolved() == options


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"edge_ratio": 1.0}, r"--edge-ratio: prune ratio \(got 1.0\), expected 0 <= ratio < 1"),
        ({"weight_ratio": -0.1}, r"--weight-ratio: prune ratio \(got -0.1\)"),
        ({"seeds": 0}, r"--seeds \(got 0\), expected at least 1"),
        ({"threads": 0}, r"--threads \(got 0\)"),
        ({"epochs": 0}, r"epochs \(got 0\)"),
        ({"learning_rate": 0.0}, r"learning rate, weight decay \(got \(0.0, "),
        ({"threshold": 0.0}, r"threshold \(got 0.0\)"),
        ({"window": 0}, r"window, warmup \(got 0, 0\)"),
        ({"edge_learning_rate": -1.0}, r"edge learning rate"),
        ({"normalization": "local_degree"}, r"normalization \(got 'local_degree'\), expected one of"),
        ({"criterion": "mean"}, r"criterion \(got 'mean'\), expected one of"),
        ({"weight_structure": "block"}, r"weight structure \(got 'block'\), expected one of \('entry', 'unit', "),
        ({"unit_score": "taylor"}, r"unit score \(got 'taylor'\), expected one of \('magnitude', 'norm', 'gradient'\)"),
        ({"feature_ratio": 0.5}, r"--feature-ratio \(got 0.5\), expected --weight-structure feature or joint"),
        ({"feature_ratio": 0.0, "weight_structure": "unit"}, r"--feature-ratio \(got 0.0\), expected --weight-struct"),
        (
            {"feature_ratio": 1.0, "weight_structure": "joint"},
            r"--feature-ratio: prune ratio \(got 1.0\), expected 0 <",
        ),
        ({"feature_ratio": float("nan"), "weight_structure": "joint"}, r"--feature-ratio: prune ratio \(got nan\)"),
        ({"backend": "cuda"}, r"backend \(got 'cuda'\), expected one of auto, "),
        ({"preset": "swift"}, r"preset \(got 'swift'\), expected one of \['best', 'early-bird', 'fast', 'paper'\]"),
        ({"dataset": "coar"}, r"data set \(got 'coar'\).*did you mean cora"),
    ],
)
def test_wrong_options_are_refused_with_their_name_and_value(wrong, message):
    with pytest.raises(ValueError, match=message):
        RunOptions(**wrong).resolved()


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gcn", (16, 2, 0.5, 0.01)),
        ("gat", (64, 2, 0.6, 0.005)),
        ("sage", (16, 2, 0.5, 0.01)),
        ("gin", (64, 2, 0.8, 0.003)),
        ("resgcn14", (128, 14, 0.5, 0.01)),
    ],
)
def test_networks_have_settings_of_their_own_where_the_data_set_s_are_a_gcn_s(model, expected):
    options = RunOptions(dataset="cora", model=model).resolved()
    assert (options.hidden, options.depth, options.dropout, options.learning_rate) == expected
    assert RunOptions(dataset="cora", model=model, hidden=24, depth=3).resolved().hidden == 24
    assert options.scope == ("layer" if model.startswith("resgcn") else "global")
    assert RunOptions(dataset="cora", model=model, preset="paper").resolved().scope == "global"


def test_a_set_of_graphs_is_searched_by_a_rule_for_as_long_as_its_network_is_trained():
    options = RunOptions(dataset="proteins", preset="best").resolved()
    epochs = dataset_info("proteins").training.epochs
    assert (options.model, options.edge_score, options.label_propagation, options.draw_at) == (
        "gin",
        "learned",
        0.0,
        "validation",
    )
    assert (options.epochs, options.max_epochs, options.retrain_epochs) == (epochs, epochs, epochs)
    assert options.search_learning_rate == options.retrain_learning_rate == options.learning_rate
    assert (RunOptions().resolved().model, RunOptions(dataset="proteins", epochs=7).resolved().epochs) == ("gcn", 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "gcn"}, r"--model \(got 'gcn'\), expected 'gin' for a set of graphs"),
        (
            {"edge_score": "local_degree"},
            r"--edge-score \(got 'local_degree'\), expected 'learned' for a set of graphs",
        ),
        ({"method": ("ugs",)}, r"--method, --algorithm \(got \('ugs', 'joint'\)\), expected 'gebt', 'random'"),
        ({"algorithm": "graph"}, r"--method, --algorithm \(got \('graph',\)\)"),
    ],
)
def test_what_a_set_of_graphs_has_not_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RunOptions(dataset="mutag", **given).resolved()


def test_multiply_adds_are_those_of_the_convention_for_every_network(digits):
    """heads (L M F + N W_head), W_head the weights that one head has."""
    nodes, pairs, features, classes = digits.num_nodes, digits.num_pairs, digits.num_features, digits.num_classes
    weights = {
        "gcn": (1, features * 16 + 16 * classes),
        "sage": (1, 2 * (features * 16 + 16 * classes)),
        "gin": (1, features * 16 + 16 * 16 + 16 * classes + classes * classes),
        "gat": (8, (features * 16 + 16 * 8 * classes) / 8),
    }
    for model, (heads, each) in weights.items():
        options = RunOptions(model=model, hidden=16).resolved()
        assert macs_for(options, digits, None) == heads * (2 * pairs * features + nodes * each)
