"""Graphs whose links are to be predicted: some pairs held out, which carry no message."""

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
    """A graph of which some links are to be found: `pairs` are the training edges alone, in canonical form.

    Messages pass over `pairs`, and `pairs` are what is pruned. `val_edges`, `test_edges` [2, n] int64 are held out: no
    network sees them. `val_negatives`, `test_negatives` [2, m]: pairs that they are ranked against, the same always.
    `metric`: "hits@50" and the like (`gebt.graph.metrics.LinkMetric`). Labels and masks of nodes are not read.
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
            found = getattr(self, part)
            if found.dim() != 2 or found.shape[0] != 2 or found.dtype != torch.int64 or not found.numel():
                got = f"{tuple(found.shape)} {found.dtype}"
                raise GraphError(f"{part} of {self.name!r} (got {got}), expected int64 of shape (2, n >= 1)")
            if not 0 <= int(found.min()) <= int(found.max()) < self.num_nodes:
                bad = int(found.min()) if int(found.min()) < 0 else int(found.max())
                raise GraphError(f"{part} of {self.name!r} (got node {bad}), expected 0 to {self.num_nodes - 1}")

    @property
    def eval_pairs(self) -> Tensor:
        """Validation edges, validation negatives, test edges, test negatives, one after the other, [2, H]."""
        return torch.cat([getattr(self, part) for part in HELD], 1)

    @cached_property
    def fingerprint(self) -> str:
        """That of the graph, and of the pairs held out: a ticket of another split does not fit."""
        digest = hashlib.sha256(super().fingerprint.encode())
        for part in HELD:
            digest.update(f"{part}{tuple(getattr(self, part).shape)}".encode())
            digest.update(getattr(self, part).contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> LinkGraph:
        """The same graph on another device."""
        return replace(super().to(device), **{part: getattr(self, part).to(device) for part in HELD})  # type: ignore[return-value, arg-type, unused-ignore]


def hold_out_links(
    graph: Graph,
    shares: tuple[float, float, float] = (0.85, 0.05, 0.10),
    seed: int = 0,
    *,
    negatives: int | None = None,
    metric: LinkMetric = "hits@50",
) -> LinkGraph:
    """The link task of any graph: floor(share P) of its P pairs for validation, as many for test, the rest to train on.

    `shares`: train, validation, test, of sum 1. Either held-out part is ranked against `negatives` pairs without an
    edge in the whole graph, no two of them equal: as many as there are test edges (None), and at most half of all that
    there are. Hits@K means another number for another count: 100,000 is that of ogbl-collab, with its 46,329 test
    edges. The draw is `seed`'s.
    Raises `GraphError` for shares of another sum or outside (0, 1), a graph that leaves a part empty, no negatives.
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
    own: dict[str, Any] = {entry.name: getattr(graph, entry.name) for entry in fields(Graph)}
    own |= {"pairs": parts[2], "metric": metric, "notes": (*graph.notes, f"{val} + {test} pairs held out")}
    val_negatives, test_negatives = drawn.chunk(2, 1)
    held: dict[str, Any] = {"val_edges": parts[0], "test_edges": parts[1]}
    return LinkGraph(**own, **held, val_negatives=val_negatives, test_negatives=test_negatives)


def _without_edge(graph: Graph, count: int, generator: torch.Generator) -> Tensor:
    """2 `count` different pairs without an edge (or all there are, without one where odd), in random order."""
    nodes = graph.num_nodes
    taken = (graph.pairs[0] * nodes + graph.pairs[1]).cpu()
    there_are = nodes * (nodes - 1) // 2 - taken.numel()
    wanted = 2 * min(count, there_are // 2)
    if not wanted:
        raise GraphError(f"graph {graph.name!r} (got {there_are} pairs without an edge), expected two at least")
    found = taken.new_zeros(0)
    while found.numel() < wanted:
        ends = torch.randint(nodes, (2, 2 * wanted), generator=generator)
        keys = torch.minimum(*ends) * nodes + torch.maximum(*ends)
        keys = torch.unique(torch.cat((found, keys[ends[0] != ends[1]])))
        found = keys[~torch.isin(keys, taken)]
    chosen = found[torch.randperm(found.numel(), generator=generator)[:wanted]]
    return torch.stack((chosen // nodes, chosen % nodes))
