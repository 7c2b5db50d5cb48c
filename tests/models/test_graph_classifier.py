"""The classifier of graphs: sums as in a loop, and nothing that depends on the order of graphs or nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gebt.graph import Edges
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.models.gnn import GIN
from gebt.models.graph_classifier import GraphClassifier, SumReadout
from gebt.prune.scores import prunable_weights


@pytest.fixture
def model() -> GraphClassifier:
    return GraphClassifier(3, 6, 2, depth=4, seed=1).eval()


def logits(model: GraphClassifier, fold: GraphClassificationFold) -> Tensor:
    edges = Edges.from_pairs(fold.pairs, fold.num_nodes)
    with torch.no_grad():
        return model(fold.features, edges, graph_of=fold.graph_of, num_graphs=fold.num_graphs)


def test_sums_are_those_of_a_loop_over_graphs(fold: GraphClassificationFold) -> None:
    generator = torch.Generator().manual_seed(0)
    readout = SumReadout([4, 5], 3).eval()
    readout.reset(generator)
    for norm in readout.norms:
        norm.module.running_mean.uniform_(generator=generator)
    layers = [torch.rand(fold.num_nodes, width, generator=generator) for width in (4, 5)]
    found = readout(layers, fold.graph_of, fold.num_graphs, 0.5)
    for number in range(fold.num_graphs):
        nodes = fold.graph_of == number
        own = sum(
            norm(x[nodes].sum(0, keepdim=True)) @ lin.weight.t() + lin.bias
            for x, norm, lin in zip(layers, readout.norms, readout.lins, strict=True)
        )
        torch.testing.assert_close(found[number], own[0])


def test_a_graph_is_classified_alone_as_among_others(model: GraphClassifier, fold: GraphClassificationFold) -> None:
    found = logits(model, fold)
    for number in range(0, fold.num_graphs, 7):
        own = fold.part(torch.arange(fold.num_graphs) == number)
        torch.testing.assert_close(logits(model, own)[0], found[number])


def test_orders_of_graphs_and_of_nodes_in_them_change_nothing(
    model: GraphClassifier, fold: GraphClassificationFold
) -> None:
    generator = torch.Generator().manual_seed(2)
    graphs = torch.randperm(fold.num_graphs, generator=generator)
    shuffled = torch.randperm(fold.num_nodes, generator=generator)
    nodes = shuffled[graphs.argsort()[fold.graph_of[shuffled]].argsort(stable=True)]
    place = nodes.argsort()
    ends = place[fold.pairs].sort(0).values
    ends = ends[:, (ends[0] * fold.num_nodes + ends[1]).argsort()]
    other = replace(
        fold, pairs=ends, features=fold.features[nodes], graph_of=graphs.argsort()[fold.graph_of[nodes]],
        **{name: getattr(fold, name)[graphs] for name in ("labels", "train_mask", "val_mask", "test_mask")},
    )  # fmt: skip
    assert bool((other.graph_of.diff() >= 0).all())
    torch.testing.assert_close(logits(model, other), logits(model, fold)[graphs])


def test_seeds_and_what_can_be_pruned(model: GraphClassifier) -> None:
    same, other = GraphClassifier(3, 6, 2, depth=4, seed=1), GraphClassifier(3, 6, 2, depth=4, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), model.state_dict().values(), strict=True))
    assert not torch.equal(same.first.nn.lins[0].weight, other.first.nn.lins[0].weight)
    convs = [f"convs.{i}.nn.lins.{j}.weight" for i in range(3) for j in range(2)]
    assert list(prunable_weights(model)) == [*convs, *(f"convs.3.lins.{i}.weight" for i in range(3))]
    convolution = GIN(3, 6, 6, depth=2, seed=1)
    assert same.convs[0].state_dict().keys() == convolution.convs[0].state_dict().keys()


def test_fewer_features_make_a_network_of_the_kind(model: GraphClassifier) -> None:
    assert model.resized({"features": 2}).widths == [2, 6, 6, 6, 2]


def test_what_no_classifier_can_be_is_refused(model: GraphClassifier, fold: GraphClassificationFold) -> None:
    with pytest.raises(ValueError, match=r"depth, residual of a graph classifier \(got \(1, False\)\)"):
        GraphClassifier(3, 6, 2, depth=1)
    with pytest.raises(ValueError, match=r"graph_of \(got None\), expected the graph of each node"):
        model(fold.features, Edges.from_pairs(fold.pairs, fold.num_nodes))
