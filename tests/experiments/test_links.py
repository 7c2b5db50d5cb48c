"""Runs of link prediction: options, graphs and networks of a seed, the record and its table; ogbl-collab's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.data import check_dataset, load_graph, read_ogb, write_ogb
from gebt.data.readers import ogb as ogb_module
from gebt.data.readers.ogb import OGB, OgbGraph, OgbSet
from gebt.data.readers.ogb_graphs import ogb_links
from gebt.experiments import compare, report
from gebt.experiments.bench.measure import bench
from gebt.experiments.options import RunOptions
from gebt.experiments.record import RunFolder
from gebt.experiments.setup import find_ticket, graph_for, graphs_for, macs_for, model_for
from gebt.experiments.summary import VARIANTS
from gebt.graph import GraphError, LinkGraph
from gebt.measure.cost import macs_paper
from gebt.models import LinkPredictor
from gebt.prune.scores import prunable_weights
from gebt.recipes import baselines

FEW: dict[str, Any] = {"task": "links", "hidden": 8, "epochs": 3, "retrain_epochs": 3, "max_epochs": 4}
NODES = 20


def collab(**changes: Any) -> OgbGraph:
    """A small set in the layout of ogbl-collab: three years of one collaboration, written in both orders."""
    generator = torch.Generator().manual_seed(0)
    info = replace(OGB["ogbl-collab"], nodes=0, edges=0, features=3)
    drawn = torch.stack([torch.randperm(NODES, generator=generator)[:2] for _ in range(60)])
    train = torch.cat((drawn[:30], drawn[:10], drawn[:5].flip(1)))
    ones = torch.ones(len(train), 1, dtype=torch.long)
    links = {"train": {"edge": train, "weight": ones[:, 0], "year": 2000 + ones[:, 0]}}
    for part, edges in (("valid", drawn[30:40]), ("test", drawn[40:55])):
        links[part] = {"edge": edges, "edge_neg": torch.randint(NODES, (50, 2), generator=generator)}
    features = torch.rand(NODES, 3, generator=generator)
    edge = {"edge_weight": ones, "edge_year": 2000 + ones}
    return OgbGraph(info, train.t().contiguous(), NODES, features, edge=edge, links=links, **changes)


def test_ogbs_link_set_keeps_its_parts_and_merges_the_years(tmp_path: Path) -> None:
    given = collab()
    write_ogb(tmp_path / "set", given)
    graph = ogb_links(read_ogb(tmp_path / "set", given.info))
    train = given.links["train"]["edge"].sort(1).values.unique(dim=0)
    assert torch.equal(graph.pairs, train.t())
    assert graph.metric == "hits@50"
    for part, ours in (("valid", "val"), ("test", "test")):
        assert torch.equal(getattr(graph, f"{ours}_edges"), given.links[part]["edge"].t())
        assert torch.equal(getattr(graph, f"{ours}_negatives"), given.links[part]["edge_neg"].t())
    assert any("repeated entries merged" in note for note in graph.notes)


def test_a_set_that_is_none_of_links_is_refused() -> None:
    given = collab()
    with pytest.raises(GraphError, match=r"set 'ogbl-collab' \(got no features\), expected both"):
        ogb_links(replace(given, features=None))
    with pytest.raises(GraphError, match=r"got no edges and negatives of valid and test"):
        ogb_links(replace(given, links={"train": given.links["train"]}))


@pytest.fixture
def collab_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a small folder in the place of ogbl-collab's; its published counts are not asked for."""
    given = collab()
    write_ogb(tmp_path / "ogbl_collab", given)
    sets: dict[str, OgbSet] = {**OGB, "ogbl-collab": given.info}
    monkeypatch.setattr(ogb_module, "OGB", sets)
    return tmp_path


def test_the_name_of_ogbs_set_is_a_run_of_links(collab_root: Path) -> None:
    options = RunOptions(dataset="ogbl-collab", data_root=collab_root, model="resgcn7").resolved()
    assert (options.task, options.hidden, options.depth) == ("links", 128, 7)
    first, second = graphs_for(options, (0, 1))
    assert isinstance(first, LinkGraph)
    assert first is second
    assert {status for _, status in check_dataset("ogbl-collab", collab_root)} == {"present"}


def test_a_folder_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    assert {status for _, status in check_dataset("ogbl-collab", tmp_path)} == {"missing"}
    with pytest.raises(GraphError, match=r"ogbl.collab.* https://\S+collab.zip"):
        load_graph("ogbl-collab", tmp_path, download=False)


def test_a_set_without_classes_poses_no_task_of_nodes() -> None:
    with pytest.raises(ValueError, match=r"--task \(got 'nodes'\), expected one of \('links',\) for 'ogbl-collab'"):
        RunOptions(dataset="ogbl-collab", task="nodes").resolved()


def test_the_task_is_the_data_sets_unless_one_is_given() -> None:
    nodes, links = RunOptions().resolved(), RunOptions(task="links").resolved()
    assert (nodes.task, links.task) == ("nodes", "links")
    assert links.hidden == model_for(links, graph_for(links, 0), 0).widths[0]
    assert links.retraining().training.epochs == links.training().epochs
    assert RunOptions(task="links", learning_rate=0.5, depth=3).resolved().depth == 3


@pytest.mark.parametrize("method", ["sgcn", "teddy", "released", "wd-glt"])
def test_methods_on_classes_are_refused_for_links(method: Any) -> None:
    with pytest.raises(ValueError, match=rf"--method \(got '{method}'\), expected some of \('ugs', 'imp'"):
        RunOptions(task="links", method=("ugs", method)).resolved()


def test_each_seed_holds_other_links_out_unless_one_split_is_fixed() -> None:
    first, second = graphs_for(RunOptions(task="links").resolved(), (0, 1))
    assert first.fingerprint != second.fingerprint
    first, second = graphs_for(RunOptions(task="links", split_seed=3).resolved(), (0, 1))
    assert first is second


def test_macs_count_every_kept_weight_of_encoder_and_predictor_once_a_node() -> None:
    options = RunOptions(**FEW, model="gcn", depth=2).resolved()
    graph = graph_for(options, 0)
    model = model_for(options, graph, 0)
    assert isinstance(model, LinkPredictor)
    weights = 64 * 8 + 8 * 8 + 8 * 8 + 8
    assert sum(weight.numel() for weight in prunable_weights(model).values()) == weights
    expected = macs_paper(nodes=1797, pairs=graph.num_pairs, features=64, weights=weights, depth=2)
    assert macs_for(options, graph, None) == expected


def test_a_run_of_links_is_recorded_and_told_by_its_metric(tmp_path: Path) -> None:
    options = RunOptions(**FEW, weight_ratio=0.3, method=("gebt", "ugs", "imp", "one-shot", "dropedge")).resolved()
    record = compare.run(options, RunFolder(tmp_path / "run"))
    assert record["complete"]
    assert record["graph"]["metric"] == "hits@50"
    assert (record["graph"]["train"], record["graph"]["val"], record["graph"]["test"]) == (8441, 496, 992)
    assert report.table(record).splitlines()[2].startswith("test hits@50, %")
    for variant in (*VARIANTS, "ugs", "imp", "one-shot", "dropedge"):
        assert 0 <= record["summary"][variant]["accuracy"]["mean"] <= 1


def test_bench_says_that_it_measures_nodes_alone(tmp_path: Path) -> None:
    options = RunOptions(**FEW).resolved()
    graph = graph_for(options, 0)
    ticket = baselines.random_ticket(model_for(options, graph, 0), graph, edge_ratio=0.2, weight_ratio=0.3)
    with pytest.raises(ValueError, match=r"got 'digits', links to predict\), expected nodes of one graph"):
        bench(options, ticket.save(tmp_path / "ticket.safetensors"))


def test_a_preset_that_needs_classes_says_so() -> None:
    options = RunOptions(**FEW, preset="best").resolved()
    graph = graph_for(options, 0)
    with pytest.raises(
        ValueError, match=r"edge score, soft labels, label propagation, prediction EMA of a search for links"
    ):
        find_ticket(options, graph, model_for(options, graph, 0), 0)
