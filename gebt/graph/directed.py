"""A graph whose two directions have values of their own, normalized as the released UGS code does."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gebt.sparse.ops import mixed_spmm
from gebt.sparse.pattern import Pattern


@dataclass(frozen=True, eq=False)
class DirectedEdges:
    """What a GCN needs of edges, for entries (r, c) of an adjacency A that need not be symmetric; a baseline.

    The release multiplies with (A D)^T D, D the inverse roots of the row sums of A + I: messages run against the
    entries' direction once A is no longer symmetric.

    Attributes:
        ends: r and c of every entry, without self-loops, [2, E].
        pattern: CSR pattern of D A^T D with self-loops, E + N entries.
        order: for each entry of the pattern, its position in the entries followed by the self-loops, [E + N].
    """

    ends: Tensor
    pattern: Pattern
    order: Tensor

    @staticmethod
    def from_entries(ends: Tensor, num_nodes: int) -> DirectedEdges:
        """Builds the pattern of D A^T D, self-loops included.

        Args:
            ends: r and c of every entry, [2, E].
            num_nodes: N.

        Returns:
            The edges.

        Raises:
            ValueError: as `Pattern.from_entries`.
        """
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
        """Entries of D (A + I)^T D with D = (row sums of A + I)^-1/2, differentiable.

        Args:
            values: of the entries of A, [E].

        Returns:
            [E + N].
        """
        row, col = self.ends
        scale = values.new_ones(self.num_nodes).index_add(0, row, values).rsqrt()
        return torch.cat((values * scale[row] * scale[col], scale.square()))[self.order]

    def propagate(self, weights: Tensor, x: Tensor) -> Tensor:
        """y = W x.

        Args:
            weights: of the entries, [E + N].
            x: [N, d].

        Returns:
            [N, d].
        """
        return mixed_spmm(self.pattern, weights, x)
