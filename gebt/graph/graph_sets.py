"""Many small graphs as one, for graph classification."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from gebt.graph.graph import Graph


@dataclass(frozen=True, eq=False)
class GraphClassificationFold(Graph):
    """G graphs of N nodes in all, as parts of one graph without a pair between them; labels and masks are of graphs.

    `labels`, `train_mask`, `val_mask`, `test_mask` are [G]; pairs and features as in `Graph`.

    Attributes:
        graph_of: the graph of each node, rising, [N] int64.
    """

    graph_of: Tensor = field(kw_only=True)

    @property
    def num_graphs(self) -> int:
        """G."""
        return self.labels.numel()

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.graph_of.numel()

    @cached_property
    def graph_of_pair(self) -> Tensor:
        """The graph of each pair, [P]."""
        return self.graph_of[self.pairs[0]]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what `Graph.fingerprint` covers, and of which node is in which graph."""
        digest = hashlib.sha256(super().fingerprint.encode())
        digest.update(self.graph_of.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> GraphClassificationFold:
        """The same graphs on another device.

        Args:
            device: where to.

        Returns:
            The graphs.
        """
        return replace(super().to(device), graph_of=self.graph_of.to(device))  # type: ignore[return-value, call-arg]

    def part(self, chosen: Tensor) -> GraphClassificationFold:
        """Some of the graphs alone, renumbered in their order.

        Args:
            chosen: which graphs, [G] bool.

        Returns:
            The graphs.
        """
        nodes = chosen[self.graph_of]
        number, place = nodes.cumsum(0) - 1, chosen.cumsum(0) - 1
        features = self.features_of(nodes.nonzero().squeeze(1))
        split = {name: getattr(self, name)[chosen] for name in ("labels", "train_mask", "val_mask", "test_mask")}
        pairs = number[self.pairs[:, chosen[self.graph_of_pair]]]
        return replace(self, pairs=pairs, features=features, graph_of=place[self.graph_of[nodes]], **split)
