"""The predictor of links: against a dense oracle, in chunks as at once, compacted as masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gebt.graph import Edges, Graph
from gebt.models import GCN, LinkPredictor, ResGCN
from gebt.models import links as links_module
from gebt.models.compact import compact_model
from gebt.prune.mask import Mask
from gebt.prune.scores import magnitude, prunable_weights
from gebt.prune.selection import make_mask


def predictor(graph: Graph, seed: int = 0, **options: Any) -> LinkPredictor:
    return LinkPredictor(GCN(graph.num_features, 8, 6, dropout=0.0, seed=seed), 7, seed=seed, **options)


def test_scores_are_those_of_the_formula(toy: Graph) -> None:
    model, edges = predictor(toy, depth=3), Edges.from_pairs(toy.pairs, toy.num_nodes)
    pairs = torch.tensor([[0, 3, 5], [1, 0, 5]])
    h = model(toy.features, edges)
    x = h[pairs[0]] * h[pairs[1]]
    (w0, b0), (w1, b1), (w2, b2) = ((lin.weight, lin.bias) for lin in model.lins)
    expected = torch.relu(torch.relu(x @ w0.T + b0) @ w1.T + b1) @ w2.T + b2
    torch.testing.assert_close(model(toy.features, edges, None, None, pairs), expected[:, 0])
    # a pair has no direction
    torch.testing.assert_close(model.score(h, pairs.flip(0)), expected[:, 0])


def test_chunks_give_the_scores_and_gradients_of_all_pairs_at_once(toy: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    edges, pairs = Edges.from_pairs(toy.pairs, toy.num_nodes), torch.randint(12, (2, 50))
    found = []
    for chunk in (1 << 15, 7):
        monkeypatch.setattr(links_module, "CHUNK", chunk)
        model = predictor(toy)
        scores = model(toy.features, edges, None, None, pairs)
        scores.square().sum().backward()
        with torch.no_grad():
            torch.testing.assert_close(model(toy.features, edges, None, None, pairs), scores.detach())
        found.append([scores.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(found[0], found[1])


def test_a_chunk_scored_again_drops_the_same(toy: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of a sum is that of the very scores returned: finite differences of the bias see the same mask."""
    monkeypatch.setattr(links_module, "CHUNK", 7)
    model = predictor(toy, dropout=0.5).double().train()
    h, pairs = torch.rand(12, 6, dtype=torch.float64), torch.randint(12, (2, 50))
    torch.manual_seed(0)
    scores = model.score(h, pairs)
    (grad,) = torch.autograd.grad(scores.sum(), [model.lins[1].weight])
    # The last layer is linear: w . dsum/dw = sum - n b.
    with torch.no_grad():
        expected = scores.sum() - 50 * model.lins[1].bias
        torch.testing.assert_close((grad * model.lins[1].weight).sum(), expected[0])


def test_equal_seeds_give_equal_weights_and_all_matrices_are_prunable(toy: Graph) -> None:
    model, same, other = (predictor(toy, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    other.reset(1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    names = {"encoder.convs.0.lin.weight", "encoder.convs.1.lin.weight", "lins.0.weight", "lins.1.weight"}
    assert prunable_weights(model).keys() == names
    assert model.first is model.encoder.convs[0]


@pytest.mark.parametrize("kind", [GCN, ResGCN])
def test_the_compacted_network_scores_as_the_masked_one(sparse: Graph, kind: type[GCN] | type[ResGCN]) -> None:
    model = LinkPredictor(kind(sparse.num_features, 8, 8, 2, 0.0), 8).eval()
    mask = make_mask(magnitude(prunable_weights(model)), ratio=0.8, scope="layer")
    first = next(name for name in mask if name.startswith("encoder."))
    mask = Mask({**mask, first: mask[first] & (torch.arange(sparse.num_features) < 20)})
    mask.apply_(dict(model.named_parameters()))
    small = compact_model(model, mask, sparse)
    assert small.graph.num_features <= 20
    edges, pairs = Edges.from_pairs(sparse.pairs, sparse.num_nodes), torch.randint(60, (2, 30))
    expected = model(sparse.features, edges, None, None, pairs)
    torch.testing.assert_close(small.model(small.graph.features, edges, None, None, pairs), expected)
    again = LinkPredictor(kind(sparse.num_features, 8, 8, 2, 0.0, 5), 8, seed=5).eval()
    mask.apply_(dict(again.named_parameters()))
    small.restore(again)
    torch.testing.assert_close(again(sparse.features, edges, None, None, pairs), expected)


@pytest.mark.parametrize(("hidden", "depth", "dropout"), [(0, 2, 0.0), (4, 0, 0.0), (4, 2, 1.0)])
def test_sizes_that_cannot_be_are_refused(toy: Graph, hidden: int, depth: int, dropout: float) -> None:
    with pytest.raises(ValueError, match=r"predictor \(got hidden, depth, dropout = "):
        LinkPredictor(GCN(toy.num_features, 8, 6), hidden, depth, dropout=dropout)
