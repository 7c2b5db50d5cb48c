from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

RANKS = [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
pytestmark = pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",  # processes are forked
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = Path(__file__).with_name("ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True, text=True, check=False, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def found(folder: Path, world: int, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"{world}.{rank}.pt", weights_only=True)


@pytest.mark.parametrize(("world", "rank"), RANKS)
def test_many_processes_end_with_the_values_and_masks_of_one(folder: Path, world: int, rank: int) -> None:
    alone, own = found(folder, 1, 0), found(folder, world, rank)
    assert torch.equal(own["values"], alone["values"])
    assert float((alone["values"] - 1).abs().max()) > 0.1
    assert [int(mask.sum()) for mask in own["masks"]] == [400] * 4
    assert all(torch.equal(a, b) for a, b in zip(own["masks"], alone["masks"], strict=True))
    assert own["trajectory"] == alone["trajectory"]
    assert max(row["weights"] for row in alone["trajectory"]) > 0.01
    assert bool(own["all"].all())


def test_a_process_holds_its_own_pairs_alone(folder: Path) -> None:
    for world in (2, 3):
        own = [found(folder, world, rank)["own"] for rank in range(world)]
        assert sum(own) == 1000
        assert 0 < own[-1] < own[0]
    assert own[1] == 0


def test_processes_that_differ_are_named_in_all_of_them(folder: Path) -> None:
    assert set(found(folder, 1, 0)["refusals"].values()) == {""}
    for world, rank in RANKS:
        for what, message in found(folder, world, rank)["refusals"].items():
            others = f"{what} (got another in processes [{world - 1}] than in process 0)"
            assert message.startswith(f"{others}, expected the same in all {world};")


def test_a_nan_is_refused_in_all_processes(folder: Path) -> None:
    told = {(folder / f"nan.{world}.{rank}").read_text() for world, rank in [(1, 0), *RANKS]}
    # Each process has sent one for the same pair.
    assert told == {"scores (got NaN for 1 of 1000 entries), expected numbers; did the training diverge?"}
