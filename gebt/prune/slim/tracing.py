"""Follows the channels of a network: traced by `torch.fx`, every tensor on the way labeled with its units."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from gebt.prune.slim import function_rules, layer_rules
from gebt.prune.slim.call import Call, Labels, Size
from gebt.prune.slim.channels import Channels, Site, TraceError, empty_slices


class _Tracer(fx.Tracer):
    """Remembers in which module the trace stands."""

    where = ""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before, self.where = self.where, self.path_of_module(m)
        out = super().call_module(m, forward, args, kwargs)
        self.where = before
        return out


def channels_of(
    model: nn.Module,
    example: Any,
    kept: Mapping[str, Tensor],
    ignored: Iterable[str] = (),
    *,
    fold_constants: bool = False,
) -> Channels:
    """Follows the channels of a network through a run on `example`.

    What an operation does to channels that it is not known for is not guessed: the channels that go into it stay.

    Args:
        model: the network, masked by `kept`; its training modes stay as they were.
        example: a tensor, or a tuple of arguments.
        kept: boolean masks by parameter.
        ignored: names of layers that keep all their channels.
        fold_constants: whether a reader does without a channel that is a constant, not only without one that is zero.

    Returns:
        The units, and which layers need them.

    Raises:
        TraceError: when `torch.fx` cannot trace the network, naming layer and line.
        SlimmingError: where a constant cannot be folded.

    Example:
        >>> channels = channels_of(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2), {})
        >>> [(site.tensor, site.dim, site.units.tolist()) for site in channels.sites if site.name == "weight"]
        [('0.weight', 0, [0, 1, 2]), ('1.weight', 1, [0, 1, 2]), ('1.weight', 0, [3])]
    """
    inputs = example if isinstance(example, tuple) else (example,)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        graph, computed = _traced(model)
        walker = Walker(graph, kept, set(ignored), fold_constants, computed)
        with torch.no_grad():
            walker.run(*inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    return walker.channels


def _traced(model: nn.Module) -> tuple[fx.GraphModule, set[tuple[str, str]]]:
    tracer, computed = _Tracer(), set[tuple[str, str]]()
    try:
        with _named_sizes(model, tracer, computed):
            traced = tracer.trace(model)
    except Exception as error:  # whatever the network's code raises under tracing
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
        last = f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}"
        raise TraceError(
            f"model {type(model).__name__}, layer {tracer.where!r} (got {type(error).__name__}: {error}; at {last}), "
            "expected one that torch.fx can trace; its control flow must not depend on data"
        ) from error
    computed = set(computed)  # what follows is no longer the network's code
    for node in traced.nodes:
        if node.target not in function_rules.SIZED:
            sizes = [arg for arg in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(arg, Size)]
            computed |= {(size.module, size.attribute) for size in sizes}
    return fx.GraphModule(model, traced), computed


@contextmanager
def _named_sizes(model: nn.Module, tracer: fx.Tracer, computed: set[tuple[str, str]]) -> Iterator[None]:
    """Integer attributes of the modules whose code is traced are `Size`s."""
    traced = [
        (name, module) for name, module in model.named_modules() if not name or not tracer.is_leaf_module(module, name)
    ]
    plain = [(module, dict(vars(module))) for _, module in traced]
    try:
        for name, module in traced:
            sizes = {key: value for key, value in vars(module).items() if type(value) is int}
            vars(module).update({key: Size.of(value, name, key, computed) for key, value in sizes.items()})
        yield
    finally:
        for module, values in plain:
            vars(module).update(values)


class Walker(fx.Interpreter):
    """Runs the network and labels the channels of every tensor on the way.

    Args:
        graph: the traced network.
        kept: boolean masks by parameter.
        ignored: names of layers that keep their channels.
        fold_constants: as in `channels_of`.
        computed: sizes that the network's code computes with, by module and attribute.
    """

    def __init__(
        self, graph: fx.GraphModule, kept: Mapping[str, Tensor], ignored: set[str], fold_constants: bool,
        computed: set[tuple[str, str]],
    ) -> None:  # fmt: skip
        super().__init__(graph)
        self.channels, self.ignored, self.fold_constants, self.computed = Channels(), ignored, fold_constants, computed
        self.labels: dict[Any, Labels] = {}
        self.sizes: dict[Any, Tensor | None] = {}
        self.shared: dict[tuple[int, int], Tensor] = {}
        parameters = dict(graph.named_parameters(remove_duplicate=False))
        self.kept = {id(parameters[name]): mask.cpu() for name, mask in kept.items() if name in parameters}

    def site(self, layer: str, name: str, tensor: Tensor, dim: int, units: Tensor, blocks: int = 1) -> None:
        """Notes that a tensor has these units along `dim`; they go with those of the tensor's other uses.

        Args:
            layer: full name of the layer.
            name: the tensor's in the layer.
            tensor: the parameter or buffer.
            dim: the dimension.
            units: of its slices.
            blocks: how many times over.
        """
        known = self.shared.setdefault((id(tensor), dim), units)
        if known is not units:
            self.channels.join(units, known)
        if all((site.layer, site.name, site.dim) != (layer, name, dim) for site in self.channels.sites):
            self.channels.sites.append(Site(layer, name, dim, units, blocks))

    def gone(self, parameter: Tensor, dim: int) -> Tensor:
        """Which slices of a parameter the mask has pruned entirely.

        Args:
            parameter: of the network.
            dim: counts the slices.

        Returns:
            [size of `dim`] bool.
        """
        kept = self.kept.get(id(parameter))
        return torch.zeros(parameter.shape[dim], dtype=torch.bool) if kept is None else empty_slices(kept, dim)

    def run_node(self, n: fx.Node) -> Any:
        """Runs one step and labels what it makes.

        Args:
            n: the step.

        Returns:
            What the step makes.
        """
        value = super().run_node(n)
        label = self._label(n, value)
        made = isinstance(value, Tensor | tuple | list | dict) and not isinstance(value, torch.Size)
        if label is None and made:
            self._fix([self.labels.get(node) for node in n.all_input_nodes])
        self.labels[n] = label
        return value

    def _label(self, node: Any, value: Any) -> Labels:
        if node.op == "call_module":
            name = str(node.target)
            call = Call(self, node, value, name, self.module.get_submodule(name))
            label = layer_rules.label(call)
            if name in self.ignored:
                self._fix([call.source_label, label])
            return label
        if node.op in ("call_function", "call_method"):
            return function_rules.label(Call(self, node, value))
        return None  # inputs, parameters used as they are, the output

    def _fix(self, labels: list[Any]) -> None:
        """The channels of all of these stay."""
        for label in pytree.tree_leaves(labels):
            self.channels.fix(label)
