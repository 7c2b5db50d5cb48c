"""What functions and methods do to channels: the label of what comes out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gebt.prune.slim.axis import kept_axis, regrouped
from gebt.prune.slim.call import Call, Labels
from gebt.prune.slim.channels import Label

_POINTWISE = {
    F.relu, F.relu6, F.leaky_relu, F.gelu, F.silu, F.elu, F.selu, F.hardtanh, F.hardswish, F.mish, F.tanh, F.sigmoid,
    F.hardsigmoid, F.softplus, F.logsigmoid, F.max_pool1d, F.max_pool2d, F.max_pool3d, F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.interpolate,
    torch.relu, torch.tanh, torch.abs, torch.neg, torch.sigmoid, torch.exp, torch.square, torch.sqrt, operator.neg,
    "relu", "relu_", "tanh", "abs", "neg", "sigmoid", "exp", "square", "sqrt", "contiguous", "clone", "detach", "float",
    "to",
}  # fmt: skip
# The same, of channels that are zero only: they pad, or draw.
_PADDED = {F.dropout, F.dropout1d, F.dropout2d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d}
_ADDS = {operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_RATIOS = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
_FILLS = {torch.masked_fill, "masked_fill", "masked_fill_"}
_MATMULS = {operator.matmul, torch.matmul, torch.bmm, "matmul", "bmm", "__matmul__"}
_SOFTMAXES = {F.softmax, F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax"}
_REDUCTIONS = {torch.mean, torch.sum, torch.amax, torch.amin, "mean", "sum", "amax", "amin"}
_RESHAPES = {"view", "reshape", torch.reshape}
_SPLITS = {torch.chunk, "chunk", torch.split, "split"}
# Functions whose numbers may be sizes that change.
SIZED = _RESHAPES


def label(call: Call) -> Labels:
    """The label of what a function makes.

    Args:
        call: the step of the trace.

    Returns:
        The label (a list for several outputs); None where it is not known, and the channels that go in stay.
    """
    target, value = call.node.target, call.value
    if isinstance(value, torch.Size | int | float | bool) or value is None:
        _note_size(call)
        return None
    if target is operator.getitem:
        return _item(call)
    if target in _RESHAPES:
        return _reshaped(call)
    if target in (torch.cat, torch.concat):
        return _cat(call)
    if target in _ADDS | _PRODUCTS | _RATIOS | _FILLS:
        return _elementwise(call)
    if target in _MATMULS:
        return _matmul(call)
    if target is F.scaled_dot_product_attention:
        return _attended(call)
    label = call.source_label
    if label is None:
        return None
    if target in _POINTWISE:
        return kept_axis(call, label.still)
    if target in _PADDED or (target is F.pad and not call.argument(3, "value")):
        return kept_axis(call, call.zero(call.source))
    handler = _SHAPES.get(target)
    return handler(call) if handler is not None else None


# Sizes -----------------------------------------------------------------------------------------------------------


def _note_size(call: Call) -> None:
    """Of a number that the network's code takes from a tensor: the units it counts, if they may become fewer."""
    sizes, node = call.walker.sizes, call.node
    shape, which = None, None
    if node.target is operator.getitem:
        shape, which = node.args
    elif node.target == "size" and call.argument(1, "dim") is not None:
        shape, which = node, call.argument(1, "dim")
    source = shape.args[0] if isinstance(shape, fx.Node) and shape.args else None
    label = call.label(source)
    if isinstance(which, int) and source is not None:
        axes = call.tensor(source).dim() if shape is node else len(call.tensor(shape))
        sizes[node] = label.units if label is not None and label.axis == which % axes else None
        return
    # What is computed of a size, or a piece of a shape, is not followed.
    if node.target not in (getattr, "size", "dim"):
        given = node.all_input_nodes
        tensors = [*given, *(one.args[0] for one in given if one.target in (getattr, "size"))]
        labels = [found.units for one in tensors if (found := call.label(one)) is not None]
        known = labels + [units for one in given if (units := sizes.get(one)) is not None]
        sizes[node] = torch.cat([*known, known[0]]) if known else None


def _reshaped(call: Call) -> Label | None:
    first = call.argument(1, "shape")
    sizes = list(first) if isinstance(first, tuple | list) else list(call.node.args[1:])
    if len(sizes) != call.value.dim():  # another type, or a shape taken from somewhere
        return None
    return regrouped(call, sizes)


def _elementwise(call: Call) -> Label | None:
    target, node = call.node.target, call.node
    operands = [arg for arg in (*node.args[:2], *node.kwargs.values()) if isinstance(arg, fx.Node)]
    labels = {operand: found for operand in operands if (found := call.label(operand)) is not None}
    if not labels:
        return None
    ends = {found.axis - call.tensor(operand).dim() for operand, found in labels.items()}
    counts = {len(found.units) for found in labels.values()}
    if len(ends) != 1 or len(counts) != 1:
        return None
    end, label = ends.pop(), next(iter(labels.values()))
    for other in labels.values():
        if other is not label:
            call.channels.join(other.units, label.units)
    if not all(operand in labels or _fits(call, operand, end, label) for operand in operands):
        return None
    labels = {operand: found for operand in operands if (found := call.label(operand)) is not None}
    stills = [labels[operand].still if operand in labels else torch.zeros_like(label.still) for operand in operands]
    still = torch.zeros_like(label.still) if target in _FILLS else torch.stack(stills).all(0)
    factors = operands if target in _PRODUCTS else node.args[:1] if target in _RATIOS else []
    zeros = [call.zero(factor) for factor in factors if factor in labels]
    return Label(call.value.dim() + end, label.units, torch.stack([still, *zeros]).any(0))


def _fits(call: Call, other: Any, end: int, label: Label) -> bool:
    """Whether a tensor without a label can meet one with: the same for all channels, or a parameter with one each."""
    tensor = call.tensor(other)
    if not isinstance(tensor, Tensor):
        return call.walker.sizes.get(other) is None
    if tensor.dim() < -end or tensor.shape[end] == 1:
        return True
    if other.op != "get_attr" or not isinstance(tensor, nn.Parameter) or tensor.shape[end] != len(label.units):
        return False
    layer, _, name = str(other.target).rpartition(".")
    axis = tensor.dim() + end
    call.walker.site(layer, name, tensor, axis, label.units)
    call.walker.labels[other] = Label(axis, label.units, call.walker.gone(tensor, axis))
    return True


def _cat(call: Call) -> Label | None:
    axis, parts = call.argument(1, "dim", 0) % call.value.dim(), []
    for part in call.argument(0, "tensors"):
        label = call.label(part)
        if label is None:
            units = call.channels.new(call.tensor(part).shape[axis])
            label = Label(axis, units, torch.zeros(len(units), dtype=torch.bool))
            call.channels.fix(label)
        parts.append(label)
    if any(label.axis != axis for label in parts):
        return None
    return Label(axis, torch.cat([label.units for label in parts]), torch.cat([label.still for label in parts]))


def _matmul(call: Call) -> Label | None:
    """Channels along a dimension of the batch, such as heads, go through; those along rows and columns are mixed."""
    operands = call.node.args[:2]
    return _batched(call, operands, lambda: torch.stack([call.zero(o) for o in operands if call.label(o)]).any(0))


def _attended(call: Call) -> Label | None:
    names = ("query", "key", "value", "attn_mask")
    query, key, value, mask = (call.argument(number, name) for number, name in enumerate(names))
    if call.label(value) is None:
        return None
    operands = [query, key, value] if mask is None else [query, key, value, mask]
    return _batched(call, operands, lambda: call.label(value).still)  # type: ignore[union-attr]


def _batched(call: Call, operands: Sequence[Any], still: Callable[[], Tensor]) -> Label | None:
    labels = [found for operand in operands if (found := call.label(operand)) is not None]
    ends = {
        label.axis - call.tensor(operand).dim() for operand in operands if (label := call.label(operand)) is not None
    }
    if len(ends) != 1 or len({len(label.units) for label in labels}) != 1 or max(ends) > -3:
        return None
    end = ends.pop()
    for other in labels[1:]:
        call.channels.join(other.units, labels[0].units)
    for operand in operands:
        if call.label(operand) is None and call.tensor(operand).dim() >= -end and call.tensor(operand).shape[end] != 1:
            return None
    return Label(call.value.dim() + end, labels[0].units, still())


# One tensor ------------------------------------------------------------------------------------------------------


def _flattened(call: Call) -> Label | None:
    return regrouped(call, [-1] * call.value.dim())


def _reduced(call: Call) -> Label | None:
    label, rank = call.source_label, call.tensor(call.source).dim()
    assert label is not None
    dims = call.argument(1, "dim")
    gone = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims or range(rank))}
    if label.axis in gone or not isinstance(call.value, Tensor):
        return None
    axis = label.axis if call.value.dim() == rank else label.axis - sum(dim < label.axis for dim in gone)
    return Label(axis, label.units, label.still)


def _softmaxed(call: Call) -> Label | None:
    label, dim = call.source_label, call.argument(1, "dim")
    assert label is not None
    return None if not isinstance(dim, int) or dim % call.value.dim() == label.axis else label


def _permuted(call: Call) -> Label | None:
    label, node, rank = call.source_label, call.node, call.value.dim()
    assert label is not None
    if node.target in ("transpose", torch.transpose):
        one, other = (call.argument(number, f"dim{number - 1}") % rank for number in (1, 2))
        return Label({one: other, other: one}.get(label.axis, label.axis), label.units, label.still)
    dims = call.argument(1, "dims")
    order = dims if isinstance(dims, tuple | list) else node.args[1:]
    return Label([dim % rank for dim in order].index(label.axis), label.units, label.still)


def _unsqueezed(call: Call) -> Label | None:
    label, dim = call.source_label, call.argument(1, "dim") % call.value.dim()
    assert label is not None
    return Label(label.axis + (dim <= label.axis), label.units, label.still)


def _squeezed(call: Call) -> Label | None:
    label, dim, shape = call.source_label, call.argument(1, "dim"), call.tensor(call.source).shape
    assert label is not None
    if not isinstance(dim, int) or dim % len(shape) == label.axis:
        return None
    return Label(label.axis - (dim % len(shape) < label.axis and shape[dim] == 1), label.units, label.still)


def _split(call: Call) -> Labels:
    """Parts of a tensor; along the channels they stay equally wide, cut by number of parts and not by width."""
    label, rank = call.source_label, call.value[0].dim()
    assert label is not None
    if call.argument(2, "dim", 0) % rank != label.axis:
        return [label] * len(call.value)
    if call.node.target not in (torch.chunk, "chunk") or len({part.shape[label.axis] for part in call.value}) != 1:
        return None
    count = len(call.value)
    call.channels.join_rows(label.units.view(count, -1))
    pairs = zip(label.units.chunk(count), label.still.chunk(count), strict=True)
    return [Label(label.axis, units, still) for units, still in pairs]


def _unbound(call: Call) -> Labels:
    label, dim = call.source_label, call.argument(1, "dim", 0) % (call.value[0].dim() + 1)
    assert label is not None
    if dim == label.axis:
        return None
    return [Label(label.axis - (dim < label.axis), label.units, label.still)] * len(call.value)


def _glu(call: Call) -> Label | None:
    """The first half of the channels times the sigmoid of the second: both halves stay equally wide."""
    label, dim = call.source_label, call.argument(1, "dim", -1) % call.value.dim()
    assert label is not None
    if dim != label.axis:
        return None
    units = call.channels.join_rows(label.units.view(2, -1))
    return Label(label.axis, units, call.zero(call.source).view(2, -1)[0])


def _item(call: Call) -> Labels:
    """An element of several outputs, or a piece of a tensor that takes all of each channel."""
    source, index = call.node.args
    found = call.walker.labels.get(source)
    if isinstance(found, list):
        return found[index] if isinstance(index, int) and abs(index) <= len(found) else None
    label, tensor = call.source_label, call.tensor(source)
    if label is None or source is not call.source or not isinstance(tensor, Tensor):
        return None
    steps = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in steps:
        at, taken = steps.index(Ellipsis), sum(step is not None for step in steps) - 1
        steps[at : at + 1] = [slice(None)] * (tensor.dim() - taken)
    axis, out = 0, 0
    for step in steps:
        if not isinstance(step, int | slice) and step is not None:
            return None
        if axis == label.axis and step is not None:
            break
        axis, out = axis + (step is not None), out + (not isinstance(step, int))
    else:
        return Label(out + label.axis - axis, label.units, label.still)
    return Label(out, label.units, label.still) if step == slice(None) else None


_SHAPES: dict[Any, Callable[[Call], Labels]] = {
    torch.flatten: _flattened,
    "flatten": _flattened,
    "permute": _permuted,
    torch.permute: _permuted,
    "transpose": _permuted,
    torch.transpose: _permuted,
    "unsqueeze": _unsqueezed,
    torch.unsqueeze: _unsqueezed,
    "squeeze": _squeezed,
    torch.squeeze: _squeezed,
    "unbind": _unbound,
    torch.unbind: _unbound,
    F.glu: _glu,
    **dict.fromkeys(_REDUCTIONS, _reduced),
    **dict.fromkeys(_SOFTMAXES, _softmaxed),
    **dict.fromkeys(_SPLITS, _split),
}
