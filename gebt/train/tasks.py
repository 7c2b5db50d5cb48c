"""Which task a graph poses: what is learnt on it, and how well."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from gebt.graph.edges import Edges
from gebt.graph.graph import Graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.graph.links import LinkGraph
from gebt.train.graphs import GraphsTask
from gebt.train.links import LinkTask
from gebt.train.loop import NodeTask, SoftLabels


def task_for(
    graph: Graph,
    edges: Edges | None = None,
    *,
    keep_aggregated: bool = True,
    soft: SoftLabels | None = None,
    extra_loss: Callable[[Tensor], Tensor] | None = None,
) -> NodeTask:
    """The task of this kind of graph, seen through the given edges (the graph's own, or a ticket's); see `NodeTask`.

    `LinkTask` where links are to be found, `GraphsTask` where whole graphs are to be told apart.
    """
    if isinstance(graph, LinkGraph):
        return LinkTask(graph, edges, keep_aggregated=keep_aggregated, soft=soft, extra_loss=extra_loss)
    if isinstance(graph, GraphClassificationFold):
        return GraphsTask(graph, edges, soft=soft, extra_loss=extra_loss)
    return NodeTask(graph, edges, keep_aggregated=keep_aggregated, soft=soft, extra_loss=extra_loss)
