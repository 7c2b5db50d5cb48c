"""Edges of an undirected graph: one value a pair, self-loops that are never pruned, symmetric normalization."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from gebt.sparse.backends.base import PairEntries
from gebt.sparse.memory import check_room
from gebt.sparse.normalization import normalize
from gebt.sparse.ops import mixed_spmm
from gebt.sparse.pattern import Pattern, index_dtype
from gebt.sparse.precision import widened

# The name of the tensor of pairs in an edge mask.
EDGES = "edges"


@dataclass(frozen=True, eq=False)
class Edges:
    """The adjacency A + I of an undirected graph of N nodes and P pairs, as a CSR pattern of 2P + N entries.

    One value a pair moves both directions, so no ticket is directed by accident, and a self-loop has no value, so none
    can be pruned.

    Attributes:
        pairs: [2, P].
        pattern: N x N, its own transpose.
        source: for each entry the pair it belongs to, or P + u for the self-loop of node u, [2P + N].
        places: the reverse: positions of the two entries of each pair, pair by pair, then of each self-loop, [2P + N].
        fixed: values of the pairs that count by default (a ticket that keeps its edge weights), [P]; None: 1 for each.
    """

    pairs: Tensor
    pattern: Pattern
    source: Tensor
    places: Tensor
    fixed: Tensor | None = None

    @staticmethod
    def from_pairs(pairs: Tensor, num_nodes: int, fixed: Tensor | None = None) -> Edges:
        """Builds the pattern of some pairs. Linear in P but for one sort of the larger ends.

        Args:
            pairs: each undirected pair once, no self-loops, [2, P].
            num_nodes: N.
            fixed: as the attribute.

        Returns:
            The edges.

        Raises:
            ValueError: for a repeated pair, a self-loop or a node outside 0..N-1.
            OutOfRoomError: before more memory is allocated than is free.

        Example:
            >>> edges = Edges.from_pairs(torch.tensor([[0, 1], [1, 2]]), 3)
            >>> edges.pattern.crow.tolist(), edges.pattern.col.tolist()
            ([0, 2, 5, 7], [0, 1, 0, 1, 2, 1, 2])
            >>> edges.source.tolist()  # pairs 0 and 1, self-loops 2 to 4
            [2, 0, 0, 3, 1, 1, 4]
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
        both = torch.stack((upper, lower), 1)
        both = torch.empty_like(both).index_copy_(0, ids.long(), both)
        pattern = Pattern(crow, col, (num_nodes, num_nodes)).mirrored()
        return Edges(pairs, pattern, source, torch.cat((both.flatten(), loops)), fixed)

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.pattern.shape[0]

    @property
    def num_pairs(self) -> int:
        """P."""
        return self.pairs.shape[1]

    def to(self, device: torch.device | str) -> Edges:
        """The same edges on another device.

        Args:
            device: where to.

        Returns:
            The edges.
        """
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
        """`to_entries` of the fixed values, or of 1 for every pair, computed once."""
        with torch.inference_mode(False):
            return self.to_entries(self._values())

    @cached_property
    def unit_degrees(self) -> Tensor:
        """Number of neighbors of every node, or the sum of their fixed values, [N], computed once."""
        with torch.inference_mode(False):
            return self.incident_sum(self._values())

    def _values(self) -> Tensor:
        return self.fixed if self.fixed is not None else torch.ones(self.num_pairs, device=self.pairs.device)

    def to_entries(self, values: Tensor, loop: float = 0.0) -> Tensor:
        """Values of the pairs at both of their entries, and one value at every self-loop.

        Args:
            values: a, [P].
            loop: of the self-loops.

        Returns:
            [2P + N].
        """
        return torch.cat((values, values.new_full((self.num_nodes,), loop))).index_select(0, self.source)

    def normalized(self, values: Tensor) -> Tensor:
        """Symmetric normalization of the current values, differentiable: the entries of D^-1/2 (A + I) D^-1/2.

        w_uv = a_uv / sqrt(d_u d_v), w_uu = 1 / d_u, with d_u = 1 + sum of a over the pairs of u: degrees follow the
        values, as in the code of UGS and GEBT.

        Args:
            values: a, [P].

        Returns:
            w, [2P + N].

        Raises:
            ValueError: for another shape.

        Source:
            Kipf & Welling 2017, eq. 2.

        Example:
            >>> edges = Edges.from_pairs(torch.tensor([[0], [1]]), 2)
            >>> edges.normalized(torch.zeros(1)).tolist()  # only the self-loops count
            [1.0, 0.0, 0.0, 1.0]
        """
        if values.shape != (self.num_pairs,):
            raise ValueError(f"edge weights (got shape {tuple(values.shape)}), expected ({self.num_pairs},)")
        entries = PairEntries(self.pattern.crow, self.pattern.col, self.source, self.places, *self.pairs)
        return normalize(entries, values)

    def propagate(self, weights: Tensor, x: Tensor) -> Tensor:
        """y = W x.

        Args:
            weights: symmetric, of the entries, [2P + N].
            x: [N, d].

        Returns:
            [N, d].
        """
        return mixed_spmm(self.pattern, weights, x, symmetric=True)

    def rows(self, nodes: Tensor) -> Rows:
        """The rows of some nodes alone, for products of which nobody reads the others.

        Args:
            nodes: each at most once, [T].

        Returns:
            The rows.
        """
        return Rows(*self.pattern.rows(nodes))

    def reach(self, nodes: Tensor, layers: int) -> tuple[list[Rows], Tensor]:
        """What the outputs of a network at some nodes depend on.

        Args:
            nodes: each at most once, [T].
            layers: of the network.

        Returns:
            For each layer, first to last, the rows of the adjacency that are read (all N, those that are not read
            empty; in the last layer those of `nodes` alone), and which nodes' features are read, [N] bool.
        """
        rows = [self.rows(nodes)]
        read = torch.zeros(self.num_nodes, dtype=torch.bool, device=nodes.device)
        read[rows[0].pattern.col] = True
        for _ in range(layers - 1):
            in_read_rows = read[self.pattern.row]
            rows.insert(0, Rows(self.pattern.keep(in_read_rows), in_read_rows.nonzero().squeeze(1)))
            read = read.index_fill(0, rows[0].pattern.col.long(), True)
        return rows, read

    def incident_sum(self, values: Tensor) -> Tensor:
        """For every node the sum of the values of its pairs.

        Args:
            values: [P].

        Returns:
            [N].

        Example:
            >>> edges = Edges.from_pairs(torch.tensor([[0, 1], [1, 2]]), 3)
            >>> edges.incident_sum(torch.tensor([1.0, 2.0])).tolist()
            [1.0, 3.0, 2.0]
        """
        u, v = self.pairs
        values = widened(values)
        return values.new_zeros(self.num_nodes).index_add_(0, u, values).index_add_(0, v, values)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of an adjacency.

    Attributes:
        pattern: T x N.
        entries: position of each entry in the full adjacency, [K].
    """

    pattern: Pattern
    entries: Tensor

    def propagate(self, weights: Tensor, x: Tensor) -> Tensor:
        """These rows of y = W x.

        Args:
            weights: of the entries of these rows, [K].
            x: [N, d].

        Returns:
            [T, d].
        """
        return mixed_spmm(self.pattern, weights, x)


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
