"""Follows the channels of a network: traced by `torch.fx`, every tensor on the way labelled with its units."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gebt.prune.channels import Channels, Label, Site, TraceError

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TURNED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = nn.modules.batchnorm._BatchNorm
_RECURRENT = (nn.GRU, nn.LSTM)
# Channel by channel, and zero where the channel is zero.
_ZERO_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.ELU, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Mish,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
_ZERO_FUNCTIONS = {
    F.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.elu, F.hardtanh, F.hardswish, F.mish, F.tanh, F.dropout,
    F.dropout2d, F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d, F.interpolate, torch.relu, torch.tanh, torch.abs, torch.neg, operator.neg, "relu", "relu_",
    "tanh", "abs", "neg", "contiguous", "clone", "detach", "float", "to",
}  # fmt: skip
# Channel by channel, but something else than zero where the channel is zero.
_FILLING_MODULES = (nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.LogSigmoid)
_FILLING_FUNCTIONS = {torch.sigmoid, torch.exp, F.sigmoid, F.hardsigmoid, F.softplus, F.logsigmoid, "sigmoid", "exp"}
_ADDS = {operator.add, operator.iadd, operator.sub, torch.add, torch.sub, "add", "add_", "sub"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_RATIOS = {operator.truediv, torch.div, "div", "div_"}


def channels_of(model: nn.Module, example: Any, pruned: dict[str, Tensor], ignored: Iterable[str] = ()) -> Channels:
    """Follows the channels of a network through a run on `example` (a tensor, or a tuple of arguments).

    `pruned`: for parameters by name which channels that come out are pruned, [C] boolean; their values, the layer's
    bias and a batch norm's shift count as zero. `ignored`: layers that keep all their channels. What an operation does
    to channels that it is not known for is not guessed: the channels that go into it stay.
    Raises `TraceError` when `torch.fx` cannot trace the network (naming where), or the run fails.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    try:
        graph = fx.symbolic_trace(model)
    except Exception as error:  # whatever the network's own code raises under tracing
        raise TraceError(
            f"model {type(model).__name__} (got {type(error).__name__}: {error}), expected one that torch.fx can "
            "trace; its control flow must not depend on data"
        ) from error
    modes = {module: module.training for module in model.modules()}
    graph.eval()
    walker = _Walker(graph, pruned, set(ignored))
    try:
        with torch.no_grad():
            walker.run(*inputs)
    finally:
        for module, training in modes.items():
            module.training = training
    return walker.channels


class _Walker(fx.Interpreter):
    """Runs the network and labels the channels of every tensor on the way."""

    def __init__(self, graph: fx.GraphModule, pruned: dict[str, Tensor], ignored: set[str]) -> None:
        super().__init__(graph)
        self.channels, self.pruned, self.ignored = Channels(), pruned, ignored
        self.labels: dict[Any, Label | None] = {}
        self.shapes: dict[Any, torch.Size] = {}
        self.shared: dict[tuple[int, int], Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.labels[n] = self._label(n, value)
        self.shapes[n] = value.shape if isinstance(value, Tensor) else torch.Size(())
        return value

    def _label(self, node: Any, value: Any) -> Label | None:
        given = [self.labels.get(own) for own in node.all_input_nodes]
        if node.op == "call_module":
            return self._module(str(node.target), self.module.get_submodule(str(node.target)), given, value)
        if node.op in ("call_function", "call_method"):
            return self._function(node, given, value)
        return self._stays(*given)  # inputs, parameters used as they are, the output

    def _stays(self, *given: Label | None) -> Label | None:
        """What is made of these is not followed: their channels stay."""
        for label in given:
            self.channels.fix(label)
        return None

    # Layers ------------------------------------------------------------------------------------------------------

    def _module(self, name: str, layer: nn.Module, given: list[Label | None], value: Any) -> Label | None:
        own = given[0] if given else None
        if name in self.ignored:
            self.channels.fix(own)
        axis = own.axis if own is not None else None
        if isinstance(layer, _CONVS) and axis in (1, None):
            return self._convolution(name, layer, own, value)
        if isinstance(layer, _TURNED) and axis in (1, None) and layer.groups == 1:
            return self._made(name, layer, own, value, (1, 1, 0))
        if isinstance(layer, nn.Linear) and axis in (value.dim() - 1, None):
            return self._made(name, layer, own, value, (value.dim() - 1, 0, 1))
        if isinstance(layer, _NORMS) and axis in (1, None):
            return self._norm(name, layer, own, value)
        if isinstance(layer, _RECURRENT) and len(given) == 1 and axis in (2, None):
            return self._recurrent(name, layer, own)
        if isinstance(layer, nn.Embedding):
            units = self._units_for(layer.weight, 1, value.shape[-1])
            self.channels.sites.append(Site(name, "weight", 1, units))
            return Label(value.dim() - 1, units, torch.zeros(len(units), dtype=torch.bool))
        if own is not None and isinstance(layer, _ZERO_MODULES):
            return self._kept_axis(own, value)
        if own is not None and isinstance(layer, _FILLING_MODULES):
            return Label(own.axis, own.units, torch.zeros_like(own.zero))
        if own is not None and isinstance(layer, nn.Flatten) and layer.start_dim == 1:
            return self._flattened(own, value)
        # Layer norm and the like: with channels gone their statistics are others. And whatever is not known.
        return self._stays(*given)

    def _made(self, name: str, layer: Any, own: Label | None, value: Tensor, dims: tuple[int, int, int]) -> Label:
        """A layer that reads all channels and makes new ones: their axis, dimensions of the weight for out and in."""
        axis, out_dim, in_dim = dims
        if own is not None:
            self._read(own)
            self._site(name, layer, "weight", in_dim, own.units)
        units = self._units_for(layer.weight, out_dim, value.shape[axis])
        return self._produced(name, layer, units, axis, out_dim)

    def _produced(self, name: str, layer: Any, units: Tensor, axis: int, out_dim: int) -> Label:
        self.channels.sites.append(Site(name, "weight", out_dim, units))
        if layer.bias is not None:
            self.channels.sites.append(Site(name, "bias", 0, units))
        gone = self.pruned.get(f"{name}.weight")
        label = Label(axis, units, torch.zeros(len(units), dtype=torch.bool) if gone is None else gone)
        if name in self.ignored:
            self.channels.fix(label)
        return label

    def _convolution(self, name: str, layer: Any, own: Label | None, value: Tensor) -> Label | None:
        groups = layer.groups
        if groups == 1:
            return self._made(name, layer, own, value, (1, 0, 1))
        if own is None:
            return None
        if groups == layer.in_channels:  # depthwise: every channel is made of its own
            units = own.units.repeat_interleave(layer.out_channels // groups)
            label = self._produced(name, layer, units, 1, 0)
            alone = own.zero.repeat_interleave(layer.out_channels // groups)
            return Label(1, units, label.zero | (alone & torch.tensor(layer.bias is None)))
        # What goes from one group goes from all, so that they stay equally wide.
        self._read(own)
        by_group = own.units.view(groups, -1)
        for row in by_group[1:]:
            self.channels.join(row, by_group[0])
        self._site(name, layer, "weight", 1, by_group[0])
        units = self.channels.new(layer.out_channels)
        by_group = units.view(groups, -1)
        for row in by_group[1:]:
            self.channels.join(row, by_group[0])
        return self._produced(name, layer, units, 1, 0)

    def _norm(self, name: str, layer: Any, own: Label | None, value: Tensor) -> Label:
        count = value.shape[1]
        units, before = self.channels.new(count), self.channels.new(count) if own is None else own.units
        if own is None:
            self.channels.fixed.update(before.tolist())
        for part in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, part) is not None:
                self.channels.sites.append(Site(name, part, 0, units))
        self.channels.norms.append((name, before, units))
        gone = self.pruned.get(f"{name}.weight")
        label = Label(1, units, torch.zeros(len(units), dtype=torch.bool) if gone is None else gone)
        if name in self.ignored:
            self.channels.fix(label)
        return label

    def _recurrent(self, name: str, layer: Any, own: Label | None) -> Label | None:
        gates = 3 if isinstance(layer, nn.GRU) else 4
        if layer.num_layers != 1 or layer.bidirectional or layer.proj_size:
            return self._stays(own)
        if own is not None:
            self._read(own)
            self._site(name, layer, "weight_ih_l0", 1, own.units)
        units = self.channels.new(layer.hidden_size)
        # A unit that no gate feeds from outside or from itself, biases zero too, stays at zero.
        gone = torch.ones(layer.hidden_size, dtype=torch.bool)
        for part in ("weight_ih_l0", "weight_hh_l0"):
            self.channels.sites.append(Site(name, part, 0, units, gates))
            own_mask = self.pruned.get(f"{name}.{part}")
            gone &= torch.tensor(False) if own_mask is None else own_mask.view(gates, -1).all(0)
        self.channels.sites.append(Site(name, "weight_hh_l0", 1, units))
        for part in ("bias_ih_l0", "bias_hh_l0") if layer.bias else ():
            self.channels.sites.append(Site(name, part, 0, units, gates))
        label = Label(2, units, gone)
        if name in self.ignored:
            self.channels.fix(label)
        return label

    # Functions ---------------------------------------------------------------------------------------------------

    def _function(self, node: Any, given: list[Label | None], value: Any) -> Label | None:
        target, own = node.target, next((label for label in given if label is not None), None)
        if not isinstance(value, Tensor):
            if isinstance(value, tuple | list) and not isinstance(value, torch.Size):  # chunks and the like
                self._stays(*given)
            return None
        if own is None:
            return None
        if target in _ZERO_FUNCTIONS:
            return self._kept_axis(own, value)
        if target in _FILLING_FUNCTIONS:
            return Label(own.axis, own.units, torch.zeros_like(own.zero))
        if target in _ADDS or target in _PRODUCTS:
            return self._elementwise(node, given, value, product=target in _PRODUCTS)
        handler = _SHAPES.get(target)
        found = handler(self, node, own, value) if handler is not None else None
        return found if found is not None else self._stays(*given)

    def _elementwise(self, node: Any, given: list[Label | None], value: Tensor, product: bool) -> Label | None:
        labels = [label for label in given if label is not None]
        own = labels[0]
        if len(given) == 1:
            # A number that is added makes something of nothing; one that multiplies does not.
            return own if product else Label(own.axis, own.units, torch.zeros_like(own.zero))
        pairs = zip(given, node.all_input_nodes, strict=True)
        ends = {label.axis - len(self.shapes[part]) for label, part in pairs if label is not None}
        if len(labels) != 2 or len(ends) != 1 or len(own.units) != len(labels[1].units):
            return self._stays(*given)
        self.channels.join(labels[1].units, own.units)
        zero = (own.zero | labels[1].zero) if product else (own.zero & labels[1].zero)
        return Label(value.dim() + ends.pop(), own.units, zero)

    def _cat(self, node: Any, own: Label, value: Tensor) -> Label | None:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0) % value.dim()
        parts = []
        for part in node.args[0]:
            label = self.labels.get(part)
            if label is None:
                units = self.channels.new(self.shapes[part][axis])
                label = Label(axis, units, torch.zeros(len(units), dtype=torch.bool))
                self.channels.fix(label)
            parts.append(label)
        if any(label.axis != axis for label in parts):
            return None
        return Label(axis, torch.cat([label.units for label in parts]), torch.cat([label.zero for label in parts]))

    def _flatten(self, node: Any, own: Label, value: Tensor) -> Label | None:
        start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        return self._flattened(own, value) if start == 1 else None

    def _flattened(self, own: Label, value: Tensor) -> Label | None:
        if own.axis != 1 or value.dim() != 2:
            return self._stays(own)
        times = value.shape[1] // len(own.units)
        return Label(1, own.units.repeat_interleave(times), own.zero.repeat_interleave(times))

    def _reshaped(self, node: Any, own: Label, value: Tensor) -> Label | None:
        sizes = node.args[1:] if not isinstance(node.args[1], tuple | list) else tuple(node.args[1])
        # A size that is written down would not fit the slimmer tensor.
        return self._flattened(own, value) if len(sizes) == 2 and sizes[1] == -1 else None

    def _mean(self, node: Any, own: Label, value: Tensor) -> Label | None:
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        rank = len(self.shapes[node.args[0]])
        gone = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))}
        if own.axis in gone:
            return None
        axis = own.axis if value.dim() == rank else own.axis - sum(dim < own.axis for dim in gone)
        return Label(axis, own.units, own.zero)

    def _permuted(self, node: Any, own: Label, value: Tensor) -> Label | None:
        if node.target in ("transpose", torch.transpose):
            one, other = (dim % value.dim() for dim in node.args[1:3])
            return Label({one: other, other: one}.get(own.axis, own.axis), own.units, own.zero)
        order = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        return Label([dim % value.dim() for dim in order].index(own.axis), own.units, own.zero)

    def _unsqueezed(self, node: Any, own: Label, value: Tensor) -> Label | None:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0) % value.dim()
        return Label(own.axis + (dim <= own.axis), own.units, own.zero)

    def _item(self, node: Any, own: Label, value: Tensor) -> Label | None:
        """Of a recurrent layer: what it gives out for every step. Everything else that is taken apart stays."""
        source, which = node.args
        layer = self.module.get_submodule(source.target) if source.op == "call_module" else None
        return own if isinstance(layer, _RECURRENT) and which == 0 else None

    # Shared ------------------------------------------------------------------------------------------------------

    def _kept_axis(self, own: Label, value: Tensor) -> Label | None:
        if own.axis >= value.dim() or value.shape[own.axis] != len(own.units):
            return self._stays(own)
        return own

    def _read(self, own: Label) -> None:
        self.channels.reads.append((own.units, own.zero))

    def _site(self, name: str, layer: Any, part: str, dim: int, units: Tensor) -> None:
        known = self.shared.setdefault((id(getattr(layer, part)), dim), units)
        if known is not units:
            self.channels.join(units, known)
        self.channels.sites.append(Site(name, part, dim, units))

    def _units_for(self, parameter: Any, dim: int, count: int) -> Tensor:
        """New units of a parameter's dimension, or those that another layer with the same parameter has for it."""
        return self.shared.setdefault((id(parameter), dim), self.channels.new(count))


_SHAPES: dict[Any, Callable[..., Label | None]] = {
    torch.cat: _Walker._cat,
    torch.flatten: _Walker._flatten,
    "flatten": _Walker._flatten,
    "view": _Walker._reshaped,
    "reshape": _Walker._reshaped,
    torch.mean: _Walker._mean,
    "mean": _Walker._mean,
    "permute": _Walker._permuted,
    torch.permute: _Walker._permuted,
    "transpose": _Walker._permuted,
    "unsqueeze": _Walker._unsqueezed,
    torch.unsqueeze: _Walker._unsqueezed,
    torch.transpose: _Walker._permuted,
    operator.getitem: _Walker._item,
}
