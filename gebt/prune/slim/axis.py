"""Where channels are after a change of shape: shared by the rules for layers and for functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gebt.prune.slim.call import Call, Size
from gebt.prune.slim.channels import Label


def kept_axis(call: Call, still: Tensor) -> Label | None:
    """The label that came in, where the axis is as long as before.

    Args:
        call: the step of the trace.
        still: [C] bool, channels that are constants in what comes out.

    Returns:
        The label, or None where it cannot be followed.
    """
    source = call.source_label
    if source is None or source.axis >= call.value.dim() or call.value.shape[source.axis] != len(source.units):
        return None
    return Label(source.axis, source.units, still)


def regrouped(call: Call, sizes: Sequence[Any]) -> Label | None:
    """The label after a change of shape, when the sizes in the network's code follow the channels.

    Args:
        call: the step of the trace.
        sizes: one a dimension of what comes out; -1 is the size that torch computes.

    Returns:
        The label, or None where it cannot be followed.
    """
    label = _moved(call, sizes) if call.source_label is not None else None
    for axis, size in enumerate(sizes):
        if isinstance(size, Size):
            call.counted(size, label.units if label is not None and label.axis == axis else None)
    return label


def _follows(call: Call, size: Any, units: Tensor) -> bool:
    """Whether a size in the network's code becomes as small as these units do."""
    if isinstance(size, fx.Node):
        counted = call.walker.sizes.get(size)
        return counted is not None and torch.equal(counted, units)
    if isinstance(size, Size):
        return (size.module, size.attribute) not in call.walker.computed
    return bool(size == -1)


def _moved(call: Call, sizes: Sequence[Any]) -> Label | None:
    source, before, after = call.source_label, call.tensor(call.source).shape, call.value.shape
    assert source is not None
    axes, into = _block(before, after, source.axis)
    lead, tail = before[axes.start : source.axis].numel(), before[source.axis + 1 : axes.stop].numel()
    if len(into) == 1:
        spread = [part.view(1, -1, 1).expand(lead, -1, tail).flatten() for part in (source.units, source.still)]
        label = Label(into.start, spread[0], spread[1])
        axis = into.start
    elif lead == tail == 1:
        # One dimension becomes several: the first whose size follows has the units, which go as one.
        shape = [after[axis] for axis in into]
        for axis in into:
            parts = [part.view(shape).movedim(axis - into.start, 0).flatten(1) for part in (source.units, source.still)]
            units, still = parts
            if _follows(call, sizes[axis], units[:, 0]):
                break
        else:
            return None
        label = Label(axis, call.channels.join_rows(units.t()), still.all(1))
    else:
        return None
    if not _follows(call, sizes[axis], label.units):
        return None
    others = [size for other, size in enumerate(sizes) if other != axis and isinstance(size, fx.Node)]
    return None if any(call.walker.sizes.get(size) is not None for size in others) else label


def _block(before: torch.Size, after: torch.Size, axis: int) -> tuple[range, range]:
    """The dimensions that `axis` is rearranged with, and those that they become."""
    i = j = 0
    while True:
        i_end, j_end = i + 1, j + 1
        while (old := before[i:i_end].numel()) != (new := after[j:j_end].numel()):
            i_end, j_end = (i_end + 1, j_end) if old < new else (i_end, j_end + 1)
        if i_end == len(before) - 1 and before[-1] == 1 and j_end == len(after):
            i_end += 1
        if axis < i_end:
            return range(i, i_end), range(j, j_end)
        i, j = i_end, j_end
