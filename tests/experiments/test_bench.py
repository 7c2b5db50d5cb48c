"""The table of `gebt bench`: every cell filled or said to be missing, counts by hand, nothing timed that differs."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

import gebt.experiments.bench.pyg
from gebt.cli.main import main
from gebt.experiments import report
from gebt.experiments.bench import PARTS, VARIANTS, bench, checks, measure, variants
from gebt.experiments.bench.pyg import PygTraining
from gebt.experiments.bench.variants import GebtTraining, Workbench
from gebt.experiments.options import RunOptions
from gebt.experiments.record import read_record
from gebt.experiments.setup import find_ticket, model_for
from gebt.graph import Graph
from gebt.measure.cost import state_bytes
from gebt.measure.energy import Energy
from gebt.models import GCN
from gebt.models.registry import ModelName, build
from gebt.recipes import baselines
from gebt.sparse import backends
from gebt.sparse.memory import OutOfRoomError
from gebt.ticket import Ticket
from gebt.train.loop import NodeTask, adam, fit, seeded

NODES, PAIRS, FEATURES, HIDDEN, CLASSES = 1797, 9929, 64, 8, 10
EPOCHS, RETRAINED = 4, 3
FEW = [f"--epochs={EPOCHS}", f"--retrain-epochs={RETRAINED}", "--max-epochs=6", f"--hidden={HIDDEN}"]
RATIOS = ["--edge-ratio=0.3", "--weight-ratio=0.5", "--weight-structure=joint"]
MEASURES = ("macs_paper", "flops_executed", "seconds", "peak_bytes", "own_bytes", "joules")


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "found"
    main(["search", *FEW, *RATIOS, "--out", str(folder)])
    return folder / "ticket.safetensors"


@pytest.fixture(scope="module")
def options() -> RunOptions:
    return RunOptions(
        epochs=EPOCHS, retrain_epochs=RETRAINED, max_epochs=6, hidden=HIDDEN, weight_structure="joint"
    ).resolved()


@pytest.fixture(scope="module")
def finished(ticket: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A finished `gebt bench`: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    command = [sys.executable, "-m", "gebt", "bench", str(ticket), *FEW, *RATIOS[2:], "--repeats", "2", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--out", folder], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return folder, done


def peaks() -> dict[str, dict[str, Any]]:
    """What a process of its own would answer."""
    return {part: {"bytes": 1000, "before": 400, "what": "resident memory"} for part in PARTS}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A `bench` of few rounds and without processes of its own."""
    monkeypatch.setattr(measure, "in_fresh_process", lambda *_, **__: peaks())
    monkeypatch.setattr(measure, "REPEATS", 3)
    return monkeypatch


def is_number(cell: Any) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool) and cell > 0


def test_every_cell_is_a_number_or_says_that_it_was_not_measured(finished: Any) -> None:
    answer = json.loads(finished[1].stdout)
    assert answer["dataset"] == "digits"
    assert tuple(answer["variants"]) == VARIANTS
    for variant, row in answer["variants"].items():
        assert is_number(row["file_bytes"])
        assert is_number(row["accuracy"]) or (variant, row["accuracy"]) == ("pyg", "not measured")
        for part in PARTS:
            assert set(MEASURES) <= row[part].keys()
            for measure_name in MEASURES:
                cell = row[part][measure_name]
                if measure_name == "joules":
                    assert is_number(cell) or cell == "not measured"
                elif measure_name == "seconds":
                    assert 0 < cell["lowest"] <= cell["median"] <= cell["highest"]
                    assert cell["repeats"] == (2 if part == "run" else 20)
                else:
                    assert is_number(cell), (variant, part, measure_name)


def test_multiply_adds_flops_and_bytes_are_those_counted_by_hand(finished: Any, ticket: Path) -> None:
    found, loaded = json.loads(finished[1].stdout)["variants"], Ticket.load(ticket)
    weights = FEATURES * HIDDEN + HIDDEN * CLASSES
    whole = 2 * PAIRS * FEATURES + NODES * weights
    kept = 2 * loaded.edge_mask.kept * FEATURES + NODES * loaded.weight_mask.kept
    drawn = loaded.epoch_drawn
    for variant in ("dense", "pyg"):
        assert [found[variant][part]["macs_paper"] for part in PARTS] == [whole, 3 * whole, 3 * EPOCHS * whole]
        assert found[variant]["file_bytes"] == 4 * (weights + HIDDEN + CLASSES) + 16 * PAIRS
    for variant in ("masked", "compacted"):
        run = 3 * (RETRAINED * kept + drawn * whole)
        assert [found[variant][part]["macs_paper"] for part in PARTS] == [kept, 3 * kept, run]
        assert found[variant]["file_bytes"] == ticket.stat().st_size

    entries, kept_entries = 2 * PAIRS + NODES, 2 * loaded.edge_mask.kept + NODES
    products = 2 * NODES * weights
    # PyG and, in these sizes, ours: X W first. A step: forward, dW of both layers, dH of one, A_hat twice.
    step = products + 2 * NODES * (FEATURES * HIDDEN + 2 * HIDDEN * CLASSES)
    passes = 2 * entries * (HIDDEN + CLASSES)
    flops = {variant: [found[variant][part]["flops_executed"] for part in PARTS] for variant in VARIANTS}
    assert flops["pyg"] == [products + passes, step + 2 * passes, EPOCHS * (step + 2 * passes)]
    assert flops["masked"][0] == flops["dense"][0] - 2 * (entries - kept_entries) * (HIDDEN + min(HIDDEN, CLASSES))
    assert flops["dense"][2] == EPOCHS * flops["dense"][1]
    searched = flops["masked"][2] - RETRAINED * flops["masked"][1]
    assert searched == flops["compacted"][2] - RETRAINED * flops["compacted"][1]
    assert searched % drawn == 0
    assert searched / drawn > flops["dense"][1]
    assert flops["compacted"][0] < flops["masked"][0]


def test_a_whole_run_is_search_and_training_and_pyg_s_is_scaled(finished: Any) -> None:
    answer = json.loads(finished[1].stdout)
    for variant in ("masked", "compacted"):
        assert answer["variants"][variant]["run"]["phases"].keys() == {"search", variant}
        low, high = (answer["variants"][variant]["run"]["seconds"][key] for key in ("lowest", "highest"))
        assert low <= sum(answer["variants"][variant]["run"]["phases"].values()) * 1.0001
        assert sum(answer["variants"][variant]["run"]["phases"].values()) <= high * 1.0001
    assert answer["variants"]["dense"]["run"]["phases"].keys() == {"dense"}
    assert answer["variants"]["pyg"]["run"]["scaled_from_epochs"] == 3
    assert answer["notes"]["PyG, full run"] == f"3 epochs measured, scaled to {EPOCHS}"
    assert answer["epochs"] == {"dense": EPOCHS, "retrain": RETRAINED}
    assert answer["search"]["differing_entries"] == 0
    assert answer["search"]["entries"] == PAIRS + FEATURES * HIDDEN + HIDDEN * CLASSES
    assert answer["equal"].keys() == {"compacted - masked", "pyg - dense"}
    assert 0 < answer["equal"]["pyg - dense"] < 1e-5


def test_memory_is_the_process_s_and_what_is_beside_its_libraries(finished: Any) -> None:
    for row in json.loads(finished[1].stdout)["variants"].values():
        for part in PARTS:
            peak, own = row[part]["peak_bytes"], row[part]["own_bytes"]
            assert 100 << 20 < peak - own < peak
            assert own < peak - own  # so small a graph: most of it is libraries, on any machine


def test_folder_table_and_picture(finished: Any, ticket: Path) -> None:
    folder, done = finished
    assert {path.name for path in folder.iterdir()} == {"record.json", "config.json", "bench.png"}
    record = read_record(folder)
    assert record["complete"]
    assert record["ticket"] == str(ticket)
    assert record["bench"]["variants"] == json.loads(done.stdout)["variants"]
    height, width, _ = matplotlib.image.imread(folder / "bench.png").shape
    assert min(height, width) > 300
    text = report.bench_table(record)
    assert text in done.stderr
    assert text.splitlines()[0].split("  ")[0] == ""
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    for part in ("inference", "training step", "full run"):
        for name in ("macs_paper", "flops_executed", "seconds", "peak memory", "joules"):
            assert f"{part}, {name}" in lines
    found = record["bench"]["variants"]
    for variant in ("masked", "pyg"):
        ratio = found[variant]["run"]["seconds"]["median"] / found["dense"]["run"]["seconds"]["median"]
        assert f"({ratio:.2f}x)" in lines["full run, seconds"]
    assert f"({found['masked']['file_bytes'] / found['dense']['file_bytes']:.2f}x)" in lines["bytes on disk"]


def test_a_compact_network_that_computes_something_else_is_refused_before_timing(
    ticket: Path, quick: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    compact_model = variants.compact_model

    def tampered(*given: Any, **options: Any) -> Any:
        small = compact_model(*given, **options)
        with torch.no_grad():
            small.model.convs[-1].bias += 0.01
        return small

    def timed(*_: Any, **__: Any) -> None:
        raise AssertionError("timed what differs")

    quick.setattr(variants, "compact_model", tampered)
    quick.setattr(measure, "measure_in_turn", timed)
    with pytest.raises(SystemExit, match="2"):
        main(["bench", str(ticket), *FEW, *RATIOS[2:], "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "logits of 'compacted' (got 0.0" in said
    assert "away from 'masked'), expected at most 1e-05" in said


class Constant:
    """A network that always gives these logits."""

    def __init__(self, *logits: float) -> None:
        self.logits = torch.tensor([logits])

    def infer(self) -> torch.Tensor:
        return self.logits

    step = infer


@pytest.mark.parametrize(
    ("variant", "apart", "equal"),
    [
        ("compacted", 0.9e-5, True),
        ("compacted", 1.2e-5, False),
        ("pyg", 0.9e-4, True),
        ("pyg", 1.2e-4, False),
        ("pyg", float("nan"), False),
    ],
)
@pytest.mark.parametrize("part", ["inference", "epoch"])
def test_logits_may_differ_by_what_rounding_explains(variant: str, apart: float, equal: bool, part: str) -> None:
    right = Constant(-100.0, 1.0)
    networks: Any = {name: {"inference": right, "epoch": right} for name in VARIANTS}
    networks[variant] = networks[variant] | {part: Constant(-100.0, 1.0 + 100 * apart)}
    if equal:
        assert checks.check_equal(networks)[f"{variant} - {checks.EQUAL[variant][0]}"] == pytest.approx(apart, rel=0.02)
    else:
        with pytest.raises(ValueError, match=rf"logits of '{variant}' \(got .* of the largest logit away from"):
            checks.check_equal(networks)


def test_a_search_under_other_options_is_another_search(ticket: Path, options: RunOptions, quick: Any) -> None:
    other = dataclasses.replace(options, dropout=0.0, input_dropout=0.0)
    with pytest.raises(ValueError, match=r"search \(got masks that differ from the ticket's in \d+ of 10521 entries\)"):
        bench(other, ticket, 1)


def test_the_search_is_the_ticket_s_whatever_ratios_are_given(ticket: Path, options: RunOptions, quick: Any) -> None:
    other = dataclasses.replace(options, edge_ratio=0.9, weight_ratio=0.1, threshold=0.9, weight_structure="entry")
    found, graph = bench(other, ticket, 1)
    assert found["search"]["differing_entries"] == 0
    assert graph.num_pairs == PAIRS


def test_pyg_is_left_out_where_its_messages_do_not_fit(ticket: Path, options: RunOptions, quick: Any) -> None:
    quick.setattr(gebt.experiments.bench.pyg, "step_bytes", lambda *_: 1 << 60)
    found, _ = bench(options, ticket, 1)
    pyg = found["variants"]["pyg"]
    assert {pyg[part][name] for part in PARTS for name in MEASURES if name != "macs_paper"} == {"not measured"}
    assert is_number(pyg["run"]["macs_paper"])
    assert "expected at most the" in found["notes"]["PyG"]
    assert found["variants"]["compacted"]["run"]["peak_bytes"] == 1000
    assert found["variants"]["compacted"]["run"]["own_bytes"] == 600
    row = report.bench_table({"dataset": "digits", "bench": found}).splitlines()[3]
    assert row.endswith("not measured")


def test_a_peak_that_ended_its_process_is_not_measured(ticket: Path, options: RunOptions, quick: Any) -> None:
    def killed(*_: Any, variant: str, **__: Any) -> Any:
        if variant == "pyg":
            raise RuntimeError("process of peaks (got signal 9), expected a result")
        return peaks()

    quick.setattr(measure, "in_fresh_process", killed)
    found, _ = bench(options, ticket, 1)
    assert found["variants"]["pyg"]["epoch"]["peak_bytes"] == "not measured"
    assert found["variants"]["dense"]["epoch"]["peak_bytes"] == 1000
    assert "signal 9" in found["notes"]["peak memory, pyg"]


def test_joules_are_those_of_one_call_and_of_whole_runs(
    ticket: Path, options: RunOptions, quick: Any, digits: Graph
) -> None:
    @contextmanager
    def meter(device: str) -> Iterator[Energy]:
        used = Energy(what="a meter")
        yield used
        used.joules = 6.0

    quick.setattr(measure, "energy_meter", meter)
    quick.setattr(measure, "METERED_S", 0.0)
    found, _ = bench(options, ticket, 2)
    joules = {variant: [found["variants"][variant][part]["joules"] for part in PARTS] for variant in VARIANTS}
    assert joules == {
        "dense": [6.0, 6.0, 6.0],
        "masked": [6.0, 6.0, 12.0],
        "compacted": [6.0, 6.0, 12.0],
        "pyg": [6.0, 6.0, 6.0 * EPOCHS / 3],
    }
    assert found["notes"]["joules"] == "a meter"
    calls = []
    measurement = measure._Measurement(Workbench(options, Ticket.load(ticket), digits), ticket, print)
    quick.setattr(measure, "METERED_S", 1.0)
    assert measurement._joules(lambda: calls.append(1), 0.26) == 6.0 / 4
    assert len(calls) == 4


def test_a_ticket_without_a_search_has_a_run_without_one(
    digits: Graph, options: RunOptions, quick: Any, tmp_path: Path
) -> None:
    model = GCN(FEATURES, HIDDEN, CLASSES)
    path = baselines.random_ticket(model, digits, edge_ratio=0.3, weight_ratio=0.5).save(tmp_path / "t")
    found, _ = bench(options, path, 1)
    assert found["search"] == {}
    row = found["variants"]["masked"]["run"]
    assert row["phases"].keys() == {"masked"}
    assert row["flops_executed"] == RETRAINED * found["variants"]["masked"]["epoch"]["flops_executed"]
    assert row["macs_paper"] == RETRAINED * found["variants"]["masked"]["epoch"]["macs_paper"]


def test_rounds_are_at_least_one(ticket: Path, options: RunOptions) -> None:
    with pytest.raises(ValueError, match=r"--repeats \(got 0\), expected at least 1"):
        bench(options, ticket, 0)


def test_a_measurement_leaves_random_state_alone(ticket: Path, options: RunOptions, quick: Any) -> None:
    before = torch.get_rng_state()
    bench(options, ticket, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_timed_step_is_a_step_of_fit(options: RunOptions, ticket: Path, digits: Graph) -> None:
    workbench = Workbench(options, Ticket.load(ticket), digits)
    network = workbench.network("dense")
    assert isinstance(network, GebtTraining)
    network.infer()  # leaves the network in evaluation mode
    with seeded(5):
        losses = [float(network.step()) for _ in range(3)]
    other = workbench.model()
    history = fit(other, NodeTask(digits), [adam(other, options.training())], 3, seed=5, evaluate=False)
    assert losses == history.losses
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in network.model.state_dict().items())


def test_products_that_auto_times_are_not_counted(
    options: RunOptions, ticket: Path, digits: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench = Workbench(options, Ticket.load(ticket), digits)
    expected = workbench.search_step_flops()
    monkeypatch.setattr(backends, "_choices", {})
    with backends.using("auto"):
        assert workbench.search_step_flops() == expected


def test_masked_steps_keep_pruned_weights_at_zero(options: RunOptions, ticket: Path, digits: Graph) -> None:
    loaded = Ticket.load(ticket)
    workbench = Workbench(options, loaded, digits)
    masked = workbench.network("masked")
    assert isinstance(masked, GebtTraining)
    assert masked.task.edges.num_pairs == loaded.edge_mask.kept
    for _ in range(2):
        masked.step()
    for name, kept in loaded.weight_mask.items():
        assert not dict(masked.model.named_parameters())[name][~kept].any()
    small = workbench.network("compacted")
    assert isinstance(small, GebtTraining)
    assert state_bytes(small.model) < state_bytes(masked.model)
    assert small.task.edges.num_pairs == loaded.edge_mask.kept


def test_inference_keeps_nothing_of_the_features(options: RunOptions, ticket: Path, digits: Graph) -> None:
    network = Workbench(options, Ticket.load(ticket), digits).network("dense")
    assert isinstance(network, GebtTraining)
    before = network.infer()
    digits.features.add_(1)
    try:
        assert not torch.allclose(network.infer(), before)
    finally:
        digits.features.sub_(1)


@pytest.mark.parametrize("name", ["gcn", "gat", "gin", "sage", "resgcn7"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_without_dropout_pyg_s_training_is_ours(
    sparse64: Graph, options: RunOptions, depth: int, name: ModelName
) -> None:
    # In double precision: where batch norm takes a shift away, Adam makes whole steps of a gradient's rounding.
    graph = sparse64
    settings = options.training()
    model = build(name, graph.num_features, 6, graph.num_classes, depth, 0.0, 0, heads=2)
    theirs = PygTraining(graph, model, settings)
    ours = GebtTraining(model, graph, NodeTask(graph).edges, settings)
    torch.testing.assert_close(ours.infer(), theirs.infer())
    for _ in range(4):
        torch.testing.assert_close(ours.step(), theirs.step())
    torch.testing.assert_close(ours.infer(), theirs.infer(), atol=1e-5, rtol=1e-4)
    val, test = theirs.epoch()
    ours.step()
    assert (val, test) == tuple(ours.task.evaluate(ours.model)[place] for place in (0, 2))


@pytest.mark.parametrize(
    ("widths", "rates", "random"),
    [
        ([5, 3], (0.5, 0.0), True),
        ([5, 3], (0.0, 0.5), False),
        ([5, 6, 3], (0.5, 0.0), True),
        ([5, 6, 3], (0.0, 0.5), True),
        ([5, 6, 3], (0.0, 0.0), False),
    ],
)
def test_pyg_drops_features_and_hidden_units_each_at_its_rate_in_training_alone(
    toy: Graph, options: RunOptions, widths: list[int], rates: tuple[float, float], random: bool
) -> None:
    *hidden, classes = widths[1:]
    model = GCN(widths[0], hidden, classes, len(hidden) + 1, rates[1], input_dropout=rates[0])
    network = PygTraining(toy, model, options.training())
    assert torch.equal(network.infer(), network.infer())
    network.model.train()
    once, again = (network.model(network.x, network.adjacency) for _ in "ab")
    assert torch.equal(once, again) != random


def test_what_pyg_needs_is_known_beforehand(toy: Graph, options: RunOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    # 2P + N entries: indices and weights, and two messages of the widest layer; X three times.
    entries = 2 * toy.num_pairs + toy.num_nodes
    assert (
        gebt.experiments.bench.pyg.step_bytes(toy, [5, 7, 3]) == entries * (40 + 2 * 4 * 7) + 3 * 4 * toy.num_nodes * 5
    )
    monkeypatch.setattr(gebt.experiments.bench.pyg, "step_bytes", lambda *_: 1 << 60)
    with pytest.raises(OutOfRoomError, match="PyG's step on 'toy'"):
        PygTraining(toy, GCN(5, 7, 3), options.training())


def test_pyg_s_stack_has_neither_norm_nor_residual_connections(toy: Graph, options: RunOptions) -> None:
    with pytest.raises(ValueError, match=r"PyG's GCN \(got norm or residual connections\), expected neither"):
        PygTraining(toy, GCN(5, 7, 3, norm="batch"), options.training())


def test_a_taught_ticket_is_charged_all_epochs_of_its_search(
    digits: Graph, options: RunOptions, quick: Any, tmp_path: Path
) -> None:
    taught = dataclasses.replace(
        options, edge_score="similarity", draw_at="validation", soft_labels=True, distill=1.0, max_epochs=4
    )
    model = model_for(taught, digits, 0)
    ticket = find_ticket(taught, digits, model, 0)
    found, _ = bench(taught, ticket.save(tmp_path / "t"), 1)
    whole, kept = (found["variants"][variant]["inference"]["macs_paper"] for variant in ("dense", "masked"))
    run = 3 * (4 * whole + int(taught.retrain_epochs or 0) * kept)
    assert found["variants"]["masked"]["run"]["macs_paper"] == run
