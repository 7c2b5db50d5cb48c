"""Every baseline by name: measured sparsity as asked, epochs as foretold, a row of its own beside GEBT's in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from gebt.cli.main import main
from gebt.experiments.methods import OTHER_METHODS, method_epochs, run_method
from gebt.experiments.options import OtherMethod, RunOptions
from gebt.experiments.record import read_record
from gebt.experiments.setup import macs_for, model_for
from gebt.graph import Graph
from gebt.train import NodeTask

FEW: dict[str, Any] = {"hidden": 8, "epochs": 3, "retrain_epochs": 3, "max_epochs": 3, "weight_ratio": 0.5}


@pytest.mark.parametrize("name", OTHER_METHODS)
def test_a_baseline_ends_at_the_ratios_with_a_trained_ticket(name: OtherMethod, digits: Graph) -> None:
    options = RunOptions(edge_ratio=0.3, **FEW).resolved()
    model, told = model_for(options, digits, 1), []
    found = run_method(name, options, digits, model, 1, lambda epoch, history: told.append(epoch) or False)
    assert len(told) == sum(phase.epochs for phase in found.phases)
    most = method_epochs(name, options)
    assert len(told) == most or (name == "released" and len(told) < most and found.ticket.fired)
    assert found.ticket.provenance["method"] == name.replace("one-shot", "imp")
    asked = {"dropedge": (0.0, 0.0), "released": (0.3, 0.0)}.get(name, (0.3, 0.5))
    assert found.ticket.edge_sparsity == pytest.approx(asked[0], abs=1e-3)
    # TEDDY counts biases, and UGS rounds down in every round.
    assert found.ticket.weight_sparsity == pytest.approx(asked[1], abs=2e-2)
    assert found.test_accuracy == NodeTask(digits, found.edges).evaluate(model)[2]


def test_another_name_is_refused(digits: Graph) -> None:
    options = RunOptions(**FEW).resolved()
    with pytest.raises(ValueError, match=r"method \(got 'nobody'\), expected one of \('ugs'"):
        run_method("nobody", options, digits, model_for(options, digits, 0), 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"--method \(got 'nobody'\), expected some of \('gebt', 'random', 'dense'"):
        RunOptions(method=("gebt", "nobody")).resolved()  # type: ignore[arg-type]


def test_a_run_adds_a_key_for_each_method(tmp_path: Path, capsys: pytest.CaptureFixture[str], digits: Graph) -> None:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in FEW.items()]
    main(
        [
            "run",
            *given,
            "--method",
            "gebt",
            "--method",
            "one-shot",
            "--method",
            "teddy",
            "--json",
            "--out",
            str(tmp_path),
        ]
    )
    answer = json.loads(capsys.readouterr().out)
    assert {"dense", "random", "random_edges_control", "ticket", "one-shot", "teddy"} <= answer.keys()
    assert answer["one-shot"].keys() == answer["random"].keys()
    record = read_record(tmp_path)
    options = RunOptions(**FEW).resolved()
    row, whole = record["per_seed"][0]["one-shot"], macs_for(options, digits, None)
    assert row["macs_paper"]["training"] == 3 * 3 * (whole + row["macs_paper"]["inference"])
    assert row["flops_executed"]["training"] > 0
    assert row["seconds"]["search"] > 0
    again = json.loads((tmp_path / "config.json").read_text())
    assert again["method"] == ["gebt", "one-shot", "teddy"]
    main(["run", "--config", str(tmp_path / "config.json"), "--json", "--out", str(tmp_path / "again")])
    twin = json.loads(capsys.readouterr().out)
    assert [twin[variant]["accuracy"] for variant in ("ticket", "teddy")] == [
        answer[variant]["accuracy"] for variant in ("ticket", "teddy")
    ]
    assert set(get_args(OtherMethod)) == set(OTHER_METHODS)
