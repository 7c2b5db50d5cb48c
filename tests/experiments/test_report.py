"""Tables and pictures are made from a record as it stands on disk."""

import copy
import json

import matplotlib.image
import pytest

from gebt.experiments.compare import run
from gebt.experiments.options import RunOptions
from gebt.experiments.record import RunFolder, read_record
from gebt.experiments.report import pictures, table
from gebt.experiments.summary import summarize


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "run"
    options = RunOptions(epochs=3, retrain_epochs=2, max_epochs=5, hidden=8, weight_ratio=0.75).resolved()
    run(options, RunFolder(path))
    return path


def test_pictures_of_a_record_read_back(folder, tmp_path):
    for path in pictures(read_record(folder), tmp_path):
        height, width, _ = matplotlib.image.imread(path).shape
        assert min(height, width) > 300


def test_the_heat_map_is_a_distance(folder):
    record = read_record(folder)
    for kind in ("edges", "weights"):
        rows = record["pairwise"][kind]
        assert len(rows) == record["summary"]["ticket"]["epoch_drawn"][0]
        for i, row in enumerate(rows):
            assert row[i] == 0
            assert all(0 <= d <= 1 and d == rows[j][i] for j, d in enumerate(row))


def test_the_table_shows_every_measure_against_dense(folder):
    record = read_record(folder)
    dense, ticket = record["summary"]["dense"], record["summary"]["ticket"]
    lines = {line.split("  ")[0]: line for line in table(record).splitlines()}
    assert f"{100 * ticket['accuracy']['mean']:.2f}" in lines["test accuracy, %"]
    ratio = ticket["macs_paper"]["inference"] / dense["macs_paper"]["inference"]
    assert f"({ratio:.2f}x)" in lines["macs_paper, inference"]
    assert "75.00" in lines["weight sparsity, %"]
    assert {
        "epoch drawn",
        "seconds, search",
        "seconds, inference",
        "peak memory",
        "weights / ticket file",
    } <= lines.keys()


def test_costs_of_a_record_follow_from_its_counts(folder):
    record = read_record(folder)
    graph, config, row = record["graph"], record["config"], record["per_seed"][0]
    weights = graph["features"] * config["hidden"] + config["hidden"] * graph["classes"]
    dense = 2 * graph["pairs"] * graph["features"] + graph["nodes"] * weights
    kept = 2 * (graph["pairs"] - graph["pairs"] // 5) * graph["features"] + graph["nodes"] * (
        weights - weights * 3 // 4
    )
    assert row["dense"]["macs_paper"] == {"inference": dense, "training": 3 * 3 * dense}
    drawn = row["ticket"]["epoch_drawn"]
    assert row["ticket"]["macs_paper"] == {"inference": kept, "training": 3 * (2 * kept + drawn * dense)}
    assert row["random"]["macs_paper"]["training"] == 3 * 2 * kept
    assert row["random"]["seconds"]["search"] == 0 < row["random_edges_control"]["seconds"]["search"]


def test_a_summary_is_mean_unbiased_std_and_median(folder):
    row = read_record(folder)["per_seed"][0]
    rows = [copy.deepcopy(row) for _ in range(3)]
    for seed, accuracy in enumerate((0.5, 0.7, 0.9)):
        rows[seed]["ticket"]["accuracy"] = accuracy
        rows[seed]["ticket"]["seconds"]["retrain"] = float(seed**2)
    ticket = summarize(rows)["ticket"]
    assert ticket["accuracy"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.2), "values": [0.5, 0.7, 0.9]}
    assert ticket["seconds"]["retrain"] == 1.0
    assert summarize(rows[:1])["ticket"]["accuracy"]["std"] is None
    json.dumps(summarize(rows))


def test_seconds_of_seeds_trained_together_say_so(folder):
    record = read_record(folder)
    assert "trained together" not in table(record)
    record["per_seed"][0]["stacked"] = 7
    assert "7 trained together" in table(record)
