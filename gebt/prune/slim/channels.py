"""Which channels of a network belong together: a unit for every channel of every layer, and which layers need it."""

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
    """The units of a tensor's channels. A tensor without a label has channels that all stay.

    Attributes:
        axis: the tensor's dimension of channels.
        units: [C], the number of each channel's unit.
        still: [C] bool, channels that hold the same number whatever comes in.
    """

    axis: int
    units: Tensor
    still: Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """A dimension of a parameter or buffer, whose slices belong to units.

    Attributes:
        layer: its full name.
        name: of the parameter or buffer in the layer.
        dim: the dimension.
        units: of the slices, in order.
        blocks: how many times over (gates of a recurrent layer, say).
    """

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
    """Units at a layer that reads them.

    Attributes:
        layer: its full name.
        units: [C].
        spared: [C] bool, those that it does without, after `constants` went into its bias.
        constants: [C], or None where nothing is folded.
    """

    layer: str
    units: Tensor
    spared: Tensor
    constants: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Count:
    """An attribute of a module that the network's code uses as a size.

    Attributes:
        module: its full name.
        attribute: the name.
        value: the number today.
        units: those that it counts; None for a size that stays.
    """

    module: str
    attribute: str
    value: int
    units: Tensor | None


@dataclass
class Channels:
    """All units of a network: where they are stored, which layers read them, and which belong together.

    Attributes:
        sites: dimensions of parameters and buffers.
        reads: units by the layers that read them.
        norms: name, units before and units after a batch or layer norm, which may drop channels of a stream that goes
            on elsewhere.
        heads: units of attention layers, by name.
        counts: sizes in the network's code.
        fixed: units that must stay.
        parents: union-find over the units.

    Example:
        >>> channels = Channels()
        >>> first, second = channels.new(2), channels.new(2)
        >>> channels.join(first, second)
        >>> channels.roots(torch.cat([first, second])).tolist()
        [2, 3, 2, 3]
    """

    sites: list[Site] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    norms: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    heads: dict[str, Tensor] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    parents: list[int] = field(default_factory=list)

    def new(self, count: int) -> Tensor:
        """Makes new units.

        Args:
            count: how many.

        Returns:
            [count], their numbers.
        """
        first = len(self.parents)
        self.parents.extend(range(first, first + count))
        return torch.arange(first, first + count)

    def root(self, unit: int) -> int:
        """Finds the unit that stands for all that belong together with one.

        Args:
            unit: its number.

        Returns:
            The number of the root.
        """
        while self.parents[unit] != unit:
            self.parents[unit] = self.parents[self.parents[unit]]
            unit = self.parents[unit]
        return unit

    def roots(self, units: Tensor) -> Tensor:
        """Finds the roots of several units.

        Args:
            units: [C].

        Returns:
            [C].
        """
        return torch.tensor([self.root(unit) for unit in units.tolist()], dtype=torch.long)

    def join(self, first: Tensor, second: Tensor) -> None:
        """Makes units belong together, pair by pair.

        Args:
            first: [C].
            second: [C]; its roots stand for both.
        """
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            self.parents[self.root(one)] = self.root(other)

    def join_rows(self, units: Tensor) -> Tensor:
        """Makes the units of every column belong together.

        Args:
            units: [R, C].

        Returns:
            [C], those of the first row.
        """
        for row in units[1:]:
            self.join(row, units[0])
        return units[0]

    def fix(self, label: Label | None) -> None:
        """Makes the channels of a tensor stay.

        Args:
            label: the tensor's, or None.
        """
        if label is not None:
            self.fixed.update(label.units.tolist())


def out_dim(layer: nn.Module, name: str) -> int:
    """The dimension of a layer's parameter that counts its output channels.

    Args:
        layer: that has the parameter.
        name: the parameter's.

    Returns:
        1 for weights of transposed convolutions and embeddings, else 0.

    Example:
        >>> out_dim(nn.Linear(2, 3), "weight"), out_dim(nn.ConvTranspose2d(2, 3, 1), "weight")
        (0, 1)
    """
    turned = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d | nn.Embedding)
    return 1 if turned and name == "weight" else 0


def empty_slices(kept: Tensor, dim: int) -> Tensor:
    """Which slices of a mask keep no entry.

    Args:
        kept: boolean mask.
        dim: the dimension that counts the slices.

    Returns:
        [size of `dim`] bool.

    Example:
        >>> empty_slices(torch.tensor([[True, False], [False, False]]), 0).tolist()
        [False, True]
    """
    return ~kept.transpose(0, dim).flatten(1).any(1) if kept.dim() > 1 else ~kept
