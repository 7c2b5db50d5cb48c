"""Graphs for link prediction: some pairs are held out and carry no message."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor

from gebt.graph.graph import Graph, GraphError
from gebt.graph.metrics import LinkMetric, Metric

HELD = ("val_edges", "val_negatives", "test_edges", "test_negatives")


@dataclass(frozen=True, eq=False)
class LinkGraph(Graph):
    """A graph for link prediction: `pairs` are the training edges alone, in canonical form.

    Messages pass over `pairs`, and `pairs` are what is pruned. Labels and masks of nodes are not read.

    Attributes:
        val_edges: held out, no network sees them, [2, n] int64.
        val_negatives: pairs without an edge that `val_edges` are ranked against, always the same, [2, m] int64.
        test_edges: held out, [2, n] int64.
        test_negatives: pairs without an edge that `test_edges` are ranked against, [2, m] int64.
        metric: "hits@50" and the like (`gebt.graph.metrics.LinkMetric`).
    """

    val_edges: Tensor = field(kw_only=True)
    val_negatives: Tensor = field(kw_only=True)
    test_edges: Tensor = field(kw_only=True)
    test_negatives: Tensor = field(kw_only=True)
    metric: Metric = "hits@50"

    def __post_init__(self) -> None:
        if self.metric not in get_args(LinkMetric):
            raise GraphError(f"metric of {self.name!r} (got {self.metric!r}), expected one of {get_args(LinkMetric)}")
        if not self.num_pairs:
            raise GraphError(f"graph {self.name!r} (got no training edge), expected at least one")
        for part in HELD:
            ends = getattr(self, part)
            if ends.dim() != 2 or ends.shape[0] != 2 or ends.dtype != torch.int64 or not ends.numel():
                got = f"{tuple(ends.shape)} {ends.dtype}"
                raise GraphError(f"{part} of {self.name!r} (got {got}), expected int64 of shape (2, n >= 1)")
            if not 0 <= int(ends.min()) <= int(ends.max()) < self.num_nodes:
                bad = int(ends.min()) if int(ends.min()) < 0 else int(ends.max())
                raise GraphError(f"{part} of {self.name!r} (got node {bad}), expected 0 to {self.num_nodes - 1}")

    @property
    def eval_pairs(self) -> Tensor:
        """Validation edges, validation negatives, test edges, test negatives, one after the other, [2, H]."""
        return torch.cat([getattr(self, part) for part in HELD], 1)

    @cached_property
    def fingerprint(self) -> str:
        """That of the graph and of the pairs held out: a ticket of another split does not fit."""
        digest = hashlib.sha256(super().fingerprint.encode())
        for part in HELD:
            digest.update(f"{part}{tuple(getattr(self, part).shape)}".encode())
            digest.update(getattr(self, part).contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> LinkGraph:
        """The same graph on another device.

        Args:
            device: where to.

        Returns:
            The graph.
        """
        return replace(super().to(device), **{part: getattr(self, part).to(device) for part in HELD})  # type: ignore[return-value, arg-type, unused-ignore]


def hold_out_links(
    graph: Graph,
    shares: tuple[float, float, float] = (0.85, 0.05, 0.10),
    seed: int = 0,
    *,
    negatives: int | None = None,
    metric: LinkMetric = "hits@50",
) -> LinkGraph:
    """Makes the link prediction task of any graph: holds out floor(share P) of its P pairs for validation and for test.

    Args:
        graph: the full graph.
        shares: train, validation, test, of sum 1.
        seed: of the draw.
        negatives: pairs without an edge in the full graph, no two equal, that either held-out part is ranked against:
            as many as test edges by default, and at most half of all there are. Hits@K depends on it: ogbl-collab has
            100,000, with 46,329 test edges.
        metric: of the task.

    Returns:
        The graph of the training pairs, with the held-out pairs.

    Raises:
        GraphError: for shares of another sum or outside (0, 1), a graph that leaves a part empty, no negatives.

    Example:
        >>> from gebt.graph.graph import canonical_graph
        >>> mask = torch.tensor([True, False, False, False, False])
        >>> ring = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
        >>> graph = canonical_graph(
        ...     "ring", ring, torch.eye(5), torch.tensor([0, 1, 0, 1, 0]), (mask, mask.roll(1), mask.roll(2)),
        ...     to_undirected=True,
        ... )
        >>> task = hold_out_links(graph, (0.6, 0.2, 0.2))
        >>> task.num_pairs, task.val_edges.shape[1], task.test_negatives.shape[1]
        (3, 1, 1)
    """
    if abs(sum(shares) - 1) > 1e-9 or not min(shares) > 0:
        raise GraphError(f"shares of train, validation, test (got {shares}), expected three above 0 of sum 1")
    if negatives is not None and negatives < 1:
        raise GraphError(f"negatives (got {negatives}), expected at least 1")
    generator, count, device = torch.Generator().manual_seed(seed), graph.num_pairs, graph.pairs.device
    # The smallest excess over a whole number is a rounding of the product, not a pair.
    val, test = (int(share * count + 1e-9) for share in shares[1:])
    if min(val, test, count - val - test) < 1:
        raise GraphError(f"graph {graph.name!r} (got {count} pairs), expected enough for shares of {shares}")
    order = torch.randperm(count, generator=generator).to(device)
    parts = [graph.pairs[:, part.sort().values] for part in order.split((val, test, count - val - test))]
    drawn = _without_edge(graph, negatives or test, generator).to(device)
    of_graph: dict[str, Any] = {entry.name: getattr(graph, entry.name) for entry in fields(Graph)}
    of_graph |= {"pairs": parts[2], "metric": metric, "notes": (*graph.notes, f"{val} + {test} pairs held out")}
    val_negatives, test_negatives = drawn.chunk(2, 1)
    held_out: dict[str, Any] = {"val_edges": parts[0], "test_edges": parts[1]}
    return LinkGraph(**of_graph, **held_out, val_negatives=val_negatives, test_negatives=test_negatives)


def _without_edge(graph: Graph, count: int, generator: torch.Generator) -> Tensor:
    """2 `count` different pairs without an edge (or all there are, without one where odd), in random order."""
    nodes = graph.num_nodes
    taken = (graph.pairs[0] * nodes + graph.pairs[1]).cpu()
    num_free = nodes * (nodes - 1) // 2 - taken.numel()
    wanted = 2 * min(count, num_free // 2)
    if not wanted:
        raise GraphError(f"graph {graph.name!r} (got {num_free} pairs without an edge), expected two at least")
    free = taken.new_zeros(0)
    while free.numel() < wanted:
        ends = torch.randint(nodes, (2, 2 * wanted), generator=generator)
        keys = torch.minimum(*ends) * nodes + torch.maximum(*ends)
        keys = torch.unique(torch.cat((free, keys[ends[0] != ends[1]])))
        free = keys[~torch.isin(keys, taken)]
    chosen = free[torch.randperm(free.numel(), generator=generator)[:wanted]]
    return torch.stack((chosen // nodes, chosen % nodes))
