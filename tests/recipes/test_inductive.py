"""Inductive tickets: found on training graphs alone, exact on every graph, the same after a round trip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gebt.graph import Graph
from gebt.graph.edge_scorer import EdgeScorer
from gebt.graph.edges import EDGES
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.models import GCN
from gebt.models.graph_classifier import GraphClassifier
from gebt.recipes import baselines, retrain, search
from gebt.ticket import Ticket, TicketError
from gebt.train.edge_scorer import TrainedEdgeScorer
from gebt.train.graphs import GraphsTask
from gebt.train.loop import TrainingSettings
from gebt.train.search_settings import SearchSettings

SETTINGS = SearchSettings(max_epochs=4, edge_score="learned", edge_learning_rate=0.05, threshold=1e-9)
RATIOS = {"edge_ratio": 0.3, "weight_ratio": 0.5}


def classifier(features: int = 3) -> GraphClassifier:
    return GraphClassifier(features, 4, 2, depth=3, seed=0)


def found_on(fold: GraphClassificationFold, settings: SearchSettings = SETTINGS) -> Ticket:
    return search.joint(classifier(), fold, **RATIOS, settings=settings, seed=7)


@pytest.fixture(scope="module")
def ticket(fold: GraphClassificationFold) -> Ticket:
    return found_on(fold)


def same_rule(a: Ticket, b: Ticket) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.edge_scorer.parameters(), b.edge_scorer.parameters(), strict=True))


def test_counts_are_exact_and_the_rule_is_trained(fold: GraphClassificationFold, ticket: Ticket) -> None:
    assert not torch.equal(ticket.edge_scorer.outer, EdgeScorer(3, 7).outer)
    assert torch.equal(ticket.edge_mask[EDGES], ticket.edge_scorer.mask(fold, 0.3, 7))
    assert ticket.weight_mask.kept == ticket.weight_mask.size - ticket.weight_mask.size // 2
    own, controls = ticket.edge_mask[EDGES], baselines.random_edges(ticket, fold, seed=1)
    for number in range(fold.num_graphs):
        here = fold.graph_of_pair == number
        assert int(own[here].sum()) == int(here.sum()) - int(0.3 * int(here.sum()))
        assert own[here].sum() == controls.edge_mask[EDGES][here].sum()
    assert not torch.equal(own, controls.edge_mask[EDGES])
    assert controls.edge_scorer is None


def test_masks_are_watched_on_the_training_graphs_alone(fold: GraphClassificationFold) -> None:
    drawn: list[int] = []
    watch = {"settings": SETTINGS, "on_draw": lambda epoch, weights, edges: drawn.append(edges.size)}
    ticket = search.joint(classifier(), fold, **RATIOS, **watch)
    assert drawn == [fold.part(fold.train_mask).num_pairs] * SETTINGS.max_epochs
    assert ticket.edge_mask.size == fold.num_pairs


@pytest.mark.parametrize("draw", ["detector", "validation"])
def test_test_graphs_do_not_enter_the_search(fold: GraphClassificationFold, draw: str) -> None:
    settings = replace(SETTINGS, draw_at=draw)
    tested = fold.test_mask[fold.graph_of]
    pairs = fold.pairs[:, ~tested[fold.pairs[0]] | (torch.arange(fold.num_pairs) % 2 == 0)]
    other = replace(fold, features=torch.where(tested[:, None], 5.0, fold.features), pairs=pairs)
    a, b = found_on(fold, settings), found_on(other, settings)
    assert same_rule(a, b)
    assert a.weight_mask == b.weight_mask
    assert a.edge_mask[EDGES].numel() != b.edge_mask[EDGES].numel()


def test_a_rule_is_trained_through_its_own_mask(fold: GraphClassificationFold) -> None:
    """What a network sees is the mask itself; its gradient reaches the rule as that of the soft values would."""
    task = GraphsTask(fold)
    trained = TrainedEdgeScorer(task, 0.3, seed=7)
    with torch.no_grad():
        trained.edge_scorer.outer.copy_(
            torch.randn(trained.edge_scorer.outer.shape, generator=torch.Generator().manual_seed(0))
        )
    gates = trained.gates(task)
    torch.testing.assert_close(gates.detach(), trained.mask().to(gates))
    given = torch.randn(gates.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(gates @ given, list(trained.edge_scorer.parameters()))
    soft = trained.edge_scorer.values(task.seen.graph.features, task.seen.edges)
    for own, expected in zip(
        found, torch.autograd.grad(soft @ given, list(trained.edge_scorer.parameters())), strict=True
    ):
        torch.testing.assert_close(own, expected)
    everything = TrainedEdgeScorer(task, 0.0, seed=7).gates(task)
    torch.testing.assert_close(everything.detach(), torch.ones(fold.part(fold.train_mask).num_pairs))


def test_a_best_epochs_rule_is_the_tickets(fold: GraphClassificationFold) -> None:
    states: list[dict[str, torch.Tensor]] = []
    search_ = search._Search(classifier(), fold, (0.3, 0.5, None), replace(SETTINGS, draw_at="validation"), 7)

    def note(*_: object) -> bool:
        states.append({name: tensor.clone() for name, tensor in search_.edge_scorer.edge_scorer.state_dict().items()})
        return False

    found = search_.run(None, note)
    best = states[found.epoch_drawn - 1]
    assert all(torch.equal(tensor, best[name]) for name, tensor in found.edge_scorer.state_dict().items())


def test_a_saved_ticket_prunes_graphs_never_seen(
    ticket: Ticket, make_fold: Callable[..., GraphClassificationFold], tmp_path: Path
) -> None:
    loaded, unseen = Ticket.load(ticket.save(tmp_path / "t.safetensors")), make_fold(graphs=7, seed=9)
    assert same_rule(loaded, ticket)
    loaded.check(classifier(), unseen)
    assert torch.equal(loaded.edge_mask_for(unseen), ticket.edge_scorer.mask(unseen, 0.3, 7))
    assert loaded.edges(unseen).num_pairs == int(loaded.edge_mask_for(unseen).sum()) < unseen.num_pairs
    assert (tmp_path / "t.safetensors").read_bytes() == loaded.save(tmp_path / "again").read_bytes()
    trained = retrain.run(loaded, classifier(), unseen, retrain.RetrainSettings(TrainingSettings(2)))
    assert trained.edges.num_pairs == loaded.edges(unseen).num_pairs


def test_tickets_without_a_rule_are_stored_as_ever(
    ticket: Ticket, fold: GraphClassificationFold, tmp_path: Path
) -> None:
    plain = baselines.random_ticket(classifier(), fold, **RATIOS)
    path = plain.save(tmp_path / "plain.safetensors")
    assert b"learned" not in path.read_bytes()
    assert Ticket.load(path).edge_scorer is None
    with pytest.raises(TicketError, match="as in the ticket"):
        plain.check(classifier(), fold.part(fold.test_mask))


def test_other_widths_are_refused(ticket: Ticket, make_fold: Callable[..., GraphClassificationFold]) -> None:
    wide = make_fold(features=4)
    with pytest.raises(TicketError, match=r"graph 'fold' \(got 4 features\), expected 3 as the ticket's edge rule"):
        ticket.check(classifier(4), wide)
    with pytest.raises(ValueError, match=r"graph 'fold' \(got 4 features\), expected 3 as the edge rule reads"):
        ticket.edges(wide)


def test_soft_labels_do_not_follow_to_other_graphs(
    fold: GraphClassificationFold, make_fold: Callable[..., GraphClassificationFold]
) -> None:
    taught = found_on(fold, replace(SETTINGS, soft_labels=True))
    assert taught.soft_labels.shape == (fold.num_graphs, 2)
    assert retrain.run(taught, classifier(), fold, retrain.RetrainSettings(TrainingSettings(2))).best_epoch > 0
    with pytest.raises(TicketError, match=r"distill \(got 30.0\), expected 0 on 'fold': the ticket's labels are of"):
        retrain.run(taught, classifier(), make_fold(seed=3), retrain.RetrainSettings(TrainingSettings(2)))


def test_a_rule_of_nodes_prunes_another_graph(make_graph: Callable[..., Graph]) -> None:
    here, there = make_graph(), make_graph(nodes=15, seed=4, name="there")
    model = GCN(here.num_features, 4, 3)
    found = search.joint(model, here, **RATIOS, settings=SETTINGS, seed=1)
    assert found.edge_mask.kept == here.num_pairs - int(0.3 * here.num_pairs)
    found.check(model, there)
    assert found.edges(there).num_pairs == there.num_pairs - int(0.3 * there.num_pairs)


def test_settings_that_no_rule_serves_are_refused(fold: GraphClassificationFold, toy: Graph) -> None:
    with pytest.raises(ValueError, match=r"edge score \(got 'local_degree'\), expected 'learned' for a set of graphs"):
        found_on(fold, SearchSettings())
    with pytest.raises(ValueError, match=r"edge score \(got 'learned'\), expected one that trains edge values"):
        search.graph_only(GCN(toy.num_features, 4, 3), toy, edge_ratio=0.3, settings=SETTINGS)
    with pytest.raises(
        ValueError, match=r"edge weights \(got 'degree_corrected'\), expected 'one' with edge score 'learned'"
    ):
        replace(SETTINGS, edge_weights="degree_corrected")
    with pytest.raises(ValueError, match=r"spread \(got 0.5\), expected 0: graphs of a set have no neighbors"):
        found_on(fold, replace(SETTINGS, label_propagation=0.5))
