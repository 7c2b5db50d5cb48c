"""What a sweep is cut into, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gebt.cli.main import main
from gebt.data.readers.folder import save_graph_folder
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import MOST_STACKED
from gebt.experiments.sweep.jobs import Job, SweepOptions, plan_jobs
from gebt.graph import Graph


def planned(folder: Path, **options: Any) -> list[Job]:
    return plan_jobs(SweepOptions(**options).runs(), 2, folder)


def test_every_combination_is_a_cell_with_a_folder_of_its_own(tmp_path: Path) -> None:
    jobs = planned(tmp_path, models=("gcn", "gin"), ratios=("0.2,0.5", "0.07,0.9"), seeds=2, first_seed=3, hidden=8)
    assert [job.name for job in jobs] == [
        f"digits-{model}-{ratios}-s{seed}" for model in ("gcn", "gin") for ratios in ("g20-w50", "g7-w90")
        for seed in (3, 4)
    ]  # fmt: skip
    assert {job.folder.parent for job in jobs} == {tmp_path / "jobs"}
    expected = RunOptions(model="gin", edge_ratio=0.07, weight_ratio=0.9, first_seed=4, hidden=8, threads=2)
    assert jobs[-1].options == expected.resolved()
    assert not any(job.finished for job in jobs)


def test_seeds_that_pay_together_stay_together(sparse: Graph, tmp_path: Path) -> None:
    folder = save_graph_folder(tmp_path / "mine", sparse)
    jobs = planned(tmp_path, datasets=(str(folder), "digits"), seeds=MOST_STACKED + 2, hidden=8)
    names = [job.name for job in jobs]
    assert names[:2] == ["mine-gcn-g20-w50-s0-9", "mine-gcn-g20-w50-s10-11"]
    assert names[2:] == [f"digits-gcn-g20-w50-s{seed}" for seed in range(MOST_STACKED + 2)]
    apart = planned(tmp_path, datasets=(str(folder),), seeds=2, hidden=8, stack_seeds=False)
    assert [job.name for job in apart] == ["mine-gcn-g20-w50-s0", "mine-gcn-g20-w50-s1"]


def test_the_given_options_are_a_configuration_of_the_same_sweep(tmp_path: Path) -> None:
    options = SweepOptions(models=("gin",), ratios=("0.1,0.3",), epochs=3, data_root=tmp_path)
    given = options.given()
    assert not {"dataset", "model", "edge_ratio", "weight_ratio"} & given.keys()
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    assert SweepOptions(**{**given, "data_root": Path(given["data_root"])}) == options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratios", "0.2"], "--ratios (got '0.2'), expected those of edges and weights, such as 0.2,0.5"),
        (["--ratios", "0.2,x"], "--ratios (got '0.2,x')"),
        (["--ratios", "1.5,0.5"], "--edge-ratio: prune ratio (got 1.5), expected 0 <= ratio < 1"),
        (["--ratios", "0.2,0.5", "0.20,0.5"], "(got digits-gcn-g20-w50-s0 twice)"),
        (["--datasets", "digits", "coar"], "did you mean cora"),
        (["--models", "gcm"], "gcm"),
        (["--models", "gat", "--heads", "7"], "heads (got 7)"),
        (["--dataset", "digits"], "--dataset"),
        (["--edge-ratio", "0.2"], "--edge-ratio"),
        (["--workers", "0"], "--workers (got 0), expected at least 1"),
        (["--threads", "0"], "--threads (got 0), expected at least 1"),
        (["--seeds", "0"], "--seeds (got 0), expected at least 1"),
        (["--first-seed", "-1"], "--first-seed (got -1), expected at least 0"),
        (["--force", "--resume"], "--force, --resume (got both), expected at most one of them"),
        (["--engine", "dask"], "dask"),
    ],
)
def test_mistakes_end_in_one_message_before_a_folder_is_made(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", *arguments, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_no_data_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--datasets \(got none\), expected at least one"):
        SweepOptions(datasets=()).runs()


def test_a_sweep_of_other_options_is_not_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = SweepOptions(ratios=("0.2,0.5",), epochs=3, threads=1).given()
    (tmp_path / "config.json").write_text(json.dumps(given))
    for arguments, named in (
        (["--ratios", "0.2,0.5", "0.4,0.9", "--epochs", "3"], "ratios ['0.2,0.5']"),
        (["--epochs", "4"], "epochs 3"),
        (["--epochs", "3", "--seeds", "2"], "seeds 1"),
        (["--epochs", "3", "--hidden", "8"], "hidden None"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["sweep", *arguments, "--resume", "--threads", "2", "--out", str(tmp_path)])
        assert f"--resume (got a run with {named} in {tmp_path}), expected the same options" in capsys.readouterr().err
    assert json.loads((tmp_path / "config.json").read_text()) == given
