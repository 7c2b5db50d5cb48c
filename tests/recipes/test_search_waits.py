"""How often an epoch of a search waits for a CUDA device: for its losses, and for what its draw comes to."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import Any

import pytest

from gebt.models import GCN
from gebt.recipes.search import joint, search_preset
from gebt.train.loop import History
from tests.pretend_cuda import pretend_cuda

SCORES = [{"edge_score": score} for score in ("magnitude", "similarity", "reliance", "reliance+magnitude")]
STRUCTURES = [{"weight_structure": structure} for structure in ("unit", "feature", "joint", "2:4")]
SPREAD = {"edge_score": "reliance", "label_propagation": 0.5}
OPTIONS = [{}, {"scope": "layer"}, SPREAD, *SCORES, *STRUCTURES]


@pytest.mark.parametrize(
    ("preset", "options"), [("paper", {}), *(("early-bird", options) for options in OPTIONS)], ids=str
)
def test_an_epoch_waits_for_its_losses_and_for_its_draw(preset: str, options: dict[str, Any], make_graph: Any) -> None:
    settings = dataclasses.replace(search_preset(preset), max_epochs=8, threshold=1e-9, **options)
    graph, waits = make_graph(nodes=30), []
    with pretend_cuda() as device:

        def after_epoch(epoch: int, history: History) -> bool:
            waits.append(collections.Counter(device.waits))
            return False

        model = GCN(graph.num_features, 4, graph.num_classes, seed=0).to("cuda")
        joint(model, graph.to("cuda"), edge_ratio=0.3, weight_ratio=0.5, settings=settings, on_epoch=after_epoch)
    for before, after in itertools.pairwise(waits[1:]):
        assert collections.Counter(operation for operation, _ in (after - before).elements()) == {"tolist": 2}
