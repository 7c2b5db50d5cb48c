from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F

from gebt.graph import Edges, Graph
from gebt.models import GCN
from gebt.sparse import SparseMatrix
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

    def measures(self, model: nn.Module) -> Tensor:
        accuracy, loss = next(self._script)
        return torch.tensor((accuracy, loss, accuracy / 2), dtype=torch.float64)


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
        ValueError,
        match=r"(training|validation) loss \(got (nan|inf); first in .*\), expected finite numbers; use a lower",
    ):
        fit(model, NodeTask(toy), optimizers, 10)


class Constant(nn.Module):
    """Logits that are finite, but whose loss is not: they lie further apart than a float can say."""

    def forward(self, features: Tensor, edges: Edges, gates: Tensor | None = None) -> Tensor:
        return torch.tensor([3e38, -3e38, -3e38]).expand(features.shape[0], 3)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match="expected finite numbers; use a lower learning rate") as caught:
        fit(*arguments, **options)
    return str(caught.value).split(", expected")[0]


@pytest.mark.parametrize("evaluate", [True, False])
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_first_layer_whose_output_is_not_finite_is_named(toy: Graph, layer: int, evaluate: bool) -> None:
    model = GCN(toy.num_features, 8, toy.num_classes, depth=3, dropout=0.0)
    with torch.no_grad():
        for conv in model.convs:
            conv.bias.fill_(1.0)
        model.convs[layer].lin.weight.fill_(3e38)
    got = refusal(model, NodeTask(toy), [], 2, evaluate=evaluate)
    assert got == f"training loss (got nan; first in the output of layer 'convs.{layer}.lin')"
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("evaluate", [True, False])
def test_edge_values_that_are_not_finite_show_in_the_first_layer(toy: Graph, evaluate: bool) -> None:
    gates = torch.full((toy.num_pairs,), float("nan"))
    got = refusal(model_of(toy), NodeTask(toy), [], 1, gates=gates, evaluate=evaluate)
    assert got == "training loss (got nan; first in the output of layer 'convs.0.lin')"


def test_a_normalization_that_is_not_finite_is_named(toy: Graph) -> None:
    model = GCN(toy.num_features, 8, toy.num_classes, dropout=0.0, norm="batch")
    model.norms[0].module.running_var.fill_(float("nan"))
    assert refusal(model, NodeTask(toy), [], 1).startswith(
        "validation loss (got nan; first in the output of layer 'norms.0.module'"
    )


def test_weights_that_are_not_finite_are_named_before_any_output(toy: Graph) -> None:
    model = GCN(toy.num_features, 8, toy.num_classes, dropout=0.0)
    with torch.no_grad():
        model.convs[1].lin.weight[0, 0] = float("nan")
    got = refusal(model, NodeTask(toy), [], 1)
    assert got == "training loss (got nan; first in weights 'convs.1.lin.weight')"


def test_a_step_that_breaks_the_weights_is_told_by_the_loss_after_it(toy: Graph) -> None:
    model = model_of(toy)
    optimizers = [adam(model, TrainingSettings())]
    got = refusal(model, NodeTask(toy), optimizers, 3, penalty=lambda: float("inf") * model.convs[1].bias.sum())
    assert got == "validation loss (got nan; first in weights 'convs.1.bias')"


def test_a_loss_that_is_not_finite_by_itself_is_told_so(toy: Graph) -> None:
    model = Constant()
    task = NodeTask(toy)
    task.loss = lambda logits: F.cross_entropy(logits, torch.ones(len(logits), dtype=torch.long)).requires_grad_()
    assert refusal(model, task, [], 1, evaluate=False) == "training loss (got inf; first in the loss alone)"


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


def dense_adjacency(edges: Edges) -> Tensor:
    return SparseMatrix(edges.pattern, edges.unit_weights).to_dense()


@pytest.mark.parametrize("kept", [None, 3], ids=["whole graph", "ticket"])
def test_the_aggregated_features_are_those_of_the_edges_seen(toy: Graph, kept: int | None) -> None:
    edges = Edges.from_pairs(toy.pairs[:, :kept], toy.num_nodes)
    task = NodeTask(toy, edges)
    torch.testing.assert_close(task.aggregated, dense_adjacency(edges) @ toy.features)
    assert task.aggregated is task.aggregated
    assert not task.aggregated.requires_grad


def test_sparse_features_are_not_aggregated_nor_those_that_are_not_to_be_kept(make_graph: Any, toy: Graph) -> None:
    sparse = make_graph(share=0.1)
    assert isinstance(sparse.features, SparseMatrix)
    assert NodeTask(sparse).aggregated is None
    assert NodeTask(toy, keep_aggregated=False).aggregated is None


class Watched:
    """What the first convolution of a model is given."""

    def __init__(self, model: GCN) -> None:
        self.seen: list[Tensor] = []
        model.convs[0].register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0]))


@pytest.mark.parametrize(
    ("rates", "training", "gated", "used"),
    [
        ({"dropout": 0.5}, False, False, True),
        ({"dropout": 0.5}, True, False, False),
        ({"dropout": 0.5, "input_dropout": 0.0}, True, False, True),
        ({"dropout": 0.0, "input_dropout": 0.3}, True, False, False),
        ({"dropout": 0.0, "input_dropout": 0.3}, False, False, True),
        ({"dropout": 0.0}, True, True, False),
        ({"dropout": 0.0}, False, True, False),
    ],
)
def test_aggregated_features_are_read_only_where_nothing_is_dropped_and_no_edge_is_soft(
    toy: Graph, rates: dict[str, float], training: bool, gated: bool, used: bool
) -> None:
    model, task = GCN(toy.num_features, 8, toy.num_classes, **rates).train(training), NodeTask(toy)
    watched = Watched(model)
    gates = torch.full((toy.num_pairs,), 0.5) if gated else None
    with torch.random.fork_rng():
        task.logits(model, gates)
    assert (watched.seen[0] is task.aggregated) == used


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"norm": "batch", "residual": True}], ids=["plain", "norm, residual"])
def test_starting_from_aggregated_features_changes_neither_logits_nor_gradients(
    toy: Graph, depth: int, options: dict[str, Any]
) -> None:
    found = []
    for keep in (True, False):
        model = GCN(toy.num_features, 8, toy.num_classes, depth, dropout=0.0, **options)
        logits = NodeTask(toy, keep_aggregated=keep).logits(model)
        found.append((logits, torch.autograd.grad(logits.square().sum(), list(model.parameters()))))
    # Some gradients are zero but for rounding: a bias before a normalization.
    torch.testing.assert_close(*found, atol=2e-6, rtol=1e-5)


def test_a_model_that_does_not_start_from_aggregated_features_is_given_none(toy: Graph) -> None:
    calls: list[tuple[Any, ...]] = []

    class Plain(nn.Module):
        def forward(self, *arguments: Any) -> Tensor:
            calls.append(arguments)
            return torch.zeros(toy.num_nodes, toy.num_classes)

    task = NodeTask(toy)
    task.logits(Plain())
    assert calls == [(toy.features, task.edges, None)]
    assert "aggregated" not in vars(task)


def test_a_kept_adjacency_product_does_not_change_what_is_learned(toy: Graph) -> None:
    def losses(keep: bool) -> list[float]:
        model = GCN(toy.num_features, 8, toy.num_classes, dropout=0.3, input_dropout=0.0)
        task = NodeTask(toy, keep_aggregated=keep)
        return fit(model, task, [adam(model, TrainingSettings())], 5).losses

    assert losses(True) == pytest.approx(losses(False), rel=1e-5)


def test_measures_are_the_evaluation_in_one_tensor(toy: Graph) -> None:
    model, task = model_of(toy), NodeTask(toy)
    measures = task.measures(model.train())
    assert measures.shape == (3,)
    assert not measures.requires_grad
    assert not model.training
    assert tuple(measures.tolist()) == task.evaluate(model)


def test_statistics_of_normalization_are_those_of_the_last_pass_and_its_rate_is_as_before(toy: Graph) -> None:
    model = GCN(toy.num_features, 8, toy.num_classes, dropout=0.0, norm="batch")
    norm = model.norms[0].module
    task, seen = NodeTask(toy), list[Tensor]()
    norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()) if norm.training else None)
    fit(model, task, [adam(model, TrainingSettings())], 3, evaluate=False)
    assert len(seen) == 3
    torch.testing.assert_close(norm.running_mean, seen[-1].mean(0))
    torch.testing.assert_close(norm.running_var, seen[-1].var(0))
    assert norm.momentum == 0.1
