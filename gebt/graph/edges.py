"""Edges of an undirected graph: one value a pair, self-loops that never go, symmetric normalization."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gebt.sparse.memory import check_room
from gebt.sparse.ops import spmm
from gebt.sparse.pattern import Pattern, index_dtype

# The name of the tensor of pairs in an edge mask.
EDGES = "edges"


@dataclass(frozen=True, eq=False)
class Edges:
    """The adjacency A + I of an undirected graph of N nodes and P pairs, as a CSR pattern of 2P + N entries.

    `pairs` [2, P]; `pattern` N x N, its own transpose; `source` [2P + N]: for each entry the pair it belongs to,
    or P + u for the self-loop of node u; `places` [2P + N]: the reverse, where the two entries of each pair stand, pair
    by pair, then each self-loop. One value a pair moves both directions, so no ticket is directed
    by accident, and a self-loop has no value, so none can be pruned. `fixed` [P]: values of the pairs that count where
    no others are given (a ticket that keeps its edge values); None: every pair counts 1.
    """

    pairs: Tensor
    pattern: Pattern
    source: Tensor
    places: Tensor
    fixed: Tensor | None = None

    @staticmethod
    def from_pairs(pairs: Tensor, num_nodes: int, fixed: Tensor | None = None) -> Edges:
        """Builds the pattern of `pairs` [2, P] (each undirected pair once, no self-loops).

        Linear in P but for one sort of the larger ends. Raises `ValueError` for a pair given twice, a self-loop or a
        node that is not there, and `OutOfRoomError` before more is allocated than is free.
        """
        count, device = pairs.shape[1], pairs.device
        dtype = index_dtype(2 * count + num_nodes)
        # Measured: 16 indices a pair are alive at the worst moment, and 5 of them in the end.
        needed = dtype.itemsize * (17 * count + 10 * num_nodes)
        check_room(f"adjacency of {num_nodes} nodes and {count} pairs", needed, device)
        low, high, ids = _sorted_pairs(pairs, num_nodes, dtype)
        below, above = (torch.bincount(end, minlength=num_nodes).to(dtype) for end in (high, low))
        crow = torch.zeros(num_nodes + 1, dtype=dtype, device=device)
        torch.cumsum(below + above + 1, 0, dtype=dtype, out=crow[1:])
        # A row is its smaller neighbors, then itself, then its larger ones; each run is in order already.
        loops = crow[:-1] + below
        numbers = torch.arange(count, dtype=dtype, device=device)
        upper = (loops + 1 - _starts(above))[low] + numbers
        by_high = torch.sort(high, stable=True).indices
        lower = torch.empty_like(upper)
        lower[by_high] = (crow[:-1] - _starts(below))[high[by_high]] + numbers
        del by_high
        col, source = (torch.empty(2 * count + num_nodes, dtype=dtype, device=device) for _ in "ab")
        nodes = torch.arange(num_nodes, dtype=dtype, device=device)
        for place, target, number in ((upper, high, ids), (lower, low, ids), (loops, nodes, nodes + count)):
            col[place], source[place] = target, number
        own = torch.stack((upper, lower), 1)
        own = torch.empty_like(own).index_copy_(0, ids.long(), own)
        pattern = Pattern(crow, col, (num_nodes, num_nodes)).mirrored()
        return Edges(pairs, pattern, source, torch.cat((own.flatten(), loops)), fixed)

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.pattern.shape[0]

    @property
    def num_pairs(self) -> int:
        """P."""
        return self.pairs.shape[1]

    def to(self, device: torch.device | str) -> Edges:
        """The same edges on another device."""
        fixed = None if self.fixed is None else self.fixed.to(device)
        return Edges.from_pairs(self.pairs.to(device), self.num_nodes, fixed)

    @cached_property
    def unit_weights(self) -> Tensor:
        """`normalized` of the fixed values, or of 1 for every pair, computed once."""
        # Kept for good, so also under inference mode it must be a tensor that training can read.
        with torch.inference_mode(False):
            return self.normalized(self._values())

    @cached_property
    def unit_entries(self) -> Tensor:
        """`spread` of the fixed values, or of 1 for every pair, computed once."""
        with torch.inference_mode(False):
            return self.to_entries(self._values())

    @cached_property
    def unit_degrees(self) -> Tensor:
        """Number of neighbors of every node, or what their fixed values sum to, [N], computed once."""
        with torch.inference_mode(False):
            return self.incident_sum(self._values())

    def _values(self) -> Tensor:
        return self.fixed if self.fixed is not None else torch.ones(self.num_pairs, device=self.pairs.device)

    def to_entries(self, values: Tensor, loop: float = 0.0) -> Tensor:
        """The values a [P] of the pairs at both of their entries, and `loop` at every self-loop: [2P + N]."""
        return torch.cat((values, values.new_full((self.num_nodes,), loop))).index_select(0, self.source)

    def normalized(self, values: Tensor) -> Tensor:
        """Symmetric normalization of the current values a [P], differentiable: returns w [2P + N].

        w_uv = a_uv / sqrt(d_u d_v), w_uu = 1 / d_u, with d_u = 1 + sum of a over the pairs of u: the entries of
        D^-1/2 (A + I) D^-1/2. Kipf & Welling 2017, eq. 2; degrees follow the values, as in UGS and GEBT's code.
        """
        if values.shape != (self.num_pairs,):
            raise ValueError(f"edge weights (got shape {tuple(values.shape)}), expected ({self.num_pairs},)")
        return _Normalize.apply(values, self)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]

    def propagate(self, weights: Tensor, x: Tensor) -> Tensor:
        """y = W x for symmetric entry weights [2P + N] and x [N, d]."""
        return spmm(self.pattern, weights, x, symmetric=True)

    def subset(self, kept: Tensor) -> Edges:
        """The graph of the kept pairs ([P] boolean): a pruned edge does not exist, degrees are those of the rest."""
        return Edges.from_pairs(self.pairs[:, kept], self.num_nodes)

    def rows(self, nodes: Tensor) -> Rows:
        """The rows of these nodes ([T], each at most once) alone, for products of which nobody reads the others."""
        return Rows(*self.pattern.rows(nodes))

    def reach(self, nodes: Tensor, layers: int) -> tuple[list[Rows], Tensor]:
        """What the outputs of a network of so many layers depend on at these nodes ([T], each at most once).

        Returns for each layer, first to last, the rows of the adjacency that are read: all N, those that are not read
        empty, and in the last layer those of `nodes` alone. And [N] boolean: the nodes whose features are read.
        """
        rows = [self.rows(nodes)]
        read = torch.zeros(self.num_nodes, dtype=torch.bool, device=nodes.device)
        read[rows[0].pattern.col] = True
        for _ in range(layers - 1):
            kept = read[self.pattern.row]
            rows.insert(0, Rows(self.pattern.keep(kept), kept.nonzero().squeeze(1)))
            read = read.index_fill(0, rows[0].pattern.col.long(), True)
        return rows, read

    def incident_sum(self, values: Tensor) -> Tensor:
        """For every node the sum of `values` [P] over its pairs. Returns [N]."""
        u, v = self.pairs
        return values.new_zeros(self.num_nodes).index_add_(0, u, values).index_add_(0, v, values)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of an adjacency: `pattern` [T, N], `entries` [K] where each of its entries stands in the whole one."""

    pattern: Pattern
    entries: Tensor

    def propagate(self, weights: Tensor, x: Tensor) -> Tensor:
        """These rows of y = W x, for their own entry weights [K]."""
        return spmm(self.pattern, weights, x)


def _sorted_pairs(pairs: Tensor, num_nodes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The smaller and the larger end of every pair, in lexicographic order, and which pair each is."""
    if pairs.numel():
        first, last = (int(end) for end in torch.aminmax(pairs))
        if first < 0 or last >= num_nodes:
            raise ValueError(f"pairs (got node {first if first < 0 else last}), expected 0 to {num_nodes - 1}")
    low, high = torch.minimum(*pairs).to(dtype), torch.maximum(*pairs).to(dtype)
    ids = torch.arange(low.numel(), dtype=dtype, device=pairs.device)
    rising = (low[1:] > low[:-1]) | ((low[1:] == low[:-1]) & (high[1:] > high[:-1]))
    if not bool(rising.all()):
        key, order = torch.sort(low.long() * num_nodes + high.long())
        if bool((key[1:] == key[:-1]).any()):
            raise ValueError("pairs (got the same pair twice), expected each undirected pair once")
        low, high, ids = low[order], high[order], order.to(dtype)
    if bool((low == high).any()):
        raise ValueError("pairs (got a self-loop), expected two different nodes; self-loops are there by themselves")
    return low, high, ids


def _starts(counts: Tensor) -> Tensor:
    """Where each run of `counts` begins: the sum of those before it."""
    return torch.cumsum(counts, 0, dtype=counts.dtype) - counts


class _Normalize(torch.autograd.Function):
    """Closed form of the gradient through degrees: linear time and P + N floats instead of a chain of E-sized ones."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, edges: Edges) -> Tensor:
        u, v = edges.pairs
        scale = edges.incident_sum(values).add_(1).rsqrt_()
        ctx.edges = edges
        ctx.save_for_backward(values, scale)
        pair = values * scale.index_select(0, u) * scale.index_select(0, v)
        return torch.cat((pair, scale * scale)).index_select(0, edges.source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, scale = ctx.saved_tensors
        edges = ctx.edges
        u, v = edges.pairs
        both, by_loop = grad.index_select(0, edges.places).split((2 * edges.num_pairs, edges.num_nodes))
        pair = both.view(-1, 2).sum(1)
        su, sv = scale.index_select(0, u), scale.index_select(0, v)
        direct = pair * values
        dscale = torch.zeros_like(scale).index_add_(0, u, direct * sv).index_add_(0, v, direct * su)
        ddegree = (dscale + 2 * by_loop * scale) * scale**3 * -0.5
        return pair * su * sv + ddegree.index_select(0, u) + ddegree.index_select(0, v), None
