"""Any PyTorch Geometric network on a `Data`, behind the interface of the networks of this package."""

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

# call(model, data) returns logits; the edges of the data are those the network may see.
Call = Callable[[nn.Module, "Data"], Tensor]


class Adapted(nn.Module):
    """A PyG network that is called with features, edges and soft edge values; its parameters are named "model.*".

    Features, edge attributes and everything else come from `data`. The edges of a call say which edges of the data
    remain; edge attributes are restricted to them, self-loops stay. Weight decay acts on all parameters.

    Args:
        model: the PyG network; it is not copied.
        data: what the network reads, on N nodes.
        graph: the undirected graph of `data`, P pairs.
        call: call(model, data) returns logits [N, C]; None: `call_of` the model.
        gates: the hooks that multiply messages by soft values.
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
        """The module weight decay acts on."""
        return self.model

    def forward(self, features: Any, edges: Edges, gates: Tensor | None = None) -> Tensor:
        """Runs the network on the data restricted to `edges`.

        Args:
            features: not read; the data has its features.
            edges: the edges the network sees.
            gates: soft values of all pairs, [P]; None: every edge counts 1.

        Returns:
            Logits, [N, C].

        Raises:
            ValueError: when the network returns anything but a matrix.
        """
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
    """Hooks soft edge values into a PyG network and disables its caches; both are undone at the end of the context.

    Args:
        model: the PyG network.
        data: what it reads.
        graph: the undirected graph of `data`.
        call: call(model, data) returns logits; None: `call_of` the model.
        soft: soft values will be used, so every layer is checked to apply them exactly.
        seed: of the random values of that check.

    Yields:
        The network with the interface of this package.

    Raises:
        ValueError: with `soft`, naming the first layer that does not apply soft values exactly.
    """
    with uncached(model), PygEdgeGates(model, PairIndex(graph.pairs, graph.num_nodes)) as gates:
        network = Adapted(model, data, graph, call, gates)
        if soft:
            training = model.training
            network.eval()
            with torch.no_grad():
                all_edges = Edges.from_pairs(graph.pairs, graph.num_nodes)
                gates.find_entry_points(lambda: network(None, all_edges), torch.Generator().manual_seed(seed))
            model.train(training)
        yield network


def call_of(model: nn.Module) -> Call:
    """How to call a network: with the data attributes its forward names, or with the data if it takes one argument.

    Args:
        model: the PyG network; only the signature of its forward is read.

    Returns:
        A function of (model, data) that returns logits; it raises `ValueError` naming an argument without default that
        the data lacks.

    Example:
        >>> from types import SimpleNamespace
        >>> class Sum(nn.Module):
        ...     def forward(self, x, y):
        ...         return x + y
        >>> call_of(Sum())(Sum(), SimpleNamespace(x=1, y=2, z=3))
        3
    """
    parameters = inspect.signature(model.forward).parameters
    plain = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if len(plain) == 1:
        return lambda network, data: network(data)

    def call(network: nn.Module, data: Data) -> Tensor:
        arguments = {name: getattr(data, name, None) for name in plain}
        _refuse_missing(network, plain, arguments)
        return network(**{name: value for name, value in arguments.items() if value is not None})

    return call


def _refuse_missing(network: nn.Module, plain: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]) -> None:
    missing = [name for name, p in plain.items() if arguments[name] is None and p.default is p.empty]
    if missing:
        raise ValueError(
            f"forward of {type(network).__name__} (got no {missing[0]!r} in the data), expected attributes named as "
            "its arguments, such as x and edge_index; or give call=lambda model, data: ..."
        )
