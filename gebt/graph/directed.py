"""A graph whose two directions have values of their own, normalized as the released UGS code does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gebt.sparse.ops import spmm
from gebt.sparse.pattern import Pattern


@dataclass(frozen=True, eq=False)
class DirectedEdges:
    """What a GCN needs of edges, for entries (r, c) of an adjacency A that need not be symmetric; to compare with.

    `ends` [2, E]: r and c of every entry, without self-loops. The release multiplies with (A D)^T D, D the inverse
    roots of the row sums of A + I: messages run against the entries' direction once A is no longer symmetric.
    """

    ends: Tensor
    pattern: Pattern
    order: Tensor

    @staticmethod
    def from_entries(ends: Tensor, num_nodes: int) -> DirectedEdges:
        """Builds the pattern of D A^T D, self-loops included. Raises `ValueError` as `Pattern.from_entries`."""
        loops = torch.arange(num_nodes, device=ends.device)
        row, col = torch.cat((ends[1], loops)), torch.cat((ends[0], loops))
        return DirectedEdges(ends, *Pattern.from_entries(row, col, (num_nodes, num_nodes)))

    @property
    def num_pairs(self) -> int:
        """E, as many as there are values."""
        return self.ends.shape[1]

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.pattern.shape[0]

    @cached_property
    def unit_weights(self) -> Tensor:
        """`normalized` of a value of 1 for every entry, computed once."""
        return self.normalized(torch.ones(self.num_pairs, device=self.ends.device))

    def normalized(self, values: Tensor) -> Tensor:
        """Entries [E + N] of D (A + I)^T D for values [E] of A, differentiable; D = (row sums of A + I)^-1/2."""
        row, col = self.ends
        scale = values.new_ones(self.num_nodes).index_add(0, row, values).rsqrt()
        return torch.cat((values * scale[row] * scale[col], scale.square()))[self.order]

    def propagate(self, weights: Tensor, x: Tensor) -> Tensor:
        """y = W x for entry weights [E + N] and x [N, d]."""
        return spmm(self.pattern, weights, x)
