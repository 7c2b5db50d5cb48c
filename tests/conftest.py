"""Small graphs that more than one room needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

from gebt.data import load_graph
from gebt.graph import Graph, canonical_graph

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
def digits() -> Graph:
    return load_graph("digits")
