"""What layers do to channels: the label of what comes out, the sites of parameters, the layers that read them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gebt.prune.slim import attention_rules
from gebt.prune.slim.axis import kept_axis, regrouped
from gebt.prune.slim.call import Call, Labels
from gebt.prune.slim.channels import Label

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TURNED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
# Channel by channel, a constant where the channel is one.
_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Tanh, nn.Hardtanh, nn.Hardswish,
    nn.Mish, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Identity, nn.MaxPool1d,
    nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
# The same, of channels that are zero only.
_PADDED = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d)


def label(call: Call) -> Labels:
    """The label of what a layer makes.

    Args:
        call: the step of the trace.

    Returns:
        The label (a list for several outputs); None where it is not known, and the channels that go in stay.
    """
    for kinds, rule in _RULES:
        if isinstance(call.layer, kinds):
            return rule(call)
    return None


def _pointwise(call: Call) -> Label | None:
    return None if call.source_label is None else kept_axis(call, call.source_label.still)


def _padded(call: Call) -> Label | None:
    return None if call.source_label is None else kept_axis(call, call.zero(call.source))


def _prelu(call: Call) -> Label | None:
    label = call.source_label
    if label is not None and call.layer.num_parameters > 1:
        call.site("weight", 0, label.units)
    return _pointwise(call)


def _flatten(call: Call) -> Labels:
    return regrouped(call, [-1] * call.value.dim()) if call.layer.start_dim == 1 else None


def _made(call: Call, axis: int, out_dim: int, in_dim: int, folds: bool) -> Label | None:
    """A layer that reads all channels and makes new ones: their axis, dimensions of the weight for out and in."""
    label = call.source_label
    if label is not None and label.axis != axis:
        return None
    if label is not None:
        call.read(part="weight", dim=in_dim, folds=folds)
        call.site("weight", in_dim, label.units)
    return _produced(call, call.units_of("weight", out_dim, call.value.shape[axis]), axis, out_dim)


def _produced(call: Call, units: Tensor, axis: int, out_dim: int) -> Label:
    call.site("weight", out_dim, units)
    if call.layer.bias is not None:
        call.site("bias", 0, units)
    return Label(axis, units, call.gone("weight", out_dim))


def _linear(call: Call) -> Label | None:
    return _made(call, call.value.dim() - 1, 0, 1, True)


def _unpadded(layer: Any) -> bool:
    """Whether a convolution sees no zeros around its input."""
    none = layer.padding == "valid" or (layer.padding != "same" and not any(layer.padding))
    return bool(none or layer.padding_mode != "zeros")


def _convolution(call: Call) -> Label | None:
    layer, label = call.layer, call.source_label
    if layer.groups == 1:
        return _made(call, 1, 0, 1, _unpadded(layer))
    if label is None or label.axis != 1:
        return None
    if layer.groups == layer.in_channels:  # depthwise: every channel is made of one alone
        times = layer.out_channels // layer.groups
        found = _produced(call, label.units.repeat_interleave(times), 1, 0)
        alone = label.still if _unpadded(layer) else call.zero(call.source) & torch.tensor(layer.bias is None)
        return Label(1, found.units, found.still | alone.repeat_interleave(times))
    # What goes from one group goes from all, so that they stay equally wide.
    call.read(part="weight", dim=1, folds=_unpadded(layer))
    call.site("weight", 1, call.channels.join_rows(label.units.view(layer.groups, -1)))
    units = call.channels.new(layer.out_channels)
    call.channels.join_rows(units.view(layer.groups, -1))
    return _produced(call, units, 1, 0)


def _turned(call: Call) -> Label | None:
    groups, label = call.layer.groups, call.source_label
    if groups == 1:
        return _made(call, 1, 1, 0, False)
    if label is None or label.axis != 1 or groups == call.layer.in_channels:
        return None
    call.read(part="weight", dim=0)
    call.channels.join_rows(label.units.view(groups, -1))
    call.site("weight", 0, label.units)
    gone = call.gone("weight", 1)  # [C_out / groups]: one slice of every group
    units = call.channels.new(len(gone))
    call.site("weight", 1, units)
    if call.layer.bias is not None:
        call.site("bias", 0, units.repeat(groups))
    return Label(1, units.repeat(groups), gone.repeat(groups))


def _batch_norm(call: Call) -> Label | None:
    return (
        None
        if call.source_label is not None and call.source_label.axis != 1
        else _norm(call, 1, ("running_mean", "running_var"))
    )


def _layer_norm(call: Call) -> Label | None:
    """Over the last dimension: it counts channels that are gone as the zeros they were, if zeros are all they were."""
    axis, layer = call.value.dim() - 1, call.layer
    if (
        len(layer.normalized_shape) != 1
        or layer.weight is None
        or (call.source_label is not None and call.source_label.axis != axis)
    ):
        return None
    if call.source_label is not None:
        label = call.source_label
        zero = call.zero(call.source)
        call.takes(call.name, label.units, zero, torch.zeros(len(zero)), torch.zeros_like(zero), None)
    return _norm(call, axis, ())


def _norm(call: Call, axis: int, buffers: tuple[str, ...]) -> Label:
    label, count = call.source_label, call.value.shape[axis]
    units, before = call.channels.new(count), call.channels.new(count) if label is None else label.units
    if label is None:
        call.channels.fixed.update(before.tolist())
    for part in ("weight", "bias", *buffers):
        if getattr(call.layer, part, None) is not None:
            call.site(part, 0, units)
    call.channels.norms.append((call.name, before, units))
    gone = torch.zeros(count, dtype=torch.bool) if call.layer.weight is None else call.gone("weight", 0)
    if axis == 1 and label is not None and call.walker.fold_constants:
        gone = gone | label.still
    return Label(axis, units, gone)


def _group_norm(call: Call) -> Label | None:
    """Groups go as one: the statistics of the others are as they were."""
    label, layer = call.source_label, call.layer
    if label is None or label.axis != 1 or layer.weight is None:
        return None
    call.channels.join_rows(label.units.view(layer.num_groups, -1).t())
    for part in ("weight", "bias"):
        if getattr(layer, part) is not None:
            call.site(part, 0, label.units)
    return Label(1, label.units, call.gone("weight", 0))


def _instance_norm(call: Call) -> Label | None:
    if call.source_label is None or call.layer.weight is not None or call.layer.running_mean is not None:
        return None
    return kept_axis(call, call.zero(call.source))


def _embedding(call: Call) -> Label | None:
    if call.layer.max_norm is not None:
        return None
    units = call.units_of("weight", 1, call.value.shape[-1])
    call.site("weight", 1, units)
    return Label(call.value.dim() - 1, units, call.gone("weight", 1))


def _recurrent(call: Call) -> Labels:
    """Units go from all stacked layers and both directions together, so that they stay equally wide."""
    layer, label = call.layer, call.source_label
    alone = len(call.node.all_input_nodes) == 1 and call.tensor(call.source).dim() == 3
    if not alone or layer.proj_size or (label is not None and label.axis != 2):
        return None
    units, gates = call.channels.new(layer.hidden_size), {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[type(layer)]
    directions = ("", "_reverse") if layer.bidirectional else ("",)
    if label is not None:
        unread = torch.stack([call.gone(f"weight_ih_l0{end}", 1) for end in directions]).all(0)
        values = call.tensor(call.source).flatten(0, 1)[0].cpu()
        call.takes(call.name, label.units, call.zero(call.source), torch.zeros_like(values), unread, None)
    still, always = torch.zeros(0, dtype=torch.bool), torch.ones(len(units), dtype=torch.bool)
    for number in range(layer.num_layers):
        incoming = label.units if number == 0 and label is not None else units.repeat(len(directions))
        for end in directions:
            if number or label is not None:
                call.site(f"weight_ih_l{number}{end}", 1, incoming)
            if number:
                unread = call.gone(f"weight_ih_l{number}{end}", 1)
                call.takes(call.name, incoming, still, torch.zeros(len(still)), unread, None)
        ends = [_cell(call, f"_l{number}{end}", units, gates) for end in directions]
        still, always = torch.cat(ends), torch.stack([always, *ends]).all(0)
    last = Label(2, units, always)  # the last states of all layers and directions one above the other
    return [Label(2, units.repeat(len(directions)), still), [last, last] if isinstance(layer, nn.LSTM) else last]


def _cell(call: Call, end: str, units: Tensor, gates: int) -> Tensor:
    """Sites of one direction of one layer; which units stay at zero: no gate is fed, and no bias."""
    gone = torch.ones(len(units), dtype=torch.bool)
    for part in (f"weight_ih{end}", f"weight_hh{end}"):
        call.site(part, 0, units, gates)
        gone &= call.gone(part, 0).view(gates, -1).all(0)
    for part in (f"bias_ih{end}", f"bias_hh{end}") if call.layer.bias else ():
        call.site(part, 0, units, gates)
        gone &= (getattr(call.layer, part).detach().cpu().view(gates, -1) == 0).all(0)
    call.site(f"weight_hh{end}", 1, units)
    call.takes(call.name, units, gone, torch.zeros(len(gone)), call.gone(f"weight_hh{end}", 1), None)
    return gone


_RULES: tuple[tuple[Any, Any], ...] = (
    (CONVS, _convolution),
    (TURNED, _turned),
    (nn.Linear, _linear),
    (_BatchNorm, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.GroupNorm, _group_norm),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    (RECURRENT, _recurrent),
    (nn.Embedding, _embedding),
    (_POINTWISE, _pointwise),
    (_PADDED, _padded),
    (nn.PReLU, _prelu),
    (nn.Flatten, _flatten),
    (nn.MultiheadAttention, attention_rules.attention),
    (attention_rules.TRANSFORMERS, attention_rules.transformer),
)
