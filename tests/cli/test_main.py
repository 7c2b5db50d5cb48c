"""The command line, run for real on the embedded digits with few epochs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from gebt.cli.main import main
from gebt.data import load_graph, save_graph_folder
from gebt.experiments.record import read_record
from gebt.ticket import Ticket

FEW = ["--epochs", "4", "--retrain-epochs", "3", "--max-epochs", "6", "--hidden", "8"]
VARIANTS = ("dense", "random", "random_edges_control", "ticket")


def gebt(*arguments, cwd=None):
    command = [sys.executable, "-m", "gebt", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two seeds: its folder and the JSON it printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = gebt("run", "--seeds", 2, *FEW, "--json", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_json_is_one_object_with_the_promised_keys(finished):
    answer = json.loads(finished[1].stdout)
    assert answer["dataset"] == "digits"
    assert answer["seeds"] == 2
    for variant in VARIANTS:
        found = answer[variant]
        assert len(found["accuracy"]["values"]) == 2
        assert all(0 <= value <= 1 for value in found["accuracy"]["values"])
        assert found["accuracy"].keys() == {"mean", "std", "values"}
        assert found["seconds"].keys() == {"search", "retrain", "inference"}
        assert found["macs_paper"].keys() == found["flops_executed"].keys() == {"inference", "training"}
        assert {"edge_sparsity", "weight_sparsity", "peak_bytes", "file_bytes"} <= found.keys()
    assert len(answer["ticket"]["epoch_drawn"]) == len(answer["ticket"]["fired"]) == 2


def test_a_run_folder_holds_record_tickets_and_pictures(finished):
    folder = finished[0]
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "config.json",
        "record.json",
        "trajectory.png",
        "distances.png",
        "savings.png",
        "seed-0/ticket.safetensors",
        "seed-1/ticket.safetensors",
    }
    record = read_record(folder)
    assert record["complete"]
    assert [row["seed"] for row in record["per_seed"]] == [0, 1]
    assert len(record["pairwise"]["edges"]) == record["summary"]["ticket"]["epoch_drawn"][0]


def test_measured_sparsities_are_those_asked_for(finished):
    ticket = Ticket.load(finished[0] / "seed-0" / "ticket.safetensors")
    pairs = ticket.edge_mask.size
    assert ticket.edge_mask.kept == pairs - int(0.2 * pairs)
    summary = read_record(finished[0])["summary"]
    for variant in ("random", "random_edges_control", "ticket"):
        assert summary[variant]["edge_sparsity"] == ticket.edge_sparsity
        assert summary[variant]["weight_sparsity"] == ticket.weight_sparsity


def test_the_written_configuration_repeats_the_run_bit_for_bit(finished, tmp_path):
    again = gebt("--config", finished[0] / "config.json", "run", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    for seed in ("seed-0", "seed-1"):
        first, second = (folder / seed / "ticket.safetensors" for folder in (finished[0], tmp_path / "again"))
        assert first.read_bytes() == second.read_bytes()
    accuracies = [
        [row[variant]["accuracy"] for row in read_record(folder)["per_seed"] for variant in VARIANTS]
        for folder in (finished[0], tmp_path / "again")
    ]
    assert accuracies[0] == accuracies[1]


def test_a_folder_in_use_is_refused_and_left_as_it_is(finished):
    before = (finished[0] / "record.json").read_bytes()
    refused = gebt("run", *FEW, "--out", finished[0])
    assert refused.returncode == 2
    assert "--force replaces a run" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (finished[0] / "record.json").read_bytes() == before


def test_retrain_takes_the_tickets_own_settings(finished, capsys, tmp_path):
    path = finished[0] / "seed-1" / "ticket.safetensors"
    main(["retrain", str(path), *FEW, "--json", "--out", str(tmp_path / "out")])
    found = json.loads(capsys.readouterr().out)
    # The same ticket, seed and settings as in the run: the same accuracy.
    assert found["accuracy"] == read_record(finished[0])["per_seed"][1]["ticket"]["accuracy"]
    assert found["seed"] == 1
    record = read_record(tmp_path / "out")
    assert record["retrained"]["weight_sparsity"] == found["weight_sparsity"]
    assert record["history"]["test_accuracy"][found["best_epoch"] - 1] == found["accuracy"]
    assert (tmp_path / "out" / "training.png").stat().st_size > 0
    trained = load_file(tmp_path / "out" / "model.safetensors")
    for name, kept in Ticket.load(path).weight_mask.items():
        assert not trained[name][~kept].any()
        assert trained[name][kept].all()


def test_a_ticket_of_another_graph_is_refused(finished, capsys, tmp_path):
    path = finished[0] / "seed-1" / "ticket.safetensors"
    with pytest.raises(SystemExit, match="2"):
        main(["retrain", str(path), *FEW, "--split-seed", "7", "--out", str(tmp_path / "out")])
    assert "fingerprint" in capsys.readouterr().err


def test_a_ticket_of_another_model_is_refused(finished, capsys, tmp_path):
    path = finished[0] / "seed-0" / "ticket.safetensors"
    with pytest.raises(SystemExit, match="2"):
        main(["retrain", str(path), *FEW[:-1], "9", "--out", str(tmp_path / "out")])
    assert "convs.0" in capsys.readouterr().err


def test_bench_says_what_is_wrong_with_a_ticket_before_a_folder_is_made(finished, capsys, tmp_path):
    (tmp_path / "broken").write_bytes(b"no ticket")
    for ticket, message in (("broken", "expected a ticket"), ("missing", "no such file")):
        with pytest.raises(SystemExit, match="2"):
            main(["bench", str(tmp_path / ticket), *FEW, "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    path = finished[0] / "seed-0" / "ticket.safetensors"
    with pytest.raises(SystemExit, match="2"):
        main(["bench", str(path), *FEW, "--split-seed", "7", "--out", str(tmp_path / "out")])
    assert "fingerprint" in capsys.readouterr().err


def test_inspect_shows_every_tensor_with_its_reason(finished, capsys):
    path = finished[0] / "seed-0" / "ticket.safetensors"
    main(["inspect", str(path)])
    text = capsys.readouterr().out
    main(["inspect", str(path), "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["tensors"]}
    assert rows.keys() == {"edges", "convs.0.bias", "convs.0.lin.weight", "convs.1.bias", "convs.1.lin.weight"}
    assert all(name in text for name in rows)
    assert rows["convs.0.bias"]["pruned"] == 0
    assert "one dimension" in rows["convs.0.bias"]["why"]
    masked = rows["convs.0.lin.weight"], rows["convs.1.lin.weight"]
    assert sum(row["pruned"] for row in masked) == (64 * 8 + 8 * 10) // 2


def test_inspect_says_how_the_weights_were_ranked(tmp_path, capsys):
    main(["search", *FEW, "--scope", "layer", "--out", str(tmp_path / "s")])
    capsys.readouterr()
    main(["inspect", str(tmp_path / "s" / "ticket.safetensors"), "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["tensors"]}
    assert rows["convs.0.lin.weight"]["pruned"] == 64 * 8 // 2
    assert rows["convs.0.lin.weight"]["why"] == "pruned to weight_ratio 0.5, each tensor ranked alone"


def test_search_writes_a_ticket_that_retrain_takes(tmp_path, capsys):
    main(["search", *FEW, "--weight-ratio", "0.3", "--out", str(tmp_path / "s"), "--json"])
    found = json.loads(capsys.readouterr().out)
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {"config.json", "record.json", "ticket.safetensors", "trajectory.png", "distances.png"}
    record = read_record(tmp_path / "s")
    assert record["complete"]
    assert len(record["per_seed"][0]["ticket"]["trajectory"]) == found["epoch_drawn"] - 1
    main(["retrain", found["ticket"], *FEW, "--start", "rewind", "--out", str(tmp_path / "r"), "--json"])
    assert json.loads(capsys.readouterr().out)["weight_sparsity"] == found["weight_sparsity"]


@pytest.mark.parametrize("algorithm", ["graph", "weights"])
def test_single_sided_searches_prune_one_side(tmp_path, capsys, algorithm):
    main(["run", *FEW, "--algorithm", algorithm, "--json", "--out", str(tmp_path / "run")])
    ticket = json.loads(capsys.readouterr().out)["ticket"]
    assert (ticket["edge_sparsity"] > 0) == (algorithm == "graph")
    assert (ticket["weight_sparsity"] > 0) == (algorithm == "weights")


def test_data_list_and_check(capsys, tmp_path):
    main(["data", "list"])
    assert "coauthor-physics" in capsys.readouterr().out
    main(["data", "check", "digits"])
    assert "embedded" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", "cora", "--data-root", str(tmp_path)])
    assert "missing" in capsys.readouterr().out


def test_data_check_reads_a_folder_of_ones_own(capsys, tmp_path):
    folder = save_graph_folder(tmp_path / "mine", load_graph("digits"))
    main(["data", "check", str(folder)])
    assert re.search(r"mine +sound +1797 nodes, 9929 pairs, 64 features, 10 classes; 50 tr", capsys.readouterr().out)
    (folder / "labels.npy").write_bytes((folder / "labels.npy").read_bytes()[:-8])
    with pytest.raises(SystemExit, match="1"):
        main(["data", "check", str(folder), "digits"])
    out = capsys.readouterr().out
    assert re.search(r"mine +unsound +file .*labels\.npy \(got", out)
    assert re.search(r"digits +embedded", out)


def test_a_preset_that_needs_classes_is_refused_before_any_training(capsys, tmp_path):
    labels = load_graph("digits").labels
    tasks = replace(load_graph("digits"), labels=torch.stack((labels % 2, labels // 5), 1), num_classes=2)
    folder = save_graph_folder(tmp_path / "mine", replace(tasks, target="multilabel"))
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--dataset", str(folder), "--preset", "best", "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert "edge score 'reliance', soft labels True (got graph 'mine' with labels of the kind 'multilabel')" in told
    assert "dense" not in told  # no epoch of the first variant


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--edge-ratio", "1.5"], "--edge-ratio: prune ratio (got 1.5), expected 0 <= ratio < 1"),
        (["run", "--dataset", "coar"], "did you mean cora"),
        (["run", "--edge-ration", "0.5"], "--edge-ratio"),
        (["run", "--preset", "bold"], "bold"),
        (["run", "--epochs", "many"], "many"),
        (["run", "--weight-ratio", "0.9999", *FEW], "would remove all"),
        (["retrain", "nothing.safetensors"], "got no such file"),
        (["inspect", "nothing.safetensors"], "got no such file"),
        (["--config", "nothing.json", "run"], "nothing.json"),
        (["data", "check", "digist"], "did you mean digits"),
    ],
)
def test_mistakes_end_in_one_message_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_unknown_keys_of_a_configuration_are_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"edge_ration": 0.5}')
    with pytest.raises(SystemExit, match="2"):
        main(["--config", str(tmp_path / "config.json"), "run", "--out", str(tmp_path / "run")])
    assert "edge_ration" in capsys.readouterr().err or "edge-ration" in capsys.readouterr().err


def test_the_shell_wins_over_the_configuration(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"edge_ratio": 0.5, "hidden": 8, "max_epochs": 5}')
    main(
        [
            "--config",
            str(tmp_path / "config.json"),
            "search",
            "--edge-ratio",
            "0.1",
            "--json",
            "--out",
            str(tmp_path / "s"),
        ]
    )
    assert json.loads(capsys.readouterr().out)["edge_sparsity"] == pytest.approx(0.1, abs=1e-3)


def test_an_interrupt_keeps_the_finished_seeds(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "gebt", "run", "--seeds", "500", *FEW, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # What a shell starts in the background ignores interrupts, and so would this process.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heeds) as process:
        deadline = time.monotonic() + 60
        while not (folder / "record.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    record = read_record(folder)
    assert not record["complete"]
    for row in record["per_seed"]:
        assert Ticket.load(folder / row["ticket"]["file"]).epoch_drawn == row["ticket"]["epoch_drawn"]


@pytest.mark.parametrize("model", ["gat", "gin", "sage", "resgcn7"])
def test_every_network_runs_from_the_shell(model, tmp_path, capsys):
    few = ["--epochs", "3", "--max-epochs", "3", "--retrain-epochs", "2", "--hidden", "8", "--depth", "2"]
    main(["run", "--model", model, "--preset", "best", *few, "--json", "--out", str(tmp_path / model)])
    answer = json.loads(capsys.readouterr().out)
    assert set(VARIANTS) <= answer.keys()
    assert Ticket.load(tmp_path / model / "ticket.safetensors").soft_labels is not None


def test_heads_that_do_not_divide_are_said_without_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--model", "gat", "--heads", "7", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "heads (got 7), expected a divisor of the 64 channels" in capsys.readouterr().err


def test_a_taught_ticket_is_taught_whoever_retrains_it(tmp_path, capsys):
    few = ["--epochs", "3", "--max-epochs", "6", "--retrain-epochs", "4", "--hidden", "8"]
    main(["run", "--preset", "best", *few, "--out", str(tmp_path / "run")])
    assert "(by validation)" in capsys.readouterr().out
    ticket = str(tmp_path / "run" / "ticket.safetensors")
    found = {}
    for name, more in (("taught", []), ("alone", ["--distill", "0"])):
        main(["retrain", ticket, *few, *more, "--json", "--out", str(tmp_path / name)])
        capsys.readouterr()
        found[name] = read_record(tmp_path / name)["history"]
    row = read_record(tmp_path / "run")["per_seed"][0]["ticket"]
    assert found["taught"]["test_accuracy"][row["best_epoch"] - 1] == row["accuracy"]
    assert found["taught"]["losses"] != found["alone"]["losses"]


def test_batches_are_refused_where_the_whole_graph_is_trained(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["search", "--batching", "cluster", "--out", str(tmp_path / "out")])
    assert "'gebt search' works on the whole graph; 'gebt run --batching ...'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
