"""`gebt sweep` run for real on the embedded digits with few epochs: workers, deaths, interrupts, resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from gebt.cli.main import main
from gebt.experiments.options import RunOptions
from gebt.experiments.record import read_record
from gebt.experiments.sweep.jobs import Job
from gebt.experiments.sweep.report import rows_of, table
from gebt.ticket import Ticket

pytestmark = pytest.mark.slow
FEW = ["--epochs", "3", "--retrain-epochs", "2", "--max-epochs", "4", "--hidden", "8", "--threads", "1"]
TWO = ["--ratios", "0.2,0.5", "0.4,0.9", *FEW]
NAMES = ["digits-gcn-g20-w50-s0", "digits-gcn-g20-w50-s1", "digits-gcn-g40-w90-s0", "digits-gcn-g40-w90-s1"]
VARIANTS = ("dense", "random", "random_edges_control", "ticket")
COMMAND = [sys.executable, "-m", "gebt", "sweep"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def sweep(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def started(*arguments: str | Path) -> subprocess.Popen[str]:
    # What a shell starts in the background ignores interrupts, and so would this process.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=heeds, start_new_session=True,
    )  # fmt: skip


def until(there: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The workers among the processes that a sweep has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def written(path: Path) -> int:
    """When the file was written, in nanoseconds; 0: it was not."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def outcome(folder: Path) -> list[Any]:
    """What the table of a sweep shows, but for seconds and bytes, which no two runs share."""
    found = []
    for row in read_record(folder)["rows"]:
        chosen = {key: row[key] for key in ("dataset", "model", "edge_ratio", "weight_ratio", "seeds", "difference")}
        measured = ("accuracy", "macs_paper", "edge_sparsity", "weight_sparsity")
        found.append([chosen, [[row["summary"][variant][key] for key in measured] for variant in VARIANTS]])
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A sweep of two pairs of ratios and two seeds by two workers: its folder, its JSON, what it said."""
    folder = tmp_path_factory.mktemp("sweep") / "two"
    done = sweep(*TWO, "--seeds", "2", "--workers", "2", "--json", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def test_a_sweep_folder_holds_a_whole_run_for_every_cell(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, answer, said = finished
    assert {path.name for path in folder.iterdir()} == {"config.json", "record.json", "sweep.png", "jobs"}
    assert sorted(path.name for path in (folder / "jobs").iterdir()) == NAMES
    for name in NAMES:
        job = read_record(folder / "jobs" / name)
        assert job["complete"]
        assert [row["seed"] for row in job["per_seed"]] == [int(name[-1])]
        ticket = Ticket.load(folder / "jobs" / name / "ticket.safetensors")
        assert ticket.provenance["seed"] == int(name[-1])
    record = read_record(folder)
    assert record["complete"]
    assert (record["workers"], record["engine"], record["machine"]["threads"]) == (2, "pool", 1)
    assert answer == {"complete": True, "rows": record["rows"], "missing": {}}
    height, width, _ = matplotlib.image.imread(folder / "sweep.png").shape
    assert min(height, width) > 300
    assert "4/4" in said
    assert table(record["rows"]) in said


def test_rows_hold_what_the_cells_do(finished: tuple[Path, dict[str, Any], str]) -> None:
    folder, answer, _ = finished
    for row, names in zip(answer["rows"], (NAMES[:2], NAMES[2:]), strict=True):
        own = [read_record(folder / "jobs" / name)["per_seed"][0] for name in names]
        for variant in VARIANTS:
            values = [each[variant]["accuracy"] for each in own]
            assert row["summary"][variant]["accuracy"]["values"] == values
            assert row["summary"][variant]["accuracy"]["std"] == pytest.approx(np.std(values, ddof=1))
        assert row["seeds"] == [0, 1]
        assert row["summary"]["ticket"]["weight_sparsity"] == pytest.approx(row["weight_ratio"], abs=0.01)


def test_the_difference_is_paired_with_the_interval_of_student(
    finished: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    record = read_record(finished[0] / "jobs" / NAMES[0])
    options = RunOptions(edge_ratio=0.2, weight_ratio=0.5).resolved()
    jobs, dense, ticket = [], (0.5, 0.7, 0.6), (0.52, 0.71, 0.66)
    for seed, values in enumerate(zip(dense, ticket, strict=True)):
        jobs.append(Job(options, tmp_path / str(seed)))
        jobs[-1].folder.mkdir()
        record["per_seed"][0] |= {"seed": seed}
        for variant, value in zip(("dense", "ticket"), values, strict=True):
            record["per_seed"][0][variant]["accuracy"] = value
        (jobs[-1].folder / "record.json").write_text(json.dumps(record))
    missing = Job(options, tmp_path / "missing")
    (row,) = rows_of([*jobs, missing])
    differences = np.subtract(ticket, dense)
    low, high = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    found = row["difference"]["ticket"]
    assert found["mean"] == pytest.approx(0.03)
    assert (found["mean"] - found["half"], found["mean"] + found["half"]) == pytest.approx((low, high))
    shown = table([row]).splitlines()[2]
    assert f"+3.00 ± {100 * (high - low) / 2:.2f}" in shown
    assert "3 of 4" in shown
    assert rows_of([missing]) == []
    assert rows_of(jobs[:1])[0]["difference"]["ticket"]["half"] is None


def test_resuming_runs_what_is_missing_and_nothing_else(
    finished: tuple[Path, dict[str, Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    records = {name: folder / "jobs" / name / "record.json" for name in NAMES}
    records[NAMES[0]].unlink()
    half = read_record(records[NAMES[3]].parent)
    records[NAMES[3]].write_text(json.dumps({**half, "complete": False}))
    before = {name: written(path) for name, path in records.items()}
    # One worker now, where there were two: the table is the same.
    main(["sweep", *TWO, "--seeds", "2", "--resume", "--out", str(folder)])
    assert "2/2" in capsys.readouterr().err
    assert {name for name, path in records.items() if written(path) != before[name]} == {NAMES[0], NAMES[3]}
    assert outcome(folder) == outcome(finished[0])
    before = {name: written(path) for name, path in records.items()}
    main(["--config", str(folder / "config.json"), "sweep", "--resume", "--out", str(folder)])
    assert "job" not in capsys.readouterr().err  # no bar
    assert {name: written(path) for name, path in records.items()} == before


def test_a_folder_in_use_is_replaced_by_force_alone(
    finished: tuple[Path, dict[str, Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    (folder / "jobs" / NAMES[1] / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", *FEW, "--out", str(folder)])
    assert "--force replaces a run" in capsys.readouterr().err
    # Refused in the worker, which is no death: said once, with the job's name, and the sweep ends.
    with pytest.raises(SystemExit, match="1"):
        main(["sweep", "--ratios", "0.2,0.9999", *FEW, "--force", "--json", "--out", str(folder)])
    said = capsys.readouterr()
    assert said.err.count("digits-gcn-g20-w99.99-s0: ") == 2
    assert "tried again" not in said.err
    answer = json.loads(said.out)
    assert (answer["complete"], answer["rows"]) == (False, [])
    assert "would remove all" in answer["missing"]["digits-gcn-g20-w99.99-s0"]
    left = {str(path.relative_to(folder)) for path in (folder / "jobs").rglob("*") if path.suffix != ".json"}
    assert left == {f"jobs/{name}" for name in (NAMES[1], "digits-gcn-g20-w99.99-s0")} | {f"jobs/{NAMES[1]}/notes.txt"}


def test_a_killed_worker_is_named_and_its_cell_tried_once_more_while_others_go_on(tmp_path: Path) -> None:
    folder, jobs = tmp_path / "out", [f"digits-gcn-g20-w50-s{seed}" for seed in range(3)]

    def kill(process: subprocess.Popen[str], job: str, last: int = 0) -> int:
        """Kills the worker that begins the job, after the try that began at `last`."""
        config = folder / "jobs" / job / "config.json"
        until(lambda: written(config) not in (0, last), process)
        (worker,) = workers_of(process)
        os.kill(worker, signal.SIGKILL)
        return written(config)

    with started(*FEW, "--seeds", "3", "--out", folder) as process:
        first = kill(process, jobs[0])
        kill(process, jobs[1])
        kill(process, jobs[0], first)
        out, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in said
    for job in jobs[:2]:
        assert f"{job}: its worker was killed by SIGKILL (out of memory?); tried again" in said
    assert [line for line in said.splitlines() if line.startswith("missing: ")] == [
        f"missing: {jobs[0]}: its worker was killed by SIGKILL (out of memory?)"
    ]
    assert "1 of 3 jobs are missing; --resume runs them" in said
    record = read_record(folder)
    assert list(record["missing"]) == [jobs[0]]
    assert not record["complete"]
    assert [row["seeds"] for row in record["rows"]] == [[1, 2]]
    assert " 2 of 3 " in out


def test_an_interrupt_ends_the_workers_and_keeps_the_finished_cells(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with started(*FEW, "--seeds", "40", "--workers", "2", "--out", folder) as process:
        until(lambda: any((folder / "jobs").glob("*/record.json")), process)
        workers = workers_of(process)
        # A Ctrl-C is for all processes of the terminal.
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    records = list((folder / "jobs").glob("*/record.json"))
    assert 1 <= len(records) < 40
    assert all(read_record(path.parent)["complete"] for path in records)
    assert not list(folder.rglob("*.pkl")) + list(folder.rglob("*.pt"))


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_ray_finds_the_same_and_outlives_a_killed_worker(
    finished: tuple[Path, dict[str, Any], str], tmp_path: Path
) -> None:
    import psutil

    folder = tmp_path / "ray"
    config = folder / "jobs" / NAMES[0] / "config.json"
    with started(*TWO, "--seeds", "2", "--workers", "2", "--engine", "ray", "--out", folder) as process:
        until(config.exists, process)
        family = psutil.Process(process.pid).children(recursive=True)
        mine = [each for each in family if each.name() == "ray::attempt"]
        listens = {c.laddr.ip for each in family for c in each.net_connections("inet") if c.status == "LISTEN"}
        mine[0].kill()
        _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "; tried again" in said
    assert {address.removeprefix("::ffff:") for address in listens} == {"127.0.0.1"}
    assert outcome(folder) == outcome(finished[0])
    assert not any(each.is_running() for each in family)


@pytest.mark.skipif(find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_its_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", *FEW, "--engine", "ray", "--out", str(tmp_path / "out")])
    assert "--engine (got ray, which is not installed), expected pool here; pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
