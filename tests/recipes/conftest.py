"""One search on the digits that the tests of all recipes read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from gebt.graph import Graph
from gebt.models import GCN
from gebt.recipes import search
from gebt.ticket import Ticket
from gebt.train.loop import copy_state

EDGE_RATIO, WEIGHT_RATIO = 0.37, 0.61


@dataclass(frozen=True)
class Found:
    """A ticket, the model as the search left it and as it was before."""

    ticket: Ticket
    model: GCN
    before: dict


@pytest.fixture(scope="session")
def make_model(digits: Graph) -> Callable[..., GCN]:
    return lambda seed=0: GCN(digits.num_features, 16, digits.num_classes, seed=seed)


@pytest.fixture(scope="session")
def found(digits: Graph, make_model: Callable[..., GCN]) -> Found:
    model = make_model()
    before = copy_state(model)
    settings = search.SearchSettings(max_epochs=6, threshold=1e-9)
    ticket = search.joint(model, digits, edge_ratio=EDGE_RATIO, weight_ratio=WEIGHT_RATIO, settings=settings, seed=3)
    return Found(ticket, model, before)
