"""Edges of an undirected graph: one value a pair, self-loops that never go, symmetric normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gebt.sparse.ops import spmm
from gebt.sparse.pattern import Pattern, index_dtype


@dataclass(frozen=True, eq=False)
class Edges:
    """The adjacency A + I of an undirected graph of N nodes and P pairs, as a CSR pattern of 2P + N entries.

    `pairs` [2, P]; `pattern` N x N, its own transpose; `source` [2P + N]: for each entry the pair it belongs to,
    or P + u for the self-loop of node u. One value a pair moves both directions, so no ticket is directed
    by accident, and a self-loop has no value, so none can be pruned.
    """

    pairs: Tensor
    pattern: Pattern
    source: Tensor

    @staticmethod
    def from_pairs(pairs: Tensor, num_nodes: int) -> Edges:
        """Builds the pattern of `pairs` [2, P] (each undirected pair once, no self-loops)."""
        u, v = pairs
        count = pairs.shape[1]
        loops = torch.arange(num_nodes, device=pairs.device)
        ids = torch.arange(count, device=pairs.device)
        pattern, order = Pattern.from_entries(
            torch.cat((u, v, loops)), torch.cat((v, u, loops)), (num_nodes, num_nodes)
        )
        dtype = index_dtype(pattern.nnz)
        source = torch.cat((ids, ids, loops + count))[order].to(dtype)
        place = torch.empty_like(order)
        place[order] = torch.arange(order.numel(), device=order.device)
        mirror = torch.cat((place[count : 2 * count], place[:count], place[2 * count :]))[order].to(dtype)
        return Edges(pairs, pattern.with_transpose(pattern, mirror), source)

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.pattern.shape[0]

    @property
    def num_pairs(self) -> int:
        """P."""
        return self.pairs.shape[1]

    @cached_property
    def places(self) -> Tensor:
        """[2P + N]: where in the pattern the two entries of each pair stand, pair by pair, then each self-loop."""
        return torch.argsort(self.source.long(), stable=True).to(self.source.dtype)

    @cached_property
    def unit_weights(self) -> Tensor:
        """`normalised` of a value of 1 for every pair, computed once."""
        # Kept for good, so also under inference mode it must be a tensor that training can read.
        with torch.inference_mode(False):
            return self.normalised(torch.ones(self.num_pairs, device=self.pairs.device))

    def normalised(self, values: Tensor) -> Tensor:
        """Symmetric normalisation of the current values a [P], differentiable: returns w [2P + N].

        w_uv = a_uv / sqrt(d_u d_v), w_uu = 1 / d_u, with d_u = 1 + sum of a over the pairs of u: the entries of
        D^-1/2 (A + I) D^-1/2. Kipf & Welling 2017, eq. 2; degrees follow the values, as in UGS and GEBT's code.
        """
        if values.shape != (self.num_pairs,):
            raise ValueError(f"edge values (got shape {tuple(values.shape)}), expected ({self.num_pairs},)")
        return _Normalise.apply(values, self)  # type: ignore[no-any-return, no-untyped-call, unused-ignore]

    def propagate(self, weights: Tensor, x: Tensor) -> Tensor:
        """y = W x for symmetric entry weights [2P + N] and x [N, d]."""
        return spmm(self.pattern, weights, x, symmetric=True)

    def subset(self, kept: Tensor) -> Edges:
        """The graph of the kept pairs ([P] boolean): a pruned edge does not exist, degrees are those of the rest."""
        return Edges.from_pairs(self.pairs[:, kept], self.num_nodes)

    def incident_sum(self, values: Tensor) -> Tensor:
        """For every node the sum of `values` [P] over its pairs. Returns [N]."""
        u, v = self.pairs
        return values.new_zeros(self.num_nodes).index_add_(0, u, values).index_add_(0, v, values)


class _Normalise(torch.autograd.Function):
    """Closed form of the gradient through degrees: linear time and P + N floats instead of a chain of E-sized ones."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, edges: Edges) -> Tensor:
        u, v = edges.pairs
        scale = edges.incident_sum(values).add_(1).rsqrt_()
        ctx.edges = edges
        ctx.save_for_backward(values, scale)
        return torch.cat((values * scale[u] * scale[v], scale * scale)).index_select(0, edges.source)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, scale = ctx.saved_tensors
        edges = ctx.edges
        u, v = edges.pairs
        both, by_loop = grad.index_select(0, edges.places).split((2 * edges.num_pairs, edges.num_nodes))
        pair = both.view(-1, 2).sum(1)
        su, sv = scale[u], scale[v]
        direct = pair * values
        dscale = torch.zeros_like(scale).index_add_(0, u, direct * sv).index_add_(0, v, direct * su)
        ddegree = (dscale + 2 * by_loop * scale) * scale**3 * -0.5
        return pair * su * sv + ddegree[u] + ddegree[v], None
