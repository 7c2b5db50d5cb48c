"""Slimming: what a channel mask prunes is taken out of the network, which becomes smaller and faster for real."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gebt.prune.channels import Channels, Site
from gebt.prune.mask import Mask
from gebt.prune.tracing import channels_of

# Attributes of a layer that name the size of its weight's dimensions, by dimension.
_OUT_FIRST, _IN_FIRST = {0: "out_channels", 1: "in_channels"}, {0: "in_channels", 1: "out_channels"}
_SIZES: dict[type[nn.Module], dict[int, str]] = {
    nn.Linear: {0: "out_features", 1: "in_features"},
    nn.Embedding: {1: "embedding_dim"},
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _OUT_FIRST),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _IN_FIRST),
}


class SlimmingError(ValueError):
    """A mask that cannot be cut out as asked; the message names the layer."""


@dataclass(frozen=True)
class Plan:
    """What slimming does: for each tensor its shape before and after, and where batch norms choose among channels."""

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    chosen: dict[str, tuple[int, int]]

    @property
    def parameters(self) -> tuple[int, int]:
        """Entries before and after."""
        before, after = zip(*self.shapes.values(), strict=True)
        return tuple(sum(torch.Size(shape).numel() for shape in shapes) for shapes in (before, after))  # type: ignore[return-value]

    def __str__(self) -> str:
        width = max(map(len, self.shapes), default=0)
        changed = {name: (list(old), list(new)) for name, (old, new) in self.shapes.items() if old != new}
        lines = [f"{name:{width}}  {old} -> {new}" for name, (old, new) in changed.items()]
        lines += [f"{name:{width}}  chooses {new} of {old} channels" for name, (old, new) in self.chosen.items()]
        return "\n".join([*lines, f"{self.parameters[0]} -> {self.parameters[1]} entries"])


class ChosenBatchNorm(nn.Module):
    """A batch norm of some of the channels that come in: those of a residual stream that the layer behind it reads.

    Scales, shifts and statistics have the names they had; `index` says which channels.
    """

    index: Tensor

    def __init__(self, norm: Any, index: Tensor) -> None:
        super().__init__()
        self._kind, self.momentum, self.eps = type(norm).__name__, norm.momentum, norm.eps
        for name, parameter in norm.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """[B, kept, ...] of x [B, C, ...]."""
        momentum = 0.0 if self.momentum is None else self.momentum
        return nn.functional.batch_norm(
            x.index_select(1, self.index), self.running_mean, self.running_var, getattr(self, "weight", None),  # type: ignore[arg-type]
            getattr(self, "bias", None), self.training or self.running_mean is None, momentum, self.eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """As a batch norm shows itself."""
        return f"{self._kind}, {self.index.numel()} channels"


def masked_channels(model: nn.Module, mask: Mask) -> nn.Module:
    """A copy in which the pruned channels are zero: rows of weights, scales, and the bias beside them.

    What `slim` takes out: a channel counts as pruned when no entry of its slice of the mask is kept.
    """
    network = copy.deepcopy(model)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, gone in _pruned(model, mask).items():
            parameters[name].transpose(0, _out_dim(network, name))[gone.to(parameters[name].device)] = 0
            layer, _, part = name.rpartition(".")
            beside = parameters.get(f"{layer}.{part.replace('weight', 'bias')}".lstrip("."))
            if beside is not None and beside is not parameters[name]:
                beside[gone.to(beside.device)] = 0
    return network


def slim(
    model: nn.Module,
    mask: Mask,
    *,
    example: Any,
    round_to: int = 1,
    ignored: Iterable[str] = (),
    emptied: Literal["keep one", "refuse"] = "keep one",
) -> nn.Module:
    """The network without the channels that `mask` prunes; equal to `masked_channels(model, mask)` in its outputs.

    `mask`: over batch-norm scales, or over weights, whose channel goes when all of its entries are pruned. A channel
    goes where nothing reads more than zeros of it: on a residual stream when every branch prunes it; otherwise a batch
    norm that prunes it there chooses among the channels (`ChosenBatchNorm`). What layer norms read stays, as their
    statistics would change. `example`: an input of the network. `round_to`: widths are multiples of it, fewer channels
    going. `ignored`: layers that keep their channels. `emptied`: what to do for a layer that would lose all of them.
    The model is left as it is. Raises `TraceError` and `SlimmingError`.
    """
    return _Cut(model, mask, example, round_to, ignored, emptied).network()


def plan(
    model: nn.Module,
    mask: Mask,
    *,
    example: Any,
    round_to: int = 1,
    ignored: Iterable[str] = (),
    emptied: Literal["keep one", "refuse"] = "keep one",
) -> Plan:
    """What `slim` would do, without doing it; print it."""
    return _Cut(model, mask, example, round_to, ignored, emptied).plan()


def _pruned(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    """For every tensor of the mask which of its channels, those that come out, have no kept entry."""
    parameters, found = dict(model.named_parameters()), {}
    for name, kept in mask.items():
        if name not in parameters or parameters[name].shape != kept.shape:
            got = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise SlimmingError(f"mask tensor {name!r} (got {got} in the model), expected shape {tuple(kept.shape)}")
        found[name] = ~kept.transpose(0, _out_dim(model, name)).flatten(1).any(1) if kept.dim() > 1 else ~kept
    return {name: gone.cpu() for name, gone in found.items()}


def _out_dim(model: nn.Module, name: str) -> int:
    """The dimension of a parameter that counts what comes out of its layer."""
    layer = model.get_submodule(name.rpartition(".")[0])
    turned = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return 1 if turned and name.endswith("weight") else 0


class _Cut:
    """Which units go, and the network or the plan that this leaves."""

    def __init__(
        self, model: nn.Module, mask: Mask, example: Any, round_to: int, ignored: Iterable[str], emptied: str
    ) -> None:
        if round_to < 1 or emptied not in ("keep one", "refuse"):
            got = (round_to, emptied)
            raise SlimmingError(f"round_to, emptied (got {got}), expected at least 1, and 'keep one' or 'refuse'")
        self.pruned = masked_channels(model, mask)
        self.channels: Channels = channels_of(self.pruned, example, _pruned(model, mask), ignored)
        self._alive: list[nn.Parameter] = []  # so that no new parameter gets the id of an old one
        self.gone = self._removable()
        self._spare(round_to, emptied)
        self._settle_norms()

    def plan(self) -> Plan:
        """Shapes before and after."""
        sizes = {name: list(tensor.shape) for name, tensor in self.pruned.state_dict().items()}
        new = copy.deepcopy(sizes)
        for site in self.channels.sites:
            new[f"{site.layer}.{site.name}".lstrip(".")][site.dim] = len(self._kept(site))
        shapes = {name: (tuple(sizes[name]), tuple(new[name])) for name in sizes}
        chosen = {name: (len(before), len(index)) for name, before, index in self._choices()}
        return Plan(shapes, chosen)

    def network(self) -> nn.Module:
        """The smaller network."""
        choices = {name: index for name, _, index in self._choices()}
        sites: dict[str, dict[str, list[Site]]] = {}
        for site in self.channels.sites:
            sites.setdefault(site.layer, {}).setdefault(site.name, []).append(site)
        tied: dict[int, nn.Parameter] = {}
        for layer_name, tensors in sites.items():
            layer = self.pruned.get_submodule(layer_name)
            for name, own in tensors.items():
                self._take(layer, name, own, tied)
            _resize(layer)
            if layer_name in choices:
                parent, _, child = layer_name.rpartition(".")
                setattr(self.pruned.get_submodule(parent), child, ChosenBatchNorm(layer, choices[layer_name]))
        return self.pruned

    def _take(self, layer: nn.Module, name: str, sites: list[Site], tied: dict[int, nn.Parameter]) -> None:
        """Puts what stays of a tensor into its place; one and the same parameter where it was one."""
        tensor = getattr(layer, name)
        if id(tensor) in tied:
            setattr(layer, name, tied[id(tensor)])
            return
        smaller = tensor.detach()
        for site in sites:
            smaller = smaller.index_select(site.dim, self._kept(site).to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            smaller = tied[id(tensor)] = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
            self._alive.append(tensor)
        setattr(layer, name, smaller)

    def _removable(self) -> set[int]:
        """Roots of units of which every reader reads zeros alone."""
        channels = self.channels
        needed = {channels.root(unit) for unit in channels.fixed}
        for units, zero in channels.reads:
            needed.update(channels.roots(units[~zero]).tolist())
        # Units before a norm are needed where a unit behind it is; from the last norm to the first.
        for _, before, after in reversed(channels.norms):
            behind = channels.roots(after).tolist()
            pairs = zip(channels.roots(before).tolist(), behind, strict=True)
            needed.update(root for root, own in pairs if own in needed)
        return {channels.root(unit) for unit in range(len(channels.parents))} - needed

    def _spare(self, round_to: int, emptied: str) -> None:
        """Gives channels back where a layer would be empty or its width no multiple."""
        for site in self.channels.sites:
            roots = self.channels.roots(site.units).tolist()
            left = sum(root not in self.gone for root in roots)
            if not left and emptied == "refuse":
                raise SlimmingError(
                    f"layer {site.layer!r} (got all {len(roots)} channels of {site.name!r} pruned), expected one to "
                    "stay; prune fewer, or emptied='keep one'"
                )
            wanted = max(1, -(-left // round_to) * round_to)
            for root in dict.fromkeys(root for root in roots if root in self.gone):
                if left >= wanted:
                    break
                self.gone.discard(root)
                left = sum(own not in self.gone for own in roots)

    def _settle_norms(self) -> None:
        """A channel given back behind a norm is given back before it."""
        for _, before, after in reversed(self.channels.norms):
            pairs = zip(self.channels.roots(before).tolist(), self.channels.roots(after).tolist(), strict=True)
            self.gone -= {own for own, behind in pairs if behind not in self.gone}

    def _stay(self, units: Tensor) -> Tensor:
        return torch.tensor([root not in self.gone for root in self.channels.roots(units).tolist()], dtype=torch.bool)

    def _kept(self, site: Site) -> Tensor:
        """Indices of the slices that stay."""
        return self._stay(site.units).repeat(site.blocks).nonzero().squeeze(1)

    def _choices(self) -> list[tuple[str, Tensor, Tensor]]:
        """Norms that drop channels which come in: name, what comes in, which of it."""
        found = []
        for name, before, after in self.channels.norms:
            comes, stays = self._stay(before), self._stay(after)
            if bool((comes & ~stays).any()):
                found.append((name, before[comes], stays[comes].nonzero().squeeze(1)))
        return found


def _resize(layer: Any) -> None:
    """Brings a layer's own numbers in line with its tensors."""
    names = next((own for kind, own in _SIZES.items() if issubclass(type(layer), kind)), {})
    grouped = "groups" in vars(layer) and layer.groups > 1
    if grouped and layer.groups == layer.in_channels:  # depthwise: as many groups as channels
        layer.groups = layer.weight.shape[0] // (layer.out_channels // layer.groups)
    for dim, attribute in names.items():
        setattr(layer, attribute, layer.weight.shape[dim])
    if grouped:
        layer.in_channels = layer.weight.shape[1] * layer.groups
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
        layer.num_features = layer.weight.shape[0]
    if issubclass(type(layer), nn.GRU | nn.LSTM):
        layer.hidden_size, layer.input_size = layer.weight_hh_l0.shape[1], layer.weight_ih_l0.shape[1]
        layer.flatten_parameters()
