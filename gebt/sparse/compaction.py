"""Compaction: a masked network as the smaller network it is, exactly.

A unit that no kept weight reads adds nothing to any output, so it goes, with everything that only it needed: first the
units of the last hidden layer, then those before, then the input features. What is removed had no say in outputs and
received no gradient, so outputs and gradients of what stays are those of the masked network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Group:
    """Units that live or die together: one hidden layer, one residual stream, or the input features.

    `made`: the (tensor, dimension) pairs whose slices produce unit u: weight rows, biases, normalization scales and
    statistics. `read`: those whose slices consume it. A network lists its groups from input to output.
    """

    name: str
    made: list[tuple[str, int]] = field(default_factory=list)
    read: list[tuple[str, int]] = field(default_factory=list)

    def size(self, state: Mapping[str, Tensor]) -> int:
        """Number of units."""
        name, dim = self.read[0]
        return state[name].shape[dim]


def check_pruned_are_zero(state: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> None:
    """Raises `ValueError` naming the tensor whose pruned entries are not zero: dropping them would change outputs."""
    for name, kept in mask.items():
        wrong = int(torch.count_nonzero(state[name][~kept.to(state[name].device)]))
        if wrong:
            raise ValueError(
                f"compaction (got {wrong} non-zero pruned entries in {name!r}), expected zeros, since removing "
                "them would change the output there; apply the mask to the weights first"
            )


def live_units(groups: Sequence[Group], state: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For every group the indices of the units that some output still depends on, ascending.

    A unit is live when a kept weight reads it into something live. A group that nothing reads keeps its first unit, so
    that no tensor is left without entries. `mask` holds tensors [out, in] by name; tensors it lacks are kept whole.
    """
    kept = {name: mask[name].to(tensor.device) if name in mask else None for name, tensor in state.items()}
    live: dict[str, Tensor] = {}
    makers = {(name, dim): group.name for group in groups for name, dim in group.made}
    for group in reversed(groups):
        size = group.size(state)
        needed = torch.zeros(size, dtype=torch.bool, device=state[group.read[0][0]].device)
        among: list[tuple[Tensor, int]] = []  # what units of one stream read of each other
        for name, dim in group.read:
            entries = kept[name]
            if entries is None:
                entries = torch.ones_like(state[name], dtype=torch.bool)
            reader = makers.get((name, 1 - dim))
            if reader == group.name:
                among.append((entries, dim))
                continue
            if reader in live:
                entries = entries.index_select(1 - dim, live[reader])
            needed |= entries.any(1 - dim)
        before = -1
        while among and (count := int(needed.sum())) > before:
            before, alive = count, needed.nonzero().squeeze(1)
            for entries, dim in among:
                needed |= entries.index_select(1 - dim, alive).any(1 - dim)
        if not bool(needed.any()):
            needed[0] = True
        live[group.name] = needed.nonzero().squeeze(1)
    return {group.name: live[group.name] for group in groups}


def sliced(tensors: Mapping[str, Tensor], groups: Sequence[Group], live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with only the live units of every group; tensors of no group stay whole."""
    out = dict(tensors)
    for group, name, dim in _parts(groups, tensors):
        out[name] = out[name].index_select(dim, live[group].to(out[name].device))
    return {name: tensor.contiguous() for name, tensor in out.items()}


def scattered(
    small: Mapping[str, Tensor], full: Mapping[str, Tensor], groups: Sequence[Group], live: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The reverse of `sliced`: the tensors of `full` with the live units replaced by those of `small`."""
    out = {name: tensor.detach().clone() for name, tensor in full.items()}
    where: dict[str, list[Tensor]] = {
        name: [torch.arange(size, device=tensor.device) for size in tensor.shape] for name, tensor in out.items()
    }
    for group, name, dim in _parts(groups, out):
        where[name][dim] = live[group].to(out[name].device)
    for name, tensor in small.items():
        if tensor.dim():
            out[name][torch.meshgrid(*where[name], indexing="ij")] = tensor.detach().to(out[name].device)
        else:
            out[name] = tensor.detach().clone()
    return out


def _parts(groups: Sequence[Group], tensors: Mapping[str, Tensor]) -> list[tuple[str, str, int]]:
    return [(group.name, name, dim) for group in groups for name, dim in (*group.made, *group.read) if name in tensors]
