"""Runs in batches through the real command: by one process, by two that torchrun starts, stopped and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gebt.cli.main import main
from gebt.data.mapped.convert import convert
from gebt.experiments.options import RunOptions
from gebt.experiments.record import CHECKPOINTS, read_record
from gebt.experiments.setup import is_mapped

OPTIONS = ["--batching", "cluster", "--num-parts", "6", "--accumulate-batches", "2", "--hidden", "8", "--epochs", "6"]
OPTIONS += ["--max-epochs", "12", "--retrain-epochs", "4", "--threshold", "1e-9", "--checkpoint-every", "2"]
LIMIT = 240


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **more}


def torchrun(out: Path, *more: str, restarts: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    # A rendezvous of its own on the loopback, so that runs side by side do not meet.
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1"]
    command += ["--monitor-interval", "0.05", "-m", "gebt", "run", *OPTIONS, "--out", str(out), *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def found(out: Path) -> dict[str, Any]:
    """What a run found, without what depends on measured time."""
    record = read_record(out)
    assert record["complete"]
    variants = {
        variant: [own["accuracy"], own["val_accuracy"], own["best_epoch"]]
        for variant, own in record["per_seed"][0].items()
        if isinstance(own, dict)
    }
    return {"variants": variants, "ticket": (out / "ticket.safetensors").read_bytes()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    main(["run", *OPTIONS, "--out", str(out), "--threads", "1"])
    return out


@pytest.mark.slow
def test_two_processes_find_what_one_does_and_a_killed_one_is_made_good(alone: Path, tmp_path: Path) -> None:
    process = torchrun(tmp_path / "run", restarts=2)
    # Once the search has left a checkpoint, the second process is killed: torchrun starts both again.
    checkpoint, start = tmp_path / "run" / CHECKPOINTS / "seed-0" / "search", time.monotonic()
    while not list(checkpoint.glob("*/complete.json")) and time.monotonic() < start + LIMIT:
        time.sleep(0.005)
    try:
        os.kill(sorted(workers(process.pid))[-1], signal.SIGKILL)
    finally:
        code, said, err = ended(process)
    assert code == 0, err
    assert "2 process(es)" in err
    assert said.count("test accuracy, %") == 1  # the first process alone speaks
    assert found(tmp_path / "run") == found(alone)
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    assert read_record(tmp_path / "run")["processes"] == 2


def workers(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_ends_the_same(alone: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gebt", "run", *OPTIONS, "--out", str(tmp_path), "--threads", "1"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE)
    start = time.monotonic()
    while not (tmp_path / CHECKPOINTS / "seed-0" / "dense.json").is_file() and time.monotonic() < start + LIMIT:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    dense = (tmp_path / CHECKPOINTS / "seed-0" / "dense.json").read_text()
    main(["run", *OPTIONS, "--out", str(tmp_path), "--threads", "1", "--resume"])
    assert found(tmp_path) == found(alone)
    # What was done was not done again: its seconds are those of the first time.
    assert read_record(tmp_path)["per_seed"][0]["dense"]["seconds"] == json.loads(dense)["seconds"]


def test_a_run_from_disk_finds_what_one_in_memory_does(tmp_path: Path) -> None:
    few = ["--batching", "random", "--num-parts", "5", "--hidden", "8", "--epochs", "3", "--max-epochs", "3"]
    few += ["--retrain-epochs", "2", "--threads", "1"]
    main(["run", *few, "--out", str(tmp_path / "memory")])
    main(["run", *few, "--graph", str(convert("digits", tmp_path / "mapped")), "--out", str(tmp_path / "disk")])
    assert found(tmp_path / "disk")["variants"] == found(tmp_path / "memory")["variants"]


@pytest.mark.slow
def test_processes_with_other_options_are_refused_before_training_and_named(tmp_path: Path) -> None:
    # Threads, and where the data lie, may differ from machine to machine; what is pruned may not.
    other = ["--edge-ratio", "0.2", "--threads", "2", "--data-root", str(tmp_path)]
    for process in two_by_hand(tmp_path, ["--edge-ratio", "0.1"], other):
        code, said, err = ended(process)
        assert code == 2
        assert not said
        assert "gebt: error: options (got another in processes [1] than in process 0), expected the same" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume", "--dataset", "digits"], "--resume (got it without --batching), expected --batching"),
        (["--batching", "cluster", "--num-parts", "0"], "parts of batches (got 0), expected at least 1"),
        (["--batching", "random", "--num-parts", "1798"], "parts (got 1798 of 1797 nodes), expected 1 to 1797"),
        (["--graph", "nowhere"], "--graph (got nowhere, which is no folder), expected one with edges and features"),
        (["--batching", "random", "--preset", "best"], "to search in batches; take preset 'early-bird' or 'paper'"),
        (["--batching", "random", "--timeout", "0"], "--timeout (got 0.0), expected more than 0 seconds"),
        (["--evaluate-every", "0"], "--evaluate-every (got 0), expected at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["run", *options, "--out", str(tmp_path / "run"), "--epochs", "2", "--max-epochs", "2"])
    assert ending.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_goes_on_only_with_its_own_options(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", *OPTIONS, "--out", str(alone), "--threads", "1", "--resume", "--depth", "3"])
    assert "--resume (got a run with depth 2 in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_whose_other_has_gone_says_so_and_ends_in_time(tmp_path: Path) -> None:
    started = two_by_hand(tmp_path / "run", ["--timeout", "20"], ["--timeout", "20"])
    checkpoint, start = tmp_path / "run" / CHECKPOINTS / "seed-0" / "dense", time.monotonic()
    while not list(checkpoint.glob("*/complete.json")) and time.monotonic() < start + LIMIT:
        time.sleep(0.005)
    started[1].kill()
    code, said, err = ended(started[0])
    ended(started[1])
    assert code == 2
    assert not said
    assert re.search(r"gebt: error: process 0 of 2 \(got: .+\), expected an answer within 20 s; another process", err)


def two_by_hand(out: Path, *options: list[str]) -> list[subprocess.Popen[str]]:
    """Two processes as torchrun would start them, each with options of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank, more in enumerate(options):
        own = environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=port)  # fmt: skip
        command = [sys.executable, "-m", "gebt", "run", *OPTIONS, "--out", str(out), *more]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=own, text=True, **pipes))
    return started


def test_a_folder_in_the_way_is_not_taken_for_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "header.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert not is_mapped(RunOptions(dataset="digits").resolved())
    assert is_mapped(RunOptions(dataset="./digits").resolved())
