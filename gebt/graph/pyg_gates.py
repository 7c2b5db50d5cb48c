"""Soft edge values inside any `MessagePassing` layer of PyTorch Geometric, where they are exact."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

# How a soft value enters a layer: through its softmax over neighbors, its argument `edge_weight`, or its messages.
EntryPoint = Literal["softmax", "edge_weight", "message"]
# What layers keep of a graph they have seen; of no use once edges come and go.
CACHES = ("_cached_edge_index", "_cached_adj_t", "_cached_x", "_cached_h")
TOLERANCE = 1e-4


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The message-passing layers of a model by name.

    Args:
        model: any module.

    Returns:
        Layers by name.

    Raises:
        ValueError: when it has none.
    """
    from torch_geometric.nn import MessagePassing

    modules = model.named_modules()
    layers = {name or "the model": module for name, module in modules if isinstance(module, MessagePassing)}
    if not layers:
        raise ValueError(
            f"model {type(model).__name__} (got no layer that passes messages), expected at least one "
            "torch_geometric.nn.MessagePassing; without one no edge has a say"
        )
    return layers


@contextmanager
def uncached(model: nn.Module) -> Iterator[None]:
    """A context in which no layer reuses what it computed for an earlier graph (`cached=True`).

    Args:
        model: afterwards as before.

    Yields:
        None.
    """
    states = []
    for layer in layers_of(model).values():
        names = [name for name in ("cached", *CACHES) if name in vars(layer)]
        states.append((layer, {name: getattr(layer, name) for name in names}))
        for name in names:
            setattr(layer, name, False if name == "cached" else None)
    try:
        yield
    finally:
        for layer, values in states:
            for name, value in values.items():
                setattr(layer, name, value)


class PairIndex:
    """Looks up which undirected pair an edge (u, v) belongs to.

    Args:
        pairs: [2, P], the smaller node first.
        num_nodes: N.
    """

    def __init__(self, pairs: Tensor, num_nodes: int) -> None:
        keys = pairs[0].long() * num_nodes + pairs[1]
        self.num_nodes = num_nodes
        self._keys, self._ids = torch.sort(keys)
        self._last: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        """P."""
        return self._ids.numel()

    @property
    def device(self) -> torch.device:
        """Device of the pairs."""
        return self._ids.device

    def of(self, edge_index: Tensor) -> Tensor:
        """The pair of every edge.

        Args:
            edge_index: [2, E].

        Returns:
            [E]; -1 for self-loops.

        Raises:
            ValueError: for an edge between nodes that are no pair.

        Example:
            >>> index = PairIndex(torch.tensor([[0, 1], [1, 2]]), 3)
            >>> index.of(torch.tensor([[0, 1, 2, 2], [1, 0, 1, 2]])).tolist()
            [0, 0, 1, -1]
        """
        if self._last is not None and self._last[0].shape == edge_index.shape and self._last[0].equal(edge_index):
            return self._last[1]
        low, high = edge_index.amin(0), edge_index.amax(0)
        keys = low * self.num_nodes + high
        place = torch.searchsorted(self._keys, keys).clamp(max=max(self._keys.numel() - 1, 0))
        loops = low == high
        strange = ~loops if not self._keys.numel() else (self._keys[place] != keys) & ~loops
        if bool(strange.any()):
            u, v = edge_index[:, strange.nonzero()[0, 0]].tolist()
            raise ValueError(f"edge ({u}, {v}) (got one that the graph lacks), expected the edges of the graph alone")
        ids = torch.full_like(place, -1) if not self._keys.numel() else self._ids[place].masked_fill(loops, -1)
        self._last = edge_index.clone(), ids
        return ids


class PygEdgeGates:
    """Hooks that let soft values a [P] of undirected pairs act in all message-passing layers of a model.

    A value of 0 acts as if the edge were not there and 1 as if there were no hook; self-loops, also those that a layer
    adds, count 1. With the attribute `values` None the hooks do nothing. Use as a context: leaving it restores the
    model, also after an exception.

    Args:
        model: its layers get the hooks.
        pairs: the undirected pairs.
    """

    def __init__(self, model: nn.Module, pairs: PairIndex) -> None:
        self.layers, self.pairs = layers_of(model), pairs
        self.values: Tensor | None = None
        self._entry_points: dict[str, EntryPoint] = {}
        self._now: Tensor | None = None  # of the entries that the layer at work has at present
        self._softmaxed: set[str] = set()
        self._inside: str | None = None
        self._stack = ExitStack()

    def __enter__(self) -> PygEdgeGates:
        with ExitStack() as stack:
            for name, layer in self.layers.items():
                for handle in self._handles(name, layer):
                    stack.callback(handle.remove)
            for module, attribute, original in _softmaxes(self.layers.values()):
                setattr(module, attribute, self._gated_softmax(original))
                stack.callback(setattr, module, attribute, original)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.values = None
        self._stack.close()

    def find_entry_points(self, forward: Callable[[], object], generator: torch.Generator) -> None:
        """Settles how the values enter each layer, and checks that a value of 0 equals a removed edge.

        Each layer is run on the inputs it gets in `forward`, with half the pairs at 0, and with their edges removed.

        Args:
            forward: runs the model once on the full graph.
            generator: draws the half.

        Raises:
            ValueError: naming the first layer where the two differ.
        """
        calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def note(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                calls.setdefault(name, (arguments, keywords))

            return hook

        handles = [layer.register_forward_pre_hook(note(name), with_kwargs=True) for name, layer in self.layers.items()]
        self._softmaxed.clear()
        try:
            forward()
        finally:
            for handle in handles:
                handle.remove()
        kept = torch.rand(self.pairs.count, generator=generator) < 0.5
        for name, (arguments, keywords) in calls.items():
            self._entry_points[name] = self._entry_point(name)
            self._check(name, kept.to(self.pairs.device), arguments, keywords)

    def _entry_point(self, name: str) -> EntryPoint:
        if name in self._softmaxed:
            return "softmax"
        return "edge_weight" if "edge_weight" in _parameters(self.layers[name]) else "message"

    def _check(self, name: str, kept: Tensor, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        layer = self.layers[name]
        bound = inspect.signature(layer.forward).bind(*arguments, **keywords)
        if not isinstance(bound.arguments.get("edge_index"), Tensor):
            got = type(bound.arguments.get("edge_index")).__name__
            raise ValueError(f"layer {name!r}, {layer} (got edges as {got}), expected a tensor `edge_index` [2, E]")
        edge_index = bound.arguments["edge_index"]
        ids = self.pairs.of(edge_index)
        stays = (ids < 0) | kept[ids.clamp(min=0)]
        fewer = {
            key: value[stays] if isinstance(value, Tensor) and key != "x" and value.shape[:1] == ids.shape else value
            for key, value in bound.arguments.items()
        }
        fewer["edge_index"] = edge_index[:, stays]
        training = layer.training
        layer.eval()
        try:
            with torch.no_grad():
                expected = layer(**fewer)
                self.values = kept.to(torch.get_default_dtype())
                gated = layer(*arguments, **keywords)
        finally:
            self.values = None
            layer.train(training)
        if not torch.allclose(_first(gated), _first(expected), rtol=TOLERANCE, atol=TOLERANCE):
            worst = float((_first(gated) - _first(expected)).abs().max())
            raise ValueError(
                f"layer {name!r}, {layer} (got outputs {worst:.2g} apart between edges of value 0 and no edges), "
                "expected none: soft edge values are not exact in it (its aggregation or normalization counts edges); "
                "use preset 'best' or 'fast', which need none"
            )

    def _handles(self, name: str, layer: Any) -> Iterator[Any]:
        yield layer.register_forward_pre_hook(self._enter(name), with_kwargs=True, prepend=True)
        yield layer.register_forward_hook(self._leave, always_call=True)
        for register in (layer.register_propagate_forward_pre_hook, layer.register_edge_update_forward_pre_hook):
            yield register(self._note_entries)
        yield layer.register_message_forward_hook(self._on_message)
        yield layer.register_aggregate_forward_hook(self._on_aggregate)

    def _enter(self, name: str) -> Callable[..., Any]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
            self._inside, self._now = name, None
            if self.values is None or self._entry_points.get(name) != "edge_weight":
                return None
            bound = inspect.signature(layer.forward).bind(*arguments, **keywords)
            weights, edge_index = bound.arguments.get("edge_weight"), bound.arguments["edge_index"]
            gates = self._entry_values(edge_index)
            # Loops count 1 like the other edges where no weights are given.
            bound.arguments["edge_weight"] = gates if weights is None else gates * weights
            return bound.args, bound.kwargs

        return hook

    def _leave(self, *_: object) -> None:
        self._inside, self._now = None, None

    def _entry_values(self, edge_index: Tensor) -> Tensor:
        ids = self.pairs.of(edge_index)
        return torch.where(ids < 0, 1.0, cast(Tensor, self.values)[ids.clamp(min=0)])

    def _note_entries(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.values is not None:
            self._now = self._entry_values(inputs[0])

    def _on_message(self, layer: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if self._now is None or self._entry_points.get(self._inside or "") != "message":
            return None
        return out * _along(self._now, out, layer.node_dim)

    def _on_aggregate(self, layer: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """A mean over neighbors divides by their number; with soft values it divides by what they sum to."""
        if self._now is None or layer.aggr != "mean" or self._entry_points.get(self._inside or "") == "softmax":
            return None
        index = inputs[0]["index"]
        count, total = (
            values.new_zeros(out.shape[layer.node_dim]).index_add_(0, index, values)
            for values in (torch.ones_like(self._now), self._now)
        )
        return out * _along(torch.where(total == 0, 0.0, count / total), out, layer.node_dim)

    def _gated_softmax(self, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def softmax(
            src: Tensor, index: Any = None, ptr: Any = None, num_nodes: int | None = None, dim: int = 0
        ) -> Tensor:
            if self._inside is not None:
                self._softmaxed.add(self._inside)
            if self._now is None or self._entry_points.get(self._inside or "") != "softmax":
                return original(src, index, ptr, num_nodes, dim)
            gates = _along(self._now, src, dim)
            logs = gates.clamp(min=torch.finfo(gates.dtype).tiny).log()
            # Where all of a row are 0 the softmax would share its mass among them.
            return original(src + logs, index, ptr, num_nodes, dim) * (gates > 0)

        return softmax


def _along(values: Tensor, like: Tensor, dim: int) -> Tensor:
    shape = [1] * like.dim()
    shape[dim] = -1
    return values.to(like.dtype).view(shape)


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _parameters(layer: nn.Module) -> list[str]:
    return list(inspect.signature(layer.forward).parameters)


def _softmaxes(layers: Any) -> Iterator[tuple[Any, str, Callable[..., Tensor]]]:
    """Every name under which PyG's softmax over neighbors is known to a layer: module, attribute, function."""
    import torch_geometric.utils
    from torch_geometric.nn.aggr import basic

    original = torch_geometric.utils.softmax
    homes = {kind.__module__ for layer in layers for kind in type(layer).__mro__}
    for module in {*(sys.modules[home] for home in homes if home in sys.modules), basic, torch_geometric.utils}:
        for attribute, value in list(vars(module).items()):
            if value is original:
                yield module, attribute, original
