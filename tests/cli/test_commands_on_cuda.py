"""Every command on the pretend CUDA device: no mixed devices, and recordings compute what plain epochs compute."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gebt.cli.main import main
from gebt.data.readers.folder import save_graph_folder
from gebt.experiments import report
from gebt.graph import Graph
from gebt.train import loop, stacked
from gebt.train.loop import History
from tests.pretend_cuda import Device, pretend_cuda

# The fourth epoch is recorded, and the fifth replayed.
FEW = ("--epochs", "4", "--max-epochs", "5", "--retrain-epochs", "5", "--hidden", "8", "--device", "cuda")
BATCHES = ("--num-parts", "3", "--accumulate-batches", "2", "--batching")
SEARCHES = {
    **{f"preset {name}": ("--preset", name) for name in ("early-bird", "paper", "fast")},
    **{f"algorithm {name}": ("--algorithm", name) for name in ("graph", "weights")},
    **{
        f"edge score {name}": ("--edge-score", name)
        for name in ("magnitude", "local_degree", "similarity", "reliance", "reliance+magnitude", "learned")
    },
    "model resgcn": ("--model", "resgcn7"),
    "scope": ("--scope", "layer"),
    "draw": ("--draw-at", "validation", "--edge-score", "similarity", "--prediction-ema", "0.5"),
    "soft labels": ("--soft-labels", "--draw-at", "validation", "--label-propagation", "0.5"),
    **{f"edge weights {name}": ("--edge-weights", name) for name in ("trained", "degree_corrected")},
    "penalty": ("--edge-l1", "0.001"),
    "tf32": ("--precision", "tf32"),
}
RUNS = {
    "best": ("--preset", "best"),
    **{f"model {name}": ("--model", name) for name in ("sage", "gin", "gat")},
    **{f"structure {name}": ("--weight-structure", name) for name in ("unit", "feature", "joint", "2:4")},
    "no compaction": ("--no-compaction",),
    "seeds": ("--seeds", "3"),
    **{f"start {name}": ("--start", name) for name in ("rewind", "reinit")},
    **{
        f"method {name}": ("--method", name)
        for name in ("ugs", "wd-glt", "sgcn", "teddy", "imp", "one-shot", "dropedge", "released")
    },
    "links": ("--task", "links"),
    **{f"batching {name}": (*BATCHES, name) for name in ("random", "cluster", "neighbor", "random-walk")},
    "batching links": (*BATCHES, "cluster", "--task", "links"),
    "bf16": ("--precision", "bf16"),
}
# Epochs whose steps, or whose penalties, read what is changed between them.
COMPARED = ("seeds", "method ugs", "method sgcn", "method teddy", "method imp", "bf16")


@pytest.fixture(scope="module")
def folder(make_graph: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    graph: Graph = make_graph(nodes=45, features=32, share=0.1, name="small")
    return save_graph_folder(tmp_path_factory.mktemp("graph") / "small", graph)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a third of a small run, and are drawn on no device."""
    monkeypatch.setattr(report, "pictures", lambda *_: [])


def on_device(command: str, out: Path, *options: str) -> Device:
    with pretend_cuda() as device:
        main([command, *options, *FEW, "--out", str(out)])
    assert device.problems == []
    return device


@pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)
def test_a_search_runs_and_is_recorded(options: tuple[str, ...], folder: Path, tmp_path: Path) -> None:
    device = on_device("search", tmp_path / "out", "--graph", str(folder), *options)
    # The frozen weights of Algorithm 1 are trained before.
    assert device.recordings == 1 + ("graph" in options)
    assert (tmp_path / "out" / "ticket.safetensors").exists()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_and_its_recordings_compute_the_same(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, histories = ("--graph", str(folder), *RUNS[name]), []
    # Accuracies of a small graph hide much; losses hide nothing.
    monkeypatch.setattr(loop, "History", lambda: histories.append(History()) or histories[-1])
    device = on_device("run", tmp_path / "recorded", *options)
    # Batches are cut anew each epoch, which is not recorded.
    assert (device.recordings == 0) == ("--batching" in options)
    if name in COMPARED:
        for module in (loop, stacked):
            monkeypatch.setattr(module, "Replay", lambda work, _: work)
        recorded_losses = [history.losses for history in histories]
        histories.clear()
        assert on_device("run", tmp_path / "plain", *options).recordings == 0
        assert [history.losses for history in histories] == recorded_losses
        recorded, plain = (outcome(tmp_path / which) for which in ("recorded", "plain"))
        assert recorded == plain


def outcome(folder: Path) -> Any:
    """What a record says of every seed, but for seconds."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(part) for key, part in value.items() if "second" not in key and key != "peak_memory"}
        return [timeless(part) for part in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / "record.json").read_text())["per_seed"])


@pytest.mark.skipif("GEBT_DATA" not in os.environ, reason="needs MUTAG; set GEBT_DATA to where it is")
def test_a_set_of_graphs_runs(tmp_path: Path) -> None:
    on_device("search", tmp_path / "out", "--dataset", "mutag")
