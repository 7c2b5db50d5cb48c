"""Training in bf16 and TF32: near float32, which does not change; what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from gebt.data import load_graph
from gebt.experiments.options import RunOptions
from gebt.graph import Edges, Graph
from gebt.graph.label_propagation import propagate_labels
from gebt.models.gnn import GCN
from gebt.models.registry import build
from gebt.recipes import baselines, search
from gebt.sparse.precision import Precision, check_precision, current, forward, using
from gebt.train.loop import NodeTask, TrainingSettings, adam, fit
from gebt.train.low_precision import block_floating_point
from gebt.train.search_settings import SearchSettings

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def digits() -> Graph:
    return load_graph("digits")


def trained(graph: Graph, precision: Precision, epochs: int = 10) -> tuple[GCN, Any]:
    model = GCN(graph.num_features, 16, graph.num_classes, 2, 0.5, 0)
    with using(precision):
        return model, baselines.dense(model, graph, TrainingSettings(epochs), seed=0)


def test_digits_in_bf16_are_learned_as_in_float32(digits: Graph) -> None:
    model, low = trained(digits, "bf16")
    _, full = trained(digits, "float32")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert low.losses != full.losses
    torch.testing.assert_close(torch.tensor(low.losses), torch.tensor(full.losses), rtol=2e-2, atol=0)
    assert abs(low.accuracy - full.accuracy) < 0.05


def test_logits_of_digits_in_bf16_are_within_one_percent(digits: Graph) -> None:
    model, _ = trained(digits, "float32")
    task = NodeTask(digits)
    model.eval()
    with torch.no_grad():
        expected = task.logits(model)
        with using("bf16"):
            found = task.logits(model)
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).norm() / expected.norm()) < 1e-2


def test_forward_alone_is_low_and_losses_are_float32(digits: Graph) -> None:
    seen: list[tuple[bool, torch.dtype]] = []
    model, task = GCN(digits.num_features, 8, digits.num_classes), NodeTask(digits)
    model.convs[1].register_forward_hook(
        lambda module, inputs, y: seen.append((torch.is_autocast_enabled("cpu"), y.dtype))
    )
    kind: list[tuple[bool, torch.dtype]] = []
    own = task.loss

    def loss(logits: Tensor) -> Tensor:
        kind.append((torch.is_autocast_enabled("cpu"), logits.dtype))
        return own(logits)

    task.loss = loss  # type: ignore[method-assign]
    with using("bf16"):
        fit(model, task, [adam(model, TrainingSettings())], 1)
    assert set(seen) == {(True, BF16)}
    assert set(kind) == {(False, torch.float32)}


def test_a_16_bit_model_is_fitted_from_float32_losses(digits: Graph) -> None:
    graph = replace(digits, features=digits.features.to(BF16))  # type: ignore[union-attr]
    model = GCN(graph.num_features, 8, graph.num_classes).bfloat16()
    history = fit(model, NodeTask(graph), [adam(model, TrainingSettings(learning_rate=0.05))], 5)
    assert history.losses[-1] < history.losses[0]
    assert NodeTask(graph).logits(model).dtype == torch.float32


def test_a_kept_product_is_float32_whatever_autocast_says(digits: Graph) -> None:
    task = NodeTask(digits)
    with torch.autocast("cpu", BF16):
        assert task.aggregated is not None
        assert task.aggregated.dtype == torch.float32


def test_a_search_in_bf16_scores_in_float32_and_its_ticket_says_so(digits: Graph) -> None:
    model = GCN(digits.num_features, 8, digits.num_classes)
    find = partial(search.joint, model, digits, edge_ratio=0.2, weight_ratio=0.5, seed=0)
    with using("bf16"):
        ticket = find(settings=SearchSettings(max_epochs=3))
    assert ticket.provenance["precision"] == "bf16"
    assert ticket.edge_sparsity == pytest.approx(0.2, abs=1e-3)
    assert all(tensor.dtype == torch.float32 for tensor in ticket.state_at_draw.values())
    assert find(settings=SearchSettings(max_epochs=1)).provenance["precision"] == "float32"


def test_stacked_seeds_in_bf16_equal_single_ones_up_to_rounding(sparse: Graph) -> None:
    def models() -> list[GCN]:
        return [GCN(sparse.num_features, 8, 3, 2, 0.5, seed) for seed in range(2)]

    settings = TrainingSettings(4)
    with using("bf16"):
        together = baselines.dense_stacked(models(), sparse, settings, seeds=[0, 1])
        apart = [baselines.dense(model, sparse, settings, seed=seed) for seed, model in enumerate(models())]
    full = baselines.dense_stacked(models(), sparse, settings, seeds=[0, 1])
    for ours, alone, exact in zip(together, apart, full, strict=True):
        assert ours.losses == pytest.approx(alone.losses, rel=2e-2)
        assert ours.losses != exact.losses


def test_tf32_holds_inside_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (9, 0))
    before = torch.get_float32_matmul_precision()
    seen = []

    def work() -> None:
        with using("tf32", "cuda"):
            seen.append((current(), torch.get_float32_matmul_precision()))
            with using("float32", "cuda"):
                seen.append((current(), torch.get_float32_matmul_precision()))
            seen.append((current(), torch.get_float32_matmul_precision()))
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert seen == [("tf32", "high"), ("float32", "highest"), ("tf32", "high")]
    assert (current(), torch.get_float32_matmul_precision()) == ("float32", before)


def test_float32_passes_a_network_through() -> None:
    y = torch.randn(3)
    assert forward("cpu", lambda x: x, y) is y
    with using("bf16"):
        assert forward("cpu", lambda x: x, y) is y


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "tf32"},
            r"precision \(got 'tf32' on cpu\), expected 'float32' or 'bf16': TF32 is a form",
        ),
        ({"precision": "half"}, r"precision \(got 'half'\), expected one of \('float32', 'tf32', 'bf16'\)"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOptions(**options).resolved()
    with pytest.raises(ValueError, match=message), using(options["precision"]):
        pass


def test_old_gpus_and_engines_without_16_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    for precision in ("tf32", "bf16"):
        with pytest.raises(ValueError, match=rf"precision \(got '{precision}' on compute capability \(7, 5\)\), expec"):
            RunOptions(device="cuda", precision=precision).resolved()  # type: ignore[arg-type]
    check_precision("float32", "cuda")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 0))
    assert RunOptions(device="cuda", precision="bf16").resolved().precision == "bf16"
    monkeypatch.setattr("gebt.experiments.combinations.find", lambda name: _Float32Only())
    with pytest.raises(ValueError, match=r"--backend \(got 'scipy' with --precision bf16\), expected one that multip"):
        RunOptions(device="cuda", precision="bf16", backend="scipy").resolved()
    RunOptions(device="cuda", precision="tf32", backend="scipy").resolved()


class _Float32Only:
    def supports(self, device: torch.device, dtype: torch.dtype) -> bool:
        return dtype == torch.float32


def test_stochastic_rounding_of_bf16_is_right_on_average() -> None:
    # 0.001 of a unit: random numbers of 8 bits would round it up 2^-8 of the times.
    x = torch.full((20000, 2), 0.001 / 64, dtype=BF16)
    x[:, 0] = 1.0
    drawn = block_floating_point(x, 8, torch.Generator().manual_seed(0))
    assert drawn.dtype == BF16
    share = float((drawn[:, 1] > 0).double().mean())
    assert share == pytest.approx(float(x[0, 1]) * 64, abs=4 * (0.001 / 20000) ** 0.5)


def test_edges_with_kept_values_in_bf16(toy: Graph) -> None:
    fixed = torch.linspace(0.2, 1, toy.num_pairs)
    edges = Edges.from_pairs(toy.pairs, toy.num_nodes, fixed)
    for kind in ("gcn", "sage", "gin", "gat", "resgcn7"):
        model = build(kind, toy.num_features, 8, 3, 2, 0.0, 0, heads=2)  # type: ignore[arg-type]
        task = NodeTask(toy, edges, keep_aggregated=False)
        expected = task.logits(model.eval()).detach()
        with using("bf16"):
            found = task.logits(model).detach()
        assert 0 < float((found - expected).norm() / expected.norm()) < 2e-2


def test_a_search_of_a_16_bit_model_on_16_bit_features(digits: Graph) -> None:
    graph = replace(digits, features=digits.features.to(BF16))  # type: ignore[union-attr]
    assert graph.fingerprint != digits.fingerprint
    model = GCN(graph.num_features, 8, graph.num_classes).bfloat16()
    ticket = search.joint(model, graph, edge_ratio=0.2, weight_ratio=0.5, settings=SearchSettings(max_epochs=2))
    assert all(tensor.dtype == BF16 for tensor in ticket.state_at_draw.values())


def test_labels_are_propagated_in_float32_inside_a_users_autocast(toy: Graph) -> None:
    edges = Edges.from_pairs(toy.pairs, toy.num_nodes)
    opinions = torch.rand(toy.num_nodes, 3).softmax(1)
    expected = propagate_labels(opinions, edges, 0.5)
    with torch.autocast("cpu", BF16):
        assert torch.equal(propagate_labels(opinions, edges, 0.5), expected)
