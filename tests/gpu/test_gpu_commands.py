"""Every method, score, structure and network of the command line runs on a device."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from gebt.sparse.backends import current, using

FEW = ["--epochs", "8", "--max-epochs", "8", "--retrain-epochs", "6"]
FEWEST = ["--epochs", "2", "--max-epochs", "2", "--retrain-epochs", "2", "--hidden", "4"]
PARTS = ["--num-parts", "4"]
SCORES = ("magnitude", "similarity", "reliance", "reliance+magnitude", "learned")
METHODS = ("random", "ugs", "wd-glt", "sgcn", "teddy", "imp", "one-shot", "dropedge", "released")
COMMANDS = [
    *(["--preset", preset] for preset in ("early-bird", "paper", "best", "fast")),
    *(["--algorithm", algorithm] for algorithm in ("graph", "weights")),
    *(["--model", model] for model in ("gat", "gin", "sage", "resgcn7")),
    *(["--edge-score", score] for score in SCORES),
    *(["--weight-structure", structure] for structure in ("unit", "feature", "joint", "2:4")),
    *(["--edge-weights", weights] for weights in ("trained", "degree_corrected")),
    *(["--start", start] for start in ("rewind", "reinit")),
    *(["--method", method] for method in METHODS),
    *(["--batching", strategy, *PARTS] for strategy in ("random", "cluster", "neighbor", "random-walk")),
    ["--scope", "layer"],
    ["--edge-l1", "0.001"],
    ["--no-compaction"],
    ["--backend", "auto"],
    ["--seeds", "3"],
    ["--task", "links"],
    ["--task", "links", "--batching", "cluster", *PARTS],
]


def run(arguments: list[str], folder: Path) -> None:
    pytest.importorskip("cyclopts", reason="the command line needs cyclopts")
    from gebt.cli.main import main

    with using(current()), suppress(SystemExit):  # a run that failed left no record
        main(["run", "--dataset", "digits", *arguments, "--device", "cuda", "--out", str(folder)])
    assert (folder / "record.json").is_file()


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_command_runs(arguments: list[str], gpu: str, tmp_path: Path) -> None:
    run([*FEW, *arguments], tmp_path / "run")


@pytest.mark.slow
def test_a_command_runs_on_the_pretend_device(place: str, tmp_path: Path) -> None:
    run(FEWEST, tmp_path / "run")
