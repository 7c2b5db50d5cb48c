"""Which channels of a network hang together: a unit for every channel of every layer, and who needs it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


class TraceError(ValueError):
    """A network, or a layer of it, whose channels cannot be followed; the message names it."""


@dataclass(frozen=True, eq=False)
class Label:
    """The units [C] of a tensor's channels along `axis`, and which of them are known to be zero.

    A tensor without a label has channels that all stay.
    """

    axis: int
    units: Tensor
    zero: Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """A dimension of a parameter or buffer, or of a layer's input: `units` of its slices, each `block` times over."""

    layer: str
    name: str
    dim: int
    units: Tensor
    blocks: int = 1


@dataclass
class Channels:
    """All units of a network: where they are kept (`sites`), read, and what hangs on what.

    `reads`: units at a consumer, and whether they are zero there. `norms`: units before and after a batch norm, which
    may drop channels of a stream that goes on elsewhere. `fixed`: units that must stay. `parents`: union-find.
    """

    sites: list[Site] = field(default_factory=list)
    reads: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    norms: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    parents: list[int] = field(default_factory=list)

    def new(self, count: int) -> Tensor:
        """So many new units."""
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def root(self, unit: int) -> int:
        """The one that stands for all that go together with `unit`."""
        while self.parents[unit] != unit:
            self.parents[unit] = self.parents[self.parents[unit]]
            unit = self.parents[unit]
        return unit

    def roots(self, units: Tensor) -> Tensor:
        """The same for a tensor of units."""
        return torch.tensor([self.root(unit) for unit in units.tolist()], dtype=torch.long)

    def join(self, first: Tensor, second: Tensor) -> None:
        """Makes units go together pair by pair."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self.parents[self.root(one)] = self.root(other)

    def fix(self, label: Label | None) -> None:
        """The channels of this tensor must stay."""
        if label is not None:
            self.fixed.update(label.units.tolist())
