from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from gebt.graph import Edges, Graph
from gebt.graph.edges import EDGES
from gebt.models import GCN
from gebt.recipes import baselines, retrain
from gebt.sparse.compaction import sliced
from gebt.ticket import TicketError
from gebt.train import History, TrainingSettings
from gebt.train.loop import copy_state
from gebt.train.result import REINIT_SEED

MakeModel = Callable[..., GCN]
SHORT = retrain.RetrainSettings(TrainingSettings(epochs=4))


def test_after_retraining_the_weights_have_exactly_the_tickets_density(
    digits: Graph, make_model: MakeModel, found: Any
) -> None:
    model = make_model(seed=5)
    result = retrain.run(found.ticket, model, digits, SHORT)
    for name, kept in found.ticket.weight_mask.items():
        weight = dict(model.named_parameters())[name]
        assert torch.equal(weight != 0, kept)
    assert result.weight_sparsity == found.ticket.weight_sparsity
    assert result.edge_sparsity == found.ticket.edge_sparsity


def test_retraining_sees_the_kept_edges_only(digits: Graph, make_model: MakeModel, found: Any) -> None:
    result = retrain.run(found.ticket, make_model(), digits, SHORT)
    assert torch.equal(result.edges.pairs, digits.pairs[:, found.ticket.edge_mask[EDGES]])
    assert result.edges.num_pairs == found.ticket.edge_mask.kept


def test_the_result_is_the_hard_accuracy_of_the_model_left_behind(
    digits: Graph, make_model: MakeModel, found: Any
) -> None:
    model = make_model()
    result = retrain.run(found.ticket, model, digits, SHORT)
    hits = (model.eval()(digits.features, result.edges).argmax(1) == digits.labels)[digits.test_mask]
    assert result.test_accuracy == pytest.approx(float(hits.float().mean()))
    assert result.test_accuracy == result.history.test_accuracy[result.best_epoch - 1]


@pytest.mark.parametrize("start", ["inherit", "rewind", "reinit"])
def test_training_starts_from_the_weights_asked_for(
    digits: Graph, make_model: MakeModel, found: Any, start: Any
) -> None:
    """With no step of any size, the model ends where it began."""
    model = make_model(seed=5)
    settings = retrain.RetrainSettings(TrainingSettings(epochs=1, learning_rate=1e-30), start)
    retrain.run(found.ticket, model, digits, settings, seed=11)
    source = {
        "inherit": found.model.state_dict(),
        "rewind": found.before,
        "reinit": make_model(seed=11 + REINIT_SEED).state_dict(),
    }[start]
    for name, tensor in model.state_dict().items():
        kept = found.ticket.weight_mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        # Biases that start at exactly zero take the step of 1e-30.
        torch.testing.assert_close(tensor[kept], source[name][kept], rtol=0, atol=1e-29)
        if name in found.ticket.weight_mask:
            assert torch.equal(tensor[kept], source[name][kept])


def test_equal_seeds_give_equal_bits(digits: Graph, make_model: MakeModel, found: Any) -> None:
    runs = []
    for seed in (2, 2, 3):
        model = make_model()
        history = retrain.run(found.ticket, model, digits, SHORT, seed=seed).history
        runs.append((history.losses, copy_state(model)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], tensor) for name, tensor in runs[1][1].items())
    assert runs[0][0] != runs[2][0]


def test_the_ticket_is_the_same_after_retraining(digits: Graph, make_model: MakeModel, found: Any) -> None:
    before = {name: tensor.clone() for name, tensor in found.ticket.state_at_draw.items()}
    retrain.run(found.ticket, make_model(), digits, SHORT)
    assert all(torch.equal(before[name], tensor) for name, tensor in found.ticket.state_at_draw.items())


def test_on_epoch_can_end_it(digits: Graph, make_model: MakeModel, found: Any) -> None:
    def stop(epoch: int, history: History) -> bool:
        return epoch == 2

    assert len(retrain.run(found.ticket, make_model(), digits, SHORT, on_epoch=stop).history.losses) == 2


def test_a_ticket_of_another_graph_or_model_is_refused_before_the_model_is_touched(
    digits: Graph, make_model: MakeModel, found: Any
) -> None:
    model = make_model(seed=5)
    before = copy_state(model)
    with pytest.raises(TicketError, match="fingerprint"):
        retrain.run(found.ticket, model, replace(digits, labels=digits.labels.flip(0)), SHORT)
    with pytest.raises(TicketError, match=r"expected .* as in the ticket"):
        retrain.run(found.ticket, model, replace(digits, pairs=digits.pairs[:, 1:]), SHORT)
    with pytest.raises(TicketError, match="of the model"):
        retrain.run(found.ticket, GCN(digits.num_features, 8, digits.num_classes), digits, SHORT)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "options", [{}, {"residual": True}, {"norm": "batch"}, {"norm": "batch", "residual": True}], ids=str
)
@pytest.mark.parametrize(("structure", "ratio"), [("entry", 0.6), ("entry", 0.95), ("unit", 0.5), ("joint", 0.6)])
def test_the_small_problem_is_trained_to_the_weights_of_the_masked_one(
    digits: Graph, structure: Any, ratio: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In double precision; with a norm too, in front of which no bias is trained.

    The classes have unequal numbers of labels. With equal ones, two classes that read nothing would have equal logits,
    and rounding would decide between them.
    """
    ones = property(lambda edges: edges.normalized(torch.ones(edges.num_pairs, dtype=torch.float64)))
    monkeypatch.setattr(Edges, "unit_weights", ones)
    train = torch.cat([(digits.labels == label).nonzero()[: 5 + label, 0] for label in range(digits.num_classes)])
    train_mask = torch.zeros_like(digits.train_mask).index_fill(0, train, True)
    others = {"val_mask": digits.val_mask & ~train_mask, "test_mask": digits.test_mask & ~train_mask}
    graph = replace(digits, features=digits.features.double(), train_mask=train_mask, **others)

    def fresh() -> GCN:
        return GCN(digits.num_features, 16, digits.num_classes, 3, dropout=0.0, **options).double()

    ratios = {"edge_ratio": 0.3, "weight_ratio": ratio, "weight_structure": structure}
    ticket = baselines.random_ticket(fresh(), graph, **ratios, seed=1)
    training = TrainingSettings(epochs=5, learning_rate=0.04, weight_decay=5e-4)
    found = []
    for compaction in (True, False):
        model = fresh()
        settings = retrain.RetrainSettings(training, compaction=compaction)
        found.append((retrain.run(ticket, model, graph, settings), model))
    (small, model), (whole, masked) = found
    assert whole.compacted is None
    assert small.history.losses == pytest.approx(whole.history.losses, abs=1e-9)
    assert small.history.val_accuracy == whole.history.val_accuracy
    assert (small.best_epoch, small.test_accuracy) == (whole.best_epoch, whole.test_accuracy)
    ours, theirs = (sliced(m.state_dict(), model.groups(), small.compacted.live) for m in (model, masked))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for name, kept in ticket.weight_mask.items():
        assert not model.state_dict()[name][~kept].any()


def test_what_was_trained_small_is_written_back_into_the_model(digits: Graph, make_model: MakeModel) -> None:
    ticket = baselines.random_ticket(
        make_model(), digits, edge_ratio=0.3, weight_ratio=0.5, weight_structure="joint", seed=1
    )
    model = make_model(seed=5)
    result = retrain.run(ticket, model, digits, SHORT)
    assert result.compacted.model.widths == [32, 8, digits.num_classes]
    assert result.compacted.graph.features.shape[1] == 32
    with torch.no_grad():
        small = result.compacted.model.eval()(result.compacted.graph.features, result.edges)
        torch.testing.assert_close(model.eval()(digits.features, result.edges), small, atol=1e-5, rtol=1e-5)
