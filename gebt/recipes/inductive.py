"""The search for an inductive ticket: its edges are pruned by a rule that holds on graphs never seen."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

from torch import Tensor, nn, optim

from gebt.graph.canonical import Graph
from gebt.graph.edges import Edges
from gebt.graph.rules import EdgeRule
from gebt.graph.sets import FoldOfGraphs
from gebt.prune.mask import Mask
from gebt.recipes.search import DrawObserver, _Search
from gebt.ticket import EDGES, Ticket
from gebt.train.graphs import GraphsTask
from gebt.train.loop import Gates, History, NodeTask, copy_state
from gebt.train.search_settings import SearchSettings


def joint(
    model: nn.Module,
    graph: Graph,
    *,
    edge_ratio: float,
    weight_ratio: float,
    feature_ratio: float | None = None,
    settings: SearchSettings,
    seed: int = 0,
    on_draw: DrawObserver | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """GEBT's joint search (`search.joint`) with edge values a_uv = 2 sigmoid(s_uv) of an `EdgeRule`.

    Each step trains the weights and the rule from one loss; each epoch draws the weight mask and, of every training
    graph, the edge mask of highest s, and the detector watches both. Of a set of graphs nothing that is held out is
    read. The ticket carries the rule, and its edge mask is what the rule says of all of `graph`. The rule learns at
    `settings.edge_learning_rate`. Raises `ValueError` as `search.joint`, for another edge score than "rule", for edge
    values other than "unit", and for a `spread` where labels are of graphs.
    """
    ratios = (edge_ratio, weight_ratio, feature_ratio)
    return _RuleSearch(model, graph, ratios, settings, seed).run(on_draw, on_epoch)


def rule_gates(rule: EdgeRule) -> Callable[[NodeTask], Tensor]:
    """What the soft edge values of a step are by the rule (`train.loop.fit`)."""

    def of(task: NodeTask) -> Tensor:
        graph, edges = seen(task)
        return rule.values(graph.features, edges)

    return of


def seen(task: NodeTask) -> tuple[Graph, Edges]:
    """What a network in training sees: the training graphs of a set, else the whole graph."""
    return task.seen if isinstance(task, GraphsTask) else (task.graph, task.edges)


class _RuleSearch(_Search):
    """A search whose edge values are those of a rule."""

    by_rule = True

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        ratios: tuple[float, float, float | None],
        settings: SearchSettings,
        seed: int,
    ) -> None:
        if settings.edge_values != "unit":
            raise ValueError(f"edge values (got {settings.edge_values!r}), expected 'unit' with edge score 'rule'")
        if settings.spread and isinstance(graph, FoldOfGraphs):
            raise ValueError(f"spread (got {settings.spread}), expected 0: graphs of a set have no neighbours")
        super().__init__(model, graph, ratios, settings, seed)
        self.rule = EdgeRule(graph.num_features, seed).to(graph.pairs.device)
        self.best_rule = copy_state(self.rule)
        self.trained = seen(self.task)[0]

    def gates(self) -> Gates:
        """Those of the rule, found anew for every step."""
        return rule_gates(self.rule)

    def draw(self) -> tuple[Mask, Mask]:
        """The weight mask as ever, and the edge mask of the training graphs."""
        kept = self.rule.mask(self.trained, self.ratios["edge_ratio"], self.seed)
        return self.draw_weights(), Mask({EDGES: kept})

    def restore(self, history: History) -> None:
        """Puts back the rule of the best epoch."""
        self.rule.load_state_dict(self.best_rule)

    def ticket(self, history: History) -> Ticket:
        """The ticket of the last draw, its edge mask over the whole graph."""
        weight_mask, _ = self.drawn
        self.drawn = weight_mask, Mask({EDGES: self.rule.mask(self.graph, self.ratios["edge_ratio"], self.seed)})
        return dataclasses.replace(super().ticket(history), rule=copy.deepcopy(self.rule))

    def run(self, on_draw: DrawObserver | None, on_epoch: Callable[[int, History], bool] | None) -> Ticket:
        def noted(epoch: int, history: History) -> bool:
            if history.best_epoch == epoch:
                self.best_rule = copy_state(self.rule)
            return on_epoch is not None and on_epoch(epoch, history)

        return super().run(on_draw, noted)

    def _optimizers(self) -> list[optim.Optimizer]:
        return [
            *super()._optimizers(),
            optim.Adam(
                self.rule.parameters(),
                lr=self.settings.edge_learning_rate,
                fused=True,
                capturable=self.graph.pairs.device.type == "cuda",
            ),
        ]
