from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from gebt.graph import Edges, Graph
from gebt.models import GCN
from gebt.train import History, NodeTask, TrainingSettings, fit
from gebt.train.loop import adam, copy_state

State = dict[str, Tensor]


def model_of(graph: Graph) -> GCN:
    return GCN(graph.num_features, 8, graph.num_classes)


def trained(graph: Graph, epochs: int = 5, seed: int = 0, **options: object) -> tuple[GCN, History]:
    model = model_of(graph)
    return model, fit(model, NodeTask(graph), [adam(model, TrainingSettings())], epochs, seed=seed, **options)


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Scripted(NodeTask):
    """A task whose evaluations are written down beforehand: validation accuracy, validation loss."""

    def __init__(self, graph: Graph, script: list[tuple[float, float]]) -> None:
        super().__init__(graph)
        self._script: Iterator[tuple[float, float]] = iter(script)

    def evaluate(self, model: nn.Module) -> tuple[float, float, float]:
        accuracy, loss = next(self._script)
        return accuracy, loss, accuracy / 2


def test_two_runs_of_one_seed_give_equal_bits_whatever_the_global_state(toy: Graph) -> None:
    runs = []
    with torch.random.fork_rng():
        for noise in (1, 2):
            torch.manual_seed(noise)
            runs.append(trained(toy))
    (model, history), (other_model, other_history) = runs
    assert history.losses == other_history.losses
    assert history.val_accuracy == other_history.val_accuracy
    assert equal(model.state_dict(), other_model.state_dict())


def test_another_seed_draws_another_dropout(toy: Graph) -> None:
    assert trained(toy, seed=0)[1].losses != trained(toy, seed=1)[1].losses


def test_the_global_random_state_is_left_as_it_was(toy: Graph) -> None:
    before = torch.random.get_rng_state()
    trained(toy, epochs=2)
    with pytest.raises(ZeroDivisionError):
        trained(toy, epochs=2, on_epoch=lambda epoch, _: bool(epoch / 0))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("script", "best"),
    [
        ([(0.5, 1.0), (0.7, 2.0), (0.6, 0.1)], 2),
        ([(0.7, 1.0), (0.7, 0.9), (0.7, 1.1)], 2),
        ([(0.7, 1.0), (0.7, 1.0), (0.7, 1.0)], 1),
        ([(0.0, 9.0), (0.0, 9.5)], 1),
    ],
)
def test_the_best_epoch_has_the_highest_accuracy_then_the_lower_loss_then_comes_first(
    toy: Graph, script: list[tuple[float, float]], best: int
) -> None:
    model, states = model_of(toy), []

    def watch(epoch: int, history: History) -> bool:
        states.append(copy_state(model))
        return False

    task = Scripted(toy, script)
    history = fit(model, task, [adam(model, TrainingSettings())], len(script), on_epoch=watch)
    assert history.best_epoch == best
    assert history.val_accuracy == [accuracy for accuracy, _ in script]
    assert history.accuracy == script[best - 1][0] / 2
    assert equal(model.state_dict(), states[best - 1])
    assert equal(history.best_state, states[best - 1])


def test_without_evaluation_the_model_ends_in_its_last_state(toy: Graph) -> None:
    states: list[State] = []
    model = model_of(toy)
    history = fit(
        model,
        NodeTask(toy),
        [adam(model, TrainingSettings())],
        3,
        evaluate=False,
        on_epoch=lambda *_: bool(states.append(copy_state(model))),
    )
    assert equal(model.state_dict(), states[-1])
    assert (history.best_epoch, history.best_state, history.val_accuracy) == (0, {}, [])
    assert len(history.losses) == 3


def test_on_epoch_counts_from_one_and_ends_the_fit(toy: Graph) -> None:
    seen: list[tuple[int, int]] = []

    def stop_at_three(epoch: int, history: History) -> bool:
        seen.append((epoch, len(history.val_accuracy)))
        return epoch == 3

    history = trained(toy, epochs=9, on_epoch=stop_at_three)[1]
    assert seen == [(1, 1), (2, 2), (3, 3)]
    assert len(history.losses) == 3


def test_training_learns_the_training_nodes(digits: Graph) -> None:
    history = trained(digits, epochs=30)[1]
    assert history.losses[-1] < 0.8 * history.losses[0]
    assert history.accuracy > 0.5


def test_evaluation_reads_the_hard_graph_of_the_task(toy: Graph) -> None:
    model = model_of(toy)
    edges = Edges.from_pairs(toy.pairs[:, :2], toy.num_nodes)
    val_accuracy, val_loss, test_accuracy = NodeTask(toy, edges).evaluate(model)
    logits = model.eval()(toy.features, edges)
    hits = (logits.argmax(1) == toy.labels).float()
    assert val_accuracy == pytest.approx(float(hits[toy.val_mask].mean()))
    assert test_accuracy == pytest.approx(float(hits[toy.test_mask].mean()))
    assert val_loss == pytest.approx(float(F.cross_entropy(logits[toy.val_mask], toy.labels[toy.val_mask]).detach()))
    assert not model.training


def test_the_loss_is_that_of_the_training_nodes_before_the_step_and_without_penalty(toy: Graph) -> None:
    model = GCN(toy.num_features, 8, toy.num_classes, dropout=0.0)
    logits = model(toy.features, Edges.from_pairs(toy.pairs, toy.num_nodes))
    expected = F.cross_entropy(logits[toy.train_mask], toy.labels[toy.train_mask])
    optimizers = [adam(model, TrainingSettings())]
    history = fit(model, NodeTask(toy), optimizers, 1, penalty=lambda: 7 * model.convs[0].bias.sum() + 5)
    assert history.losses == [pytest.approx(float(expected.detach()))]


def test_one_backward_pass_serves_all_optimizers(toy: Graph) -> None:
    gates = torch.ones(toy.num_pairs, requires_grad=True)
    model, start = model_of(toy), copy_state(model_of(toy))
    plain = torch.ones(toy.num_pairs, requires_grad=True)
    NodeTask(toy).loss(NodeTask(toy).logits(model.eval(), plain)).backward()
    fitted = GCN(toy.num_features, 8, toy.num_classes, dropout=0.0)
    optimizers = [adam(fitted, TrainingSettings()), optim.SGD([gates], lr=1.0)]
    fit(fitted, NodeTask(toy), optimizers, 1, gates=gates, penalty=lambda: 0.01 * gates.abs().sum(), evaluate=False)
    torch.testing.assert_close(gates.detach(), 1 - plain.grad - 0.01)
    assert not equal(copy_state(fitted), start)


def test_a_diverging_loss_is_refused(toy: Graph) -> None:
    model = model_of(toy)
    optimizers = [optim.SGD(model.parameters(), lr=1e30)]
    with pytest.raises(
        ValueError, match=r"(training|validation) loss \(got (nan|inf)\), expected a finite number; use a lower"
    ):
        fit(model, NodeTask(toy), optimizers, 10)


def test_a_copied_state_does_not_follow_the_model(toy: Graph) -> None:
    model = model_of(toy)
    state = copy_state(model)
    with torch.no_grad():
        model.convs[0].bias.fill_(3.0)
    assert not state["convs.0.bias"].any()
    assert not any(tensor.requires_grad for tensor in state.values())


@pytest.mark.parametrize("depth", [1, 3])
def test_weight_decay_acts_on_the_first_layer_alone(depth: int) -> None:
    model = GCN(4, 3, 2, depth)
    groups = adam(model, TrainingSettings(learning_rate=0.02, weight_decay=0.1)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {group["lr"] for group in groups} == {0.02}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        name: 0.1 if name.startswith("convs.0.") else 0.0 for name, _ in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, r"epochs \(got 0\), expected at least 1"),
        ({"learning_rate": 0.0}, r"learning rate, weight decay \(got \(0.0, 0.0005\)\), expected > 0 and >= 0"),
        ({"learning_rate": float("nan")}, r"learning rate, weight decay \(got \(nan"),
        ({"weight_decay": -1.0}, r"learning rate, weight decay \(got \(0.01, -1.0\)\)"),
        ({"weight_decay": float("nan")}, "weight decay"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**settings)  # type: ignore[arg-type]


def test_a_last_step_that_diverges_is_refused(toy: Graph) -> None:
    model = model_of(toy)
    with pytest.raises(ValueError, match="finite"):
        fit(model, NodeTask(toy), [optim.SGD(model.parameters(), lr=1e38)], 1)
