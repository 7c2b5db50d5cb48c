"""Every recipe for many networks at once gives what as many calls of the recipe for one give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from gebt.graph import Graph
from gebt.models import GCN
from gebt.prune import Mask, mask_distance
from gebt.recipes import baselines, retrain, search
from gebt.recipes.search import SearchSettings
from gebt.ticket import Ticket, TicketError
from gebt.train import History, TrainingSettings

SEEDS = (0, 3, 7, 11)
# Tickets fire in different epochs, so that the batch is made smaller on the way; one never does.
SETTINGS = SearchSettings(max_epochs=12, threshold=0.05, edge_l1=1e-3, edge_learning_rate=0.01)
RATIOS = {"edge_ratio": (0.2, 0.5, 0.3, 0.1), "weight_ratio": (0.9, 0.5, 0.2, 0.8)}
TRAINING = TrainingSettings(epochs=9, learning_rate=0.05)


def models(graph: Graph, **options: Any) -> list[GCN]:
    return [GCN(graph.num_features, 8, graph.num_classes, seed=seed, **options) for seed in SEEDS]


def splits(graph: Graph) -> list[Graph]:
    """The graph with a split of its own for each seed."""
    parts = [torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(seed)) % 3 for seed in SEEDS]
    return [replace(graph, train_mask=part == 0, val_mask=part == 1, test_mask=part == 2) for part in parts]


def found(graph: Graph, together: list[GCN], single: list[GCN]) -> list[tuple[Ticket, Ticket]]:
    """The tickets of a search together, each with that of its search alone."""
    graphs = splits(graph)
    tickets = search.joint_stacked(together, graphs, **RATIOS, settings=SETTINGS, seeds=SEEDS)
    pairs = []
    for number, ticket in enumerate(tickets):
        ratios = {name: values[number] for name, values in RATIOS.items()}
        seed = SEEDS[number]
        alone = search.joint(single[number], graphs[number], **ratios, settings=SETTINGS, seed=seed)
        pairs.append((ticket, alone))
    return pairs


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], within: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=within)


def test_each_ticket_found_together_is_that_found_alone(sparse64: Graph) -> None:
    together, single = models(sparse64), models(sparse64)
    pairs = found(sparse64, together, single)
    for number, (ticket, alone) in enumerate(pairs):
        assert ticket.weight_mask == alone.weight_mask
        assert ticket.edge_mask == alone.edge_mask
        close(ticket.state_at_draw, alone.state_at_draw, 1e-9)
        close(together[number].state_dict(), single[number].state_dict(), 1e-9)
        assert ticket.initial_state == alone.initial_state
        assert ticket.provenance == alone.provenance
    assert len({ticket.epoch_drawn for ticket, _ in pairs}) == len(SEEDS)
    assert [ticket.fired for ticket, _ in pairs].count(False) == 1


def test_in_single_precision_the_tickets_are_the_same_but_for_rounding(sparse: Graph) -> None:
    for ticket, alone in found(sparse, models(sparse), models(sparse)):
        assert ticket.weight_mask == alone.weight_mask
        close(ticket.state_at_draw, alone.state_at_draw, 1e-5)
        assert ticket.epoch_drawn == alone.epoch_drawn
        # Adam's first step follows the sign of gradients that may be nothing but rounding: edges can change places.
        assert mask_distance(ticket.edge_mask, alone.edge_mask) < 0.01


def test_observers_are_told_which_network_it_is(sparse64: Graph) -> None:
    draws: dict[int, list[tuple[int, Mask, Mask]]] = {number: [] for number in range(len(SEEDS))}
    epochs: list[tuple[int, int, int]] = []

    def on_draw(number: int, *drawn: Any) -> None:
        draws[number].append(drawn)

    def on_epoch(number: int, epoch: int, history: History) -> bool:
        epochs.append((number, epoch, len(history.losses)))
        return (number, epoch) == (2, 2)

    arguments: dict[str, Any] = {"settings": SETTINGS, "seeds": SEEDS, "on_draw": on_draw, "on_epoch": on_epoch}
    tickets = search.joint_stacked(models(sparse64), sparse64, **RATIOS, **arguments)
    assert tickets[2].epoch_drawn == 2
    for number, ticket in enumerate(tickets):
        numbers = list(range(1, ticket.epoch_drawn + 1))
        assert [epoch for epoch, *_ in draws[number]] == numbers
        assert [row[1:] for row in epochs if row[0] == number] == [(n, n) for n in numbers]
        assert draws[number][-1][1:] == (ticket.weight_mask, ticket.edge_mask)


def test_what_cannot_be_searched_together_is_refused(sparse: Graph) -> None:
    given: dict[str, Any] = {"edge_ratio": 0.2, "weight_ratio": 0.5, "seeds": SEEDS}
    with pytest.raises(
        ValueError,
        match=r"\(got \('unit', 'local_degree', 'one', 'detector', False\)\), expected 'entry', .* together",
    ):
        search.joint_stacked(models(sparse), sparse, **given, settings=SearchSettings(weight_structure="unit"))
    with pytest.raises(ValueError, match=r"edge ratios \(got 2\), expected one, or 4"):
        search.joint_stacked(models(sparse), sparse, **given | {"edge_ratio": (0.1, 0.2)})
    with pytest.raises(ValueError, match=r"prune ratio \(got 1.0\)"):
        search.joint_stacked(models(sparse), sparse, **given | {"edge_ratio": (0.1, 0.2, 1.0, 0.1)})
    with pytest.raises(ValueError, match="zip"):
        search.joint_stacked(models(sparse)[1:], sparse, **given)


def tickets_of(graphs: Sequence[Graph]) -> list[Ticket]:
    """Drawn at once, from the initial weights; feature columns go, hidden units stay."""
    tickets = []
    for model, graph, seed in zip(models(graphs[0]), graphs, SEEDS, strict=True):
        ticket = baselines.random_ticket(model, graph, edge_ratio=0.3, weight_ratio=0.8, seed=seed)
        mask = dict(ticket.weight_mask) | {"convs.1.lin.weight": torch.ones(3, 8, dtype=torch.bool)}
        tickets.append(replace(ticket, weight_mask=Mask(mask), state_at_draw=model.state_dict()))
    return tickets


def retrained(graphs: Sequence[Graph], tickets: Sequence[Ticket], settings: retrain.RetrainSettings) -> None:
    """Trains tickets together and alone, and compares all that comes out."""
    together, single = models(graphs[0]), models(graphs[0])
    results = retrain.run_stacked(tickets, together, graphs, settings, seeds=SEEDS)
    for number, result in enumerate(results):
        expected = retrain.run(tickets[number], single[number], graphs[number], settings, seed=SEEDS[number])
        assert result.history.val_accuracy == expected.history.val_accuracy
        assert (result.best_epoch, result.test_accuracy) == (expected.best_epoch, expected.test_accuracy)
        assert torch.equal(result.edges.pairs, expected.edges.pairs)
        assert result.edge_sparsity == expected.edge_sparsity
        assert result.weight_sparsity == expected.weight_sparsity
        assert (result.compacted is None) == (not settings.compaction)
        close(together[number].state_dict(), single[number].state_dict(), 1e-9)


@pytest.fixture
def sparse_stays_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone the features would be stored as is fastest, and as a dense matrix other numbers are dropped."""
    monkeypatch.setattr("gebt.models.compact.DENSE_FEATURE_DENSITY", 1.0)


@pytest.mark.usefixtures("sparse_stays_sparse")
@pytest.mark.parametrize("start", ["inherit", "rewind", "reinit"])
@pytest.mark.parametrize("compaction", [False, True])
def test_each_ticket_trained_together_ends_as_it_does_alone(sparse64: Graph, start: Any, compaction: bool) -> None:
    graphs = splits(sparse64)
    retrained(graphs, tickets_of(graphs), retrain.RetrainSettings(TRAINING, start, compaction))


@pytest.mark.usefixtures("sparse_stays_sparse")
def test_so_do_those_whose_layers_differ_in_width(sparse64: Graph) -> None:
    graphs = splits(sparse64)
    tickets = tickets_of(graphs)
    mask = {name: kept.clone() for name, kept in tickets[1].weight_mask.items()}
    mask["convs.1.lin.weight"][:, 2] = False
    tickets[1] = replace(tickets[1], weight_mask=Mask(mask))
    retrained(graphs, tickets, retrain.RetrainSettings(TRAINING))


def test_tickets_of_one_search_can_be_trained_together(sparse64: Graph) -> None:
    """As many networks as epochs at which a ticket was drawn, all of one seed and one graph."""
    settings = [replace(SETTINGS, max_epochs=epochs) for epochs in (2, 4, 6, 8)]
    ratios = {"edge_ratio": 0.2, "weight_ratio": 0.5}
    tickets = [search.joint(models(sparse64)[0], sparse64, **ratios, settings=s, seed=5) for s in settings]
    retrained([sparse64] * 4, tickets, retrain.RetrainSettings(TRAINING, compaction=False))


def test_a_ticket_of_another_graph_is_refused(sparse: Graph) -> None:
    graphs = splits(sparse)
    with pytest.raises(TicketError, match="fingerprint"):
        retrain.run_stacked(tickets_of(graphs), models(sparse), graphs[::-1], seeds=SEEDS)


def test_dense_networks_together_are_those_alone(sparse64: Graph) -> None:
    together, single, graphs = models(sparse64), models(sparse64), splits(sparse64)
    seen: list[tuple[int, int]] = []

    def on_epoch(number: int, epoch: int, history: History) -> bool:
        seen.append((number, epoch))
        return False

    histories = baselines.dense_stacked(together, graphs, TRAINING, seeds=SEEDS, on_epoch=on_epoch)
    for number, history in enumerate(histories):
        expected = baselines.dense(single[number], graphs[number], TRAINING, seed=SEEDS[number])
        assert history.test_accuracy == expected.test_accuracy
        assert history.best_epoch == expected.best_epoch
        close(together[number].state_dict(), single[number].state_dict(), 1e-9)
    assert seen == [(number, epoch) for epoch in range(1, 10) for number in range(len(SEEDS))]
