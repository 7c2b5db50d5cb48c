from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from gebt.graph.edges import Edges


@pytest.fixture
def cut_share() -> Callable[[Edges, Tensor], float]:
    """The share of the pairs of a graph whose nodes are in two parts [N]."""

    def share(edges: Edges, parts: Tensor) -> float:
        u, v = parts[edges.pairs.to(parts.device)]
        return float((u != v).float().mean())

    return share
