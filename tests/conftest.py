"""Small graphs that more than one room needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import settings

from gebt.data import load_graph
from gebt.graph import Graph, canonical_graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.sparse import SparseMatrix

# Same examples at every run, and no clock: a busy machine is no failure.
settings.register_profile("gebt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("gebt")


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., Graph]:
    """A random undirected graph of 3 classes; the last node is isolated."""

    def make(nodes: int = 12, features: int = 5, seed: int = 0, name: str = "toy", share: float = 1.0) -> Graph:
        generator = torch.Generator().manual_seed(seed)
        linked = torch.rand(nodes - 1, nodes - 1, generator=generator) < 0.4
        edge_index = (linked | linked.t()).nonzero().t()
        values = torch.rand(nodes, features, generator=generator)
        values *= torch.rand(nodes, features, generator=generator) < share
        part = torch.arange(nodes) % 3
        return canonical_graph(
            name, edge_index, values, torch.arange(nodes) // 2 % 3, (part == 0, part == 1, part == 2)
        )

    return make


@pytest.fixture(scope="session")
def toy(make_graph: Callable[..., Graph]) -> Graph:
    return make_graph()


@pytest.fixture(scope="session")
def sparse(make_graph: Callable[..., Graph]) -> Graph:
    """A graph whose features are sparse."""
    graph = make_graph(nodes=60, features=40, share=0.1, name="sparse")
    assert isinstance(graph.features, SparseMatrix)
    return graph


@pytest.fixture
def sparse64(sparse: Graph) -> Iterator[Graph]:
    """The same in double precision, and everything that is made beside it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield replace(sparse, features=SparseMatrix(sparse.features.pattern, sparse.features.values.double()))
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def digits() -> Graph:
    return load_graph("digits")


@pytest.fixture(scope="session")
def make_fold() -> Callable[..., GraphClassificationFold]:
    """Random graphs of 4 to 9 nodes, two classes in turn, real features; every fifth validates, every sixth tests."""

    def make(graphs: int = 30, features: int = 3, seed: int = 0) -> GraphClassificationFold:
        generator = torch.Generator().manual_seed(seed)
        sizes = [4 + number % 6 for number in range(graphs)]
        graph_of = torch.arange(graphs).repeat_interleave(torch.tensor(sizes))
        nodes = len(graph_of)
        linked = (torch.rand(nodes, nodes, generator=generator) < 0.7) & (graph_of[:, None] == graph_of)
        pairs = linked.triu(1).nonzero().t()
        number = torch.arange(graphs)
        val, test = number % 5 == 0, (number % 6 == 0) & (number % 5 > 0)
        return GraphClassificationFold(
            "fold", pairs, torch.rand(nodes, features, generator=generator), number % 2, ~(val | test), val, test, 2,
            graph_of=graph_of,
        )  # fmt: skip

    return make


@pytest.fixture(scope="session")
def fold(make_fold: Callable[..., GraphClassificationFold]) -> GraphClassificationFold:
    return make_fold()
