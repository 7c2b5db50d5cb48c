"""Which channels of a network hang together: a unit for every channel of every layer, and who needs it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


class TraceError(ValueError):
    """A network, or a layer of it, whose channels cannot be followed; the message names it."""


class SlimmingError(ValueError):
    """A mask that cannot be cut out as asked; the message names the layer."""


@dataclass(frozen=True, eq=False)
class Label:
    """The units [C] of a tensor's channels along `axis`, and which of them hold the same number whatever comes in.

    A tensor without a label has channels that all stay.
    """

    axis: int
    units: Tensor
    still: Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """A dimension of a parameter or buffer: `units` of its slices, `blocks` times over."""

    layer: str
    name: str
    dim: int
    units: Tensor
    blocks: int = 1

    @property
    def tensor(self) -> str:
        """The full name of the parameter or buffer."""
        return f"{self.layer}.{self.name}".lstrip(".")


@dataclass(frozen=True, eq=False)
class Read:
    """Units at a layer that reads them: which it does without, after `constants` [C] of them went into its bias."""

    layer: str
    units: Tensor
    spared: Tensor
    constants: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Count:
    """An attribute of a module that the network's code uses as a size: of `units`, or one that stays (None)."""

    module: str
    attribute: str
    value: int
    units: Tensor | None


@dataclass
class Channels:
    """All units of a network: where they are kept (`sites`), read, and what hangs on what.

    `norms`: units before and after a batch or layer norm, which may drop channels of a stream that goes on elsewhere.
    `heads`: of attention layers. `counts`: sizes in the network's code. `fixed`: units that must stay. `parents`:
    union-find.
    """

    sites: list[Site] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    norms: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    heads: dict[str, Tensor] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)
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

    def join_rows(self, units: Tensor) -> Tensor:
        """Makes the units of every column of [R, C] go together; those of the first row."""
        for row in units[1:]:
            self.join(row, units[0])
        return units[0]

    def fix(self, label: Label | None) -> None:
        """The channels of this tensor must stay."""
        if label is not None:
            self.fixed.update(label.units.tolist())


def out_dim(layer: nn.Module, name: str) -> int:
    """The dimension of a layer's parameter that counts what comes out of it."""
    turned = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Embedding)
    return 1 if turned and name == "weight" else 0


def empty_slices(kept: Tensor, dim: int) -> Tensor:
    """Which slices of a mask along `dim` keep no entry: boolean, one a slice."""
    return ~kept.transpose(0, dim).flatten(1).any(1) if kept.dim() > 1 else ~kept
