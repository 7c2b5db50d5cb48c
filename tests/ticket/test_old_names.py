"""Files that version 0.1.0 wrote are read with today's names, and mean the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gebt.cli.main import main
from gebt.experiments import report
from gebt.experiments.options import RunOptions
from gebt.experiments.record import read_record
from gebt.experiments.setup import graph_for, model_for
from gebt.graph.batch_schedule import BatchSettings
from gebt.graph.edges import EDGES
from gebt.ticket import Seeded, Ticket
from gebt.ticket.old_names import renamed_options, renamed_provenance, renamed_record
from gebt.train.search_settings import SearchSettings

FILES = Path(__file__).parent / "files" / "0.1.0"
FOLDERS = ("run", "graphs", "batched")
# Every name that 0.1.0 wrote and that is another today.
OLD = {"draw", "edge_values", "normalisation", "parts", "parts_together", "per_step", "smoothing", "spread",
       "symmetrise", "together", "cut", "watched", "rule", "random_edges", "arm", "arms"}  # fmt: skip


def names_in(value: Any) -> set[str]:
    """Every key, however deep."""
    if isinstance(value, dict):
        return set(value).union(*map(names_in, value.values()))
    return set().union(*map(names_in, value)) if isinstance(value, list) else set()


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_ticket_has_todays_names(folder: str) -> None:
    ticket = Ticket.load(FILES / folder / "ticket.safetensors")
    assert not OLD & names_in(ticket.provenance)
    assert ticket.provenance["settings"].keys() == set(SearchSettings.__dataclass_fields__)
    assert SearchSettings(**ticket.provenance["settings"])
    assert all(row.keys() == {"weights", "edges", "criterion"} for row in ticket.provenance["trajectory"])
    assert len(ticket.provenance["trajectory"]) == (0 if folder == "run" else 2)
    assert isinstance(ticket.initial_state, Seeded)
    assert ticket.weight_sparsity == 0.5
    assert (ticket.edge_scorer is not None) == (folder == "graphs")
    assert (ticket.edge_weights is not None) == (ticket.soft_labels is not None) == (folder == "run")


def test_values_of_settings_have_todays_names() -> None:
    settings = {folder: Ticket.load(FILES / folder / "ticket.safetensors").provenance["settings"] for folder in FOLDERS}
    assert [settings[folder]["edge_score"] for folder in FOLDERS] == ["reliance", "learned", "local_degree"]
    assert [settings[folder]["edge_weights"] for folder in FOLDERS] == ["degree_corrected", "one", "one"]
    assert [settings[folder]["scope"] for folder in FOLDERS] == ["layer", "global", "global"]
    assert {settings[folder]["normalization"] for folder in FOLDERS} == {"exchanged"}
    run = settings["run"]
    assert (run["draw_at"], run["label_propagation"], run["prediction_ema"]) == ("validation", 0.8, 0.2)


def test_batches_of_a_ticket_are_settings_of_today() -> None:
    batches = Ticket.load(FILES / "batched" / "ticket.safetensors").provenance["batches"]
    settings = BatchSettings(**{**batches, "fanouts": tuple(batches["fanouts"])})
    assert settings == BatchSettings("cluster", 6, 1, 512, (10, 10), 3, accumulate_batches=2, sampler="own")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_ticket_saved_again_is_the_same(folder: str, tmp_path: Path) -> None:
    before = Ticket.load(FILES / folder / "ticket.safetensors")
    after = Ticket.load(before.save(tmp_path / "again.safetensors"))
    assert torch.equal(before.edge_mask[EDGES], after.edge_mask[EDGES])
    assert equal(dict(before.weight_mask), dict(after.weight_mask))
    assert equal(before.state_at_draw, after.state_at_draw)
    assert before.initial_state == after.initial_state
    assert before.provenance == after.provenance
    for name in ("edge_weights", "soft_labels"):
        first, second = getattr(before, name), getattr(after, name)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)
    if before.edge_scorer is not None:
        assert after.edge_scorer is not None
        assert equal(before.edge_scorer.state_dict(), after.edge_scorer.state_dict())


@pytest.mark.parametrize("folder", ["run", "batched"])
def test_a_ticket_fits_the_graph_and_network_of_its_configuration(folder: str) -> None:
    options = RunOptions(**renamed_options(json.loads((FILES / folder / "config.json").read_text()))).resolved()
    graph = graph_for(options, 0)
    model = model_for(options, graph, 0)
    ticket = Ticket.load(FILES / folder / "ticket.safetensors")
    ticket.check(model, graph)
    ticket.start(model, "rewind")
    assert all(not parameter[~ticket.weight_mask[name]].any() for name, parameter in model.named_parameters()
               if name in ticket.weight_mask)  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_record_has_todays_names_and_a_table(folder: str, tmp_path: Path) -> None:
    record = read_record(FILES / folder)
    assert not OLD & names_in(record)
    config = record["config"]
    assert config.keys() <= set(RunOptions.__dataclass_fields__)
    assert config["preset"] == "early-bird"
    assert "batches" not in config
    assert (config.get("batching"), config["num_parts"]) == (("cluster", 6) if folder == "batched" else (None, 10))
    assert config["stack_seeds"] == (folder != "run")
    assert list(record["summary"]) == ["dense", "random", "random_edges_control", "ticket"]
    assert {"random_edges_control", "stacked"} <= record["per_seed"][0].keys()
    lines = report.table(record).splitlines()
    assert lines[0].split() == ["dense", "random", "random", "edges", "ticket"]
    accuracy = record["summary"]["ticket"]["accuracy"]["mean"]
    assert lines[2].endswith(f"{100 * accuracy:.2f}")
    assert {path.name for path in report.pictures(record, tmp_path)} == {
        "trajectory.png", "distances.png", "savings.png"
    }  # fmt: skip


def test_an_old_configuration_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--epochs", "2", "--max-epochs", "2", "--retrain-epochs", "1", "--dataset", "digits"]
    main(["--config", str(FILES / "run" / "config.json"), "run", *few, "--json", "--out", str(tmp_path / "run")])
    assert json.loads(capsys.readouterr().out)["ticket"]["edge_sparsity"] > 0.19
    settings = Ticket.load(tmp_path / "run" / "ticket.safetensors").provenance["settings"]
    old = Ticket.load(FILES / "run" / "ticket.safetensors").provenance["settings"]
    assert settings == {**old, "max_epochs": 2}


def test_todays_names_stay() -> None:
    options = {"edge_score": "similarity", "batching": "random-walk", "num_parts": 3, "score": ["uniform"], "seeds": 2}
    assert renamed_options(options) == options
    provenance = {"method": "random_edges_control", "batches": {"strategy": "neighbor"}, "trajectory": []}
    assert renamed_provenance(provenance) == provenance


def test_names_of_the_other_records_are_todays() -> None:
    bench = {"bench": {"arms": {"dense": {}}, "notes": {}}}
    assert renamed_record(bench) == {"bench": {"variants": {"dense": {}}, "notes": {}}}
    row = {"arm": "shuffled in all", "ratio": 0.5}
    images = {"config": {"controls": ["shuffled in all"], "rule": "newest", "least": 0.1}, "rows": [row]}
    assert renamed_record({**images, "summary": [{"arm": "even"}]}) == {
        "config": {"controls": ["shuffled_global"], "compare": "window", "min_keep": 0.1},
        "rows": [{"variant": "shuffled_global", "ratio": 0.5}],
        "summary": [{"variant": "uniform"}],
    }
    sweep = {"rows": [{"summary": {"random_edges": 1}, "difference": {"random_edges": 2}}]}
    assert renamed_record(sweep) == {
        "rows": [{"summary": {"random_edges_control": 1}, "difference": {"random_edges_control": 2}}]
    }
