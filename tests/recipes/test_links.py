"""Tickets of links: searched, saved, loaded and trained by the recipes of node classification."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.graph import Edges, Graph, LinkGraph, hold_out_links
from gebt.graph.edges import EDGES
from gebt.models import GCN, LinkPredictor
from gebt.recipes import baselines, imp, retrain, search, ugs
from gebt.ticket import Ticket, TicketError
from gebt.train import History, TrainingSettings
from gebt.train.loop import copy_state

SEARCH = search.SearchSettings(max_epochs=4, threshold=1e-9)
SHORT = retrain.RetrainSettings(TrainingSettings(epochs=4))


def predictor(seed: int = 0) -> LinkPredictor:
    return LinkPredictor(GCN(64, 12, 12, seed=seed), 12, seed=seed)


@dataclass(frozen=True)
class Found:
    """A link graph and a ticket of it."""

    graph: LinkGraph
    ticket: Ticket


@pytest.fixture(scope="module")
def links(digits: Graph) -> Found:
    graph = hold_out_links(digits)
    return Found(graph, search.joint(predictor(), graph, edge_ratio=0.2, weight_ratio=0.6, settings=SEARCH, seed=3))


def test_a_ticket_is_saved_loaded_and_trained(links: Found, tmp_path: Path) -> None:
    path = links.ticket.save(tmp_path / "ticket.safetensors")
    loaded = Ticket.load(path)
    results = []
    for compaction in (True, False):
        model = predictor(seed=5)
        settings = retrain.RetrainSettings(SHORT.training, compaction=compaction)
        found = retrain.run(loaded, model, links.graph, settings)
        assert (found.compacted is not None) == compaction
        assert torch.equal(found.edges.pairs, links.graph.pairs[:, links.ticket.edge_mask[EDGES]])
        results.append(found.test_accuracy)
        for name, kept in loaded.weight_mask.items():
            assert not dict(model.named_parameters())[name][~kept].any()
    assert all(0 < hits <= 1 for hits in results)
    pruned = links.graph.num_pairs // 5
    assert links.ticket.edge_mask.kept == links.graph.num_pairs - pruned
    assert any(name.startswith("lins.") for name in links.ticket.weight_mask)


def test_the_accuracy_is_the_metric_of_the_network_left_behind(links: Found) -> None:
    model = predictor()
    found = retrain.run(links.ticket, model, links.graph, SHORT).history
    edges = links.ticket.edges(links.graph)
    with torch.no_grad():
        h = model.eval()(links.graph.features, edges)
        real, others = (model.score(h, part) for part in (links.graph.test_edges, links.graph.test_negatives))
    assert found.accuracy == pytest.approx(float((real > others.sort(descending=True).values[49]).float().mean()))


def test_equal_seeds_give_equal_bits(links: Found) -> None:
    runs: list[tuple[History, dict[str, torch.Tensor]]] = []
    for seed in (2, 2, 3):
        model = predictor()
        runs.append((retrain.run(links.ticket, model, links.graph, SHORT, seed=seed).history, copy_state(model)))
    assert runs[0][0].losses == runs[1][0].losses
    assert all(torch.equal(runs[0][1][name], tensor) for name, tensor in runs[1][1].items())
    assert runs[0][0].losses != runs[2][0].losses


def test_a_ticket_of_another_split_is_refused(links: Found, digits: Graph) -> None:
    other = hold_out_links(digits, seed=1)
    assert other.num_pairs == links.graph.num_pairs
    with pytest.raises(TicketError, match=r"fingerprint .*the same data, feature scaling and split are needed"):
        retrain.run(links.ticket, predictor(), other, SHORT)
    with pytest.raises(TicketError, match=r"got \d+ pairs"):
        retrain.run(links.ticket, predictor(), digits, SHORT)


@pytest.mark.parametrize("score", ["magnitude", "local_degree", "similarity"])
def test_edges_are_scored_by_values_and_by_embeddings(links: Found, score: Any) -> None:
    settings = search.SearchSettings(max_epochs=3, edge_score=score, draw_at="validation")
    model = predictor()
    ticket = search.joint(model, links.graph, edge_ratio=0.3, weight_ratio=0.5, settings=settings)
    assert ticket.edge_sparsity == pytest.approx(0.3, abs=1e-3)
    if score == "similarity":
        # What stays is nearer in the embeddings than what goes.
        with torch.no_grad():
            h = model.eval()(links.graph.features, Edges.from_pairs(links.graph.pairs, links.graph.num_nodes))
        h = torch.nn.functional.normalize(h - h.mean(0))
        cosine, kept = (h[links.graph.pairs[0]] * h[links.graph.pairs[1]]).sum(1), ticket.edge_mask[EDGES]
        assert float(cosine[kept].mean()) > float(cosine[~kept].mean())


@pytest.mark.parametrize(
    "settings",
    [
        {"edge_score": "reliance"},
        {"edge_score": "reliance+magnitude"},
        {"label_propagation": 0.5},
        {"soft_labels": True},
        {"draw_at": "validation", "prediction_ema": 0.5},
    ],
    ids=str,
)
def test_settings_that_need_classes_are_refused(links: Found, settings: Any) -> None:
    with pytest.raises(
        ValueError, match=r"edge score, soft labels, label propagation, prediction EMA of a search for links \(got"
    ):
        search.joint(
            predictor(), links.graph, edge_ratio=0.1, weight_ratio=0.1, settings=search.SearchSettings(**settings)
        )


def test_the_baselines_run_as_they_are(links: Found) -> None:
    training = TrainingSettings(epochs=2)
    assert len(baselines.dense(predictor(), links.graph, training).losses) == 2
    assert len(baselines.drop_edge(predictor(), links.graph, training, rate=0.2).losses) == 2
    drawn = baselines.random_ticket(predictor(), links.graph, edge_ratio=0.2, weight_ratio=0.6, seed=1)
    other = baselines.random_edges(links.ticket, links.graph, seed=1)
    for ticket in (drawn, other):
        assert ticket.edge_mask.kept == links.ticket.edge_mask.kept
        retrain.run(ticket, predictor(), links.graph, retrain.RetrainSettings(training))
    assert not torch.equal(other.edge_mask[EDGES], links.ticket.edge_mask[EDGES])


def test_ugs_and_imp_prune_and_train(links: Found) -> None:
    training = TrainingSettings(epochs=2)
    settings = ugs.UgsSettings(edge_l1=1e-4, weight_l1=1e-4, masked=training, fixed=training)
    (found,) = ugs.run(predictor(), links.graph, rounds=1, settings=settings)
    assert found.ticket.weight_sparsity == pytest.approx(0.2, abs=1e-3)
    levels = imp.LotterySettings(1, training=training)
    last = imp.run(predictor(), links.graph, edge_ratio=0.2, weight_ratio=0.6, settings=levels)[-1]
    assert last.ticket.edge_sparsity == pytest.approx(0.2, abs=1e-3)


def test_wd_glts_term_on_classes_is_refused(links: Found) -> None:
    with pytest.raises(ValueError, match=r"link prediction \(got 'extra_loss'\)"):
        ugs.run(predictor(), links.graph, rounds=1, settings=ugs.WD_GLT)
