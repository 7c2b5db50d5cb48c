"""An edge rule in training: what its own mask leaves of the edges that a network sees, and the rule at its best."""

from __future__ import annotations

from torch import Tensor, optim

from gebt.graph.edge_scorer import EdgeScorer, keep_of_each_graph
from gebt.graph.edges import Edges
from gebt.graph.graph import Graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.prune.tie_breaking import TieBreaker
from gebt.train.graphs import GraphsTask
from gebt.train.loop import NodeTask, copy_state
from gebt.train.optimizers import adam_of
from gebt.train.search_settings import SearchSettings


class TrainedEdgeScorer:
    """The `EdgeScorer` of one search: of a set of graphs it sees the training graphs alone, else the whole graph.

    `ratio`: the share of edges that it prunes.
    """

    def __init__(self, task: NodeTask, ratio: float, seed: int) -> None:
        self.graph, self.ratio, self.seed = _seen(task)[0], ratio, seed
        self.edge_scorer = EdgeScorer(self.graph.num_features, seed).to(self.graph.pairs.device)
        self._best = copy_state(self.edge_scorer)

    def gates(self, task: NodeTask) -> Tensor:
        """The edge values [P] of what a network in training sees in this task: 0 where the rule prunes now, else 1.

        Their gradient is that of the soft values v = 2 sigmoid(s): m + v - stop(v), straight through the mask m
        (Bengio et al. 2013), so that the network learns to do without what is pruned.
        """
        graph, edges = _seen(task)
        soft = self.edge_scorer.values(graph.features, edges)
        kept = keep_of_each_graph(graph, soft.detach(), self.ratio, TieBreaker(self.seed))
        return kept.to(soft) + (soft - soft.detach())

    def mask(self, graph: Graph | None = None) -> Tensor:
        """The pairs of `graph`, or of what it is trained on, that stay, [P] bool."""
        return self.edge_scorer.mask(graph or self.graph, self.ratio, self.seed)

    def note_best(self) -> None:
        """Keeps a copy of the rule as it is."""
        self._best = copy_state(self.edge_scorer)

    def restore(self) -> None:
        """Goes back to that copy."""
        self.edge_scorer.load_state_dict(self._best)

    def optimizer(self, learning_rate: float) -> optim.Optimizer:
        """Adam for the rule."""
        return adam_of(self.edge_scorer.parameters(), learning_rate)


def check_edge_score(settings: SearchSettings, graph: Graph) -> None:
    """Raises `ValueError` for settings that score edges in a way that this kind of graph has not."""
    if not isinstance(graph, GraphClassificationFold):
        return
    if settings.edge_score != "learned":
        got = settings.edge_score
        raise ValueError(
            f"edge score (got {got!r}), expected 'learned' for a set of graphs: some of them are never seen"
        )
    if settings.label_propagation:
        raise ValueError(f"spread (got {settings.label_propagation}), expected 0: graphs of a set have no neighbors")


def _seen(task: NodeTask) -> tuple[Graph, Edges]:
    return task.seen if isinstance(task, GraphsTask) else (task.graph, task.edges)
