"""The registered ops of the normalization; its numbers are tested with the edges."""

from __future__ import annotations

import pytest
import torch

from gebt.graph.edges import Edges
from gebt.sparse.backends.base import PairEntries


def star(nodes: int = 5) -> Edges:
    return Edges.from_pairs(torch.stack((torch.zeros(nodes - 1, dtype=torch.long), torch.arange(1, nodes))), nodes)


def test_the_ops_keep_the_rules_of_torch() -> None:
    edges, values = star(), torch.arange(1.0, 5.0, dtype=torch.float64)
    entries = PairEntries(edges.pattern.crow, edges.pattern.col, edges.source, edges.places, *edges.pairs)
    torch.library.opcheck(torch.ops.gebt.normalize.default, (*entries, values.requires_grad_()))
    grad, scale = torch.ones(edges.pattern.nnz, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    torch.library.opcheck(torch.ops.gebt.normalize_gradient.default, (*entries, values.detach(), scale, grad))


def test_second_gradients_are_refused() -> None:
    edges, values = star(), torch.ones(4, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"normalize \(got create_graph=True\), expected first gradients only"):
        torch.autograd.grad(edges.normalized(values).sum(), values, create_graph=True)


def test_values_without_a_gradient_need_no_backward_pass() -> None:
    assert not star().normalized(torch.ones(4)).requires_grad
