"""One step of a traced network, as the rules for layers and functions see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from gebt.prune.slim.channels import Channels, Count, Label, Read, SlimmingError

Labels = Label | list[Any] | None


class Size(int):
    """An integer attribute of a module, which keeps its name while the network is traced."""

    module: str
    attribute: str
    computed: set[tuple[str, str]]

    @staticmethod
    def of(value: int, module: str, attribute: str, computed: set[tuple[str, str]]) -> Size:
        """Makes one of a module's attribute.

        Args:
            value: the number.
            module: full name of the module.
            attribute: its name.
            computed: collects module and attribute of the sizes that the network's code does more with than pass them
                on.

        Returns:
            The number with its name.

        Example:
            >>> computed = set()
            >>> Size.of(4, "block", "width", computed) * 2, computed
            (8, {('block', 'width')})
        """
        size = Size(value)
        size.module, size.attribute, size.computed = module, attribute, computed
        return size


def _noted(name: str) -> Any:
    def operation(self: Size, *others: Any) -> Any:
        self.computed |= {(size.module, size.attribute) for size in (self, *others) if isinstance(size, Size)}
        return getattr(int(self.__int__()), name)(*others)

    return operation


for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "truediv", "rtruediv", "mod", "rmod", "pow",
    "rpow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "bool", "index", "float",
):  # fmt: skip
    setattr(Size, f"__{_name}__", _noted(f"__{_name}__"))
Size.__hash__ = int.__hash__  # type: ignore[method-assign]


class Trace(Protocol):
    """What a call needs of the `tracing.Walker` that makes it."""

    channels: Channels
    ignored: set[str]
    fold_constants: bool
    computed: set[tuple[str, str]]
    env: dict[Any, Any]
    labels: dict[Any, Labels]
    sizes: dict[Any, Tensor | None]
    shared: dict[tuple[int, int], Tensor]

    def site(self, layer: str, name: str, tensor: Tensor, dim: int, units: Tensor, blocks: int = 1) -> None:
        """Notes that a tensor has units along a dimension.

        Args:
            layer: full name of the layer.
            name: the tensor's in the layer.
            tensor: the parameter or buffer.
            dim: the dimension.
            units: of its slices.
            blocks: how many times over.
        """
        ...

    def gone(self, parameter: Tensor, dim: int) -> Tensor:
        """Which slices of a parameter the mask has pruned.

        Args:
            parameter: of the network.
            dim: counts the slices.

        Returns:
            [size of `dim`] bool.
        """
        ...


@dataclass(frozen=True, eq=False)
class Call:
    """A step of the trace: a layer or a function, what goes in and what comes out.

    Attributes:
        walker: the trace.
        node: of the `torch.fx` graph.
        value: what comes out.
        name: full name of the layer; empty for a function.
        layer: the layer; None for a function.
    """

    walker: Trace
    node: Any
    value: Any
    name: str = ""
    layer: Any = None

    @property
    def channels(self) -> Channels:
        """The network's channels."""
        return self.walker.channels

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of the step, as the trace has it.

        Args:
            position: its position; `self` of a method is the first.
            name: its name as a keyword.
            default: what it is where the step does not name it.

        Returns:
            A node or a plain value.
        """
        node = self.node
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    @property
    def source(self) -> Any:
        """The node of the first tensor that goes in."""
        inputs = self.node.all_input_nodes
        return inputs[0] if inputs else None

    @cached_property
    def source_label(self) -> Label | None:
        """The label of `source`."""
        label = self.walker.labels.get(self.source)
        return label if isinstance(label, Label) else None

    def label(self, argument: Any) -> Label | None:
        """The label of an argument.

        Args:
            argument: a node or a plain value.

        Returns:
            The label; None for a number.
        """
        label = self.walker.labels.get(argument) if isinstance(argument, fx.Node) else None
        return label if isinstance(label, Label) else None

    def tensor(self, argument: Any) -> Any:
        """The value of an argument.

        Args:
            argument: a node or a plain value.

        Returns:
            What the node made, or the plain value.
        """
        return self.walker.env[argument] if isinstance(argument, fx.Node) else argument

    def gone(self, part: str, dim: int) -> Tensor:
        """Which slices of the layer's parameter the mask has pruned.

        Args:
            part: the parameter's name.
            dim: counts the slices.

        Returns:
            [size of `dim`] bool.
        """
        return self.walker.gone(getattr(self.layer, part), dim)

    def zero(self, argument: Any) -> Tensor:
        """Which channels of an argument are known to be zero.

        Args:
            argument: a node with a label.

        Returns:
            [C] bool.
        """
        label = self.label(argument)
        assert label is not None
        return label.still & (_by_channel(self.tensor(argument), label) == 0).all(1)

    def read(self, *, part: str = "", dim: int = 1, folds: bool | None = False, argument: Any = None) -> None:
        """Notes that the layer reads an argument.

        Args:
            part: the parameter that reads it; empty for none.
            dim: the parameter's dimension whose slices read the channels.
            folds: as in `takes`.
            argument: the node that is read; default the source.

        Raises:
            SlimmingError: as `takes`.
        """
        node = self.source if argument is None else argument
        label = self.label(node)
        if label is None:
            return
        unread = self.gone(part, dim) if part else torch.zeros(1, dtype=torch.bool)
        values = _by_channel(self.tensor(node), label)
        # The same number everywhere, to rounding: a mean of equal numbers is one of them to rounding only.
        alike = label.still & torch.isclose(values, values[:, :1]).all(1)
        self.takes(self.name, label.units, alike, values[:, 0], unread.repeat(len(label.units) // len(unread)), folds)

    def takes(
        self, name: str, units: Tensor, still: Tensor, constants: Tensor, unread: Tensor, folds: bool | None
    ) -> None:
        """Notes that a layer reads units, some of which are constants.

        Args:
            name: the layer's.
            units: [C].
            still: [C] bool, those that are constants.
            constants: [C], their numbers.
            unread: [C] bool, those that the layer's mask does not read.
            folds: whether the layer's bias can take the constants up; None: it has none, and they matter to it.

        Raises:
            SlimmingError: when constants are to be folded and the layer's bias cannot take them.
        """
        spared = unread | (still & (constants == 0))
        put = still & ~spared
        if not self.walker.fold_constants or folds is None or not bool(put.any()):
            self.channels.reads.append(Read(name, units, spared))
            return
        if not folds:
            raise SlimmingError(
                f"layer {name!r} (got {int(put.sum())} channels that are constants but not zero), expected none: no "
                "bias of this layer equals them exactly (zero padding, or not linear); shifts='zero'"
            )
        self.channels.reads.append(Read(name, units, spared | put, torch.where(put, constants, 0)))

    def site(self, part: str, dim: int, units: Tensor, blocks: int = 1) -> None:
        """Notes that the layer's parameter has units along a dimension.

        Args:
            part: the parameter's name.
            dim: the dimension.
            units: of its slices.
            blocks: how many times over.
        """
        self.walker.site(self.name, part, getattr(self.layer, part), dim, units, blocks)

    def units_of(self, part: str, dim: int, count: int) -> Tensor:
        """New units of a parameter's dimension, or those that another layer with the same parameter has for it.

        Args:
            part: the parameter's name.
            dim: the dimension.
            count: its size.

        Returns:
            [count].
        """
        return self.walker.shared.setdefault((id(getattr(self.layer, part)), dim), self.channels.new(count))

    def counted(self, size: Size, units: Tensor | None) -> None:
        """Notes that the network's code uses an attribute as a number of units.

        Args:
            size: the attribute.
            units: those that it counts; None for a size that stays.
        """
        self.channels.counts.append(Count(size.module, size.attribute, int(size.__int__()), units))


def _by_channel(value: Tensor, label: Label) -> Tensor:
    return value.movedim(label.axis, 0).reshape(value.shape[label.axis], -1).cpu()
