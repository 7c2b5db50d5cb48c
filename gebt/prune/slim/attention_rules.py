"""What attention layers do to channels: all of a head goes, or nothing; feed-forward units go one by one."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from gebt.prune.slim.call import Call, Labels
from gebt.prune.slim.channels import Label

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
TRANSFORMERS = (*_LAYERS, nn.TransformerEncoder, nn.TransformerDecoder, nn.Transformer)


def attention(call: Call) -> Labels:
    """`nn.MultiheadAttention`: its heads, the channels that it reads and those that it makes.

    A head goes when all rows of its values are pruned, or all of its columns of the output. With weights that the
    network reads, or extra keys and values (`bias_k`, `add_zero_attn`), the heads stay.

    Args:
        call: the step of the trace.

    Returns:
        Labels of the output and of the weights; None where they cannot be followed.
    """
    names, layer = ("query", "key", "value"), call.layer
    inputs = [call.argument(number, name) for number, name in enumerate(names)]
    labels = [call.label(argument) for argument in inputs]
    if layer.bias_k is not None or layer.add_zero_attn:
        return None
    units = _heads(call)
    weighted = [user for user in call.node.users if user.args[1:] == (1,) and user.users]
    if weighted and call.argument(4, "need_weights", True):
        call.channels.fixed.update(units.tolist())
    if any(label is None or label.axis != call.value[0].dim() - 1 for label in labels):
        for label in labels:
            call.channels.fix(label)
    else:
        for argument, label, part in zip(inputs, labels, _projections(layer), strict=True):
            assert label is not None
            call.read(part=part, folds=None, argument=argument)
            call.site(part, 1, label.units)
    out = _inside(call, "out_proj")
    made = out.units_of("weight", 0, layer.out_proj.out_features)
    for part in _parts(layer.out_proj):
        out.site(part, 0, made)
    return [Label(call.value[0].dim() - 1, made, out.gone("weight", 0)), None]


def transformer(call: Call) -> Labels:
    """torch's transformers: heads and feed-forward units go, the width of the stream stays.

    Args:
        call: the step of the trace.

    Returns:
        None: the channels that come out all stay.
    """
    for name, module in call.layer.named_modules():
        inside = _inside(call, name)
        if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
            _heads(inside)
        if isinstance(module, _LAYERS):
            _feed_forward(inside)
    return None


def _inside(call: Call, name: str) -> Call:
    """The same call for a layer inside of this one."""
    full = f"{call.name}.{name}".strip(".")
    return dataclasses.replace(call, name=full, layer=call.layer.get_submodule(name))


def _parts(layer: nn.Module) -> list[str]:
    return [name for name, _ in layer.named_parameters(recurse=False)]


def _projections(layer: nn.MultiheadAttention) -> list[str]:
    """The names of the weights of queries, keys and values."""
    return ["in_proj_weight"] * 3 if layer._qkv_same_embed_dim else [f"{name}_proj_weight" for name in "qkv"]


def _heads(call: Call) -> Tensor:
    """A unit for every head, with the rows and columns that belong to it."""
    layer, out = call.layer, _inside(call, "out_proj")
    heads = call.channels.new(layer.num_heads)
    rows = heads.repeat_interleave(layer.head_dim)
    call.channels.heads[call.name] = heads
    for part in _parts(layer):
        call.site(part, 0, rows, 3 if part.startswith("in_proj") else 1)
    out.site("weight", 1, rows)
    gone, bias = call.gone(_projections(layer)[2], 0)[-len(rows) :], torch.zeros(len(rows))
    if layer.in_proj_bias is not None:
        bias = layer.in_proj_bias.detach().cpu()[-len(rows) :]
    still = gone.view(layer.num_heads, -1).all(1).repeat_interleave(layer.head_dim)
    call.takes(out.name, rows, still, bias, out.gone("weight", 1), True)
    if call.name in call.walker.ignored:
        call.channels.fixed.update(heads.tolist())
    return heads


def _feed_forward(call: Call) -> None:
    """The units between the two linear layers of a transformer's layer."""
    first, second = _inside(call, "linear1"), _inside(call, "linear2")
    units = first.units_of("weight", 0, first.layer.out_features)
    for part in _parts(first.layer):
        first.site(part, 0, units)
    second.site("weight", 1, units)
    bias = torch.zeros(len(units)) if first.layer.bias is None else first.layer.bias.detach()
    constants = call.layer.activation(bias).cpu()
    call.takes(second.name, units, first.gone("weight", 0), constants, second.gone("weight", 1), True)
    if first.name in call.walker.ignored:
        call.channels.fixed.update(units.tolist())
