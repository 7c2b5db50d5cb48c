"""Any network of PyTorch Geometric on a `Data`, behind the interface of our own networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gebt.graph.edges import Edges
from gebt.graph.graph import Graph
from gebt.graph.pyg_gates import PairIndex, PygEdgeGates, uncached

if TYPE_CHECKING:
    from torch_geometric.data import Data

# How a network is called: with itself and the data, edges already those it may see.
Call = Callable[[nn.Module, "Data"], Tensor]


class Adapted(nn.Module):
    """`model` as a network that is called with features, edges and soft edge values; parameters under "model.".

    Features, edge attributes and all else are the `data`'s own; `edges` say which of its edges are left, entries of
    edge attributes go with them, self-loops stay. Weight decay is for the whole network.
    """

    def __init__(self, model: nn.Module, data: Data, graph: Graph, call: Call | None, gates: PygEdgeGates) -> None:
        super().__init__()
        self.model = model
        self._data, self._pairs = data, graph.num_pairs
        self._call, self._gates = call or call_of(model), gates
        self._entry_pairs = gates.pairs.of(data.edge_index)
        self._seen: tuple[Edges | None, Data] = (None, data)

    @property
    def first(self) -> nn.Module:
        """What weight decay acts on."""
        return self.model

    def forward(self, features: Any, edges: Edges, gates: Tensor | None = None) -> Tensor:
        """Logits [N, C] of the network that sees `edges`, with soft values `gates` [P] of all pairs, if any."""
        self._gates.values = gates
        try:
            out = self._call(self.model, self._data_of(edges))
        finally:
            self._gates.values = None
        if not isinstance(out, Tensor) or out.dim() != 2:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"output of {type(self.model).__name__} (got {got}), expected logits [N, C]")
        return out

    def _data_of(self, edges: Edges) -> Data:
        if edges.num_pairs == self._pairs:
            return self._data
        if self._seen[0] is not edges:
            kept = torch.zeros(self._pairs, dtype=torch.bool, device=edges.pairs.device)
            kept[self._gates.pairs.of(edges.pairs)] = True
            stays = (self._entry_pairs < 0) | kept[self._entry_pairs.clamp(min=0)]
            self._seen = edges, self._data.edge_subgraph(stays)
        return self._seen[1]


@contextmanager
def adapted(
    model: nn.Module, data: Data, graph: Graph, *, call: Call | None = None, soft: bool = False, seed: int = 0
) -> Iterator[Adapted]:
    """The model with hooks for soft edge values and without caches; as it was before when the context is left.

    `call(model, data)` returns logits; default: by the names of the arguments of the model's forward (`call_of`).
    `soft`: soft values will be used, so they must be exact in every layer: `ValueError` naming the first where not.
    """
    with uncached(model), PygEdgeGates(model, PairIndex(graph.pairs, graph.num_nodes)) as gates:
        network = Adapted(model, data, graph, call, gates)
        if soft:
            training = model.training
            network.eval()
            with torch.no_grad():
                whole = Edges.from_pairs(graph.pairs, graph.num_nodes)
                gates.find_entry_points(lambda: network(None, whole), torch.Generator().manual_seed(seed))
            model.train(training)
        yield network


def call_of(model: nn.Module) -> Call:
    """Calls a model with the data's attributes that its forward names; with the data itself if it takes one argument.

    Raises `ValueError` naming an argument without default that the data lacks.
    """
    parameters = inspect.signature(model.forward).parameters
    plain = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if len(plain) == 1:
        return lambda network, data: network(data)

    def call(network: nn.Module, data: Data) -> Tensor:
        given = {name: getattr(data, name, None) for name in plain}
        _refuse_missing(network, plain, given)
        return network(**{name: value for name, value in given.items() if value is not None})

    return call


def _refuse_missing(network: nn.Module, plain: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> None:
    missing = [name for name, p in plain.items() if given[name] is None and p.default is p.empty]
    if missing:
        raise ValueError(
            f"forward of {type(network).__name__} (got no {missing[0]!r} in the data), expected attributes named as "
            "its arguments, such as x and edge_index; or give call=lambda model, data: ..."
        )
