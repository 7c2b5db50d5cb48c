"""Slimming: takes the channels that a mask prunes out of a network, which becomes smaller and faster for real."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gebt.prune.mask import Mask
from gebt.prune.slim.channels import Channels, Site, SlimmingError, empty_slices, out_dim
from gebt.prune.slim.layers import CountedNorm, IndexedBatchNorm, SlimAttention
from gebt.prune.slim.tracing import channels_of

# Attributes of a layer that name the size of its weight's dimensions, by dimension.
_OUT_FIRST, _IN_FIRST = {0: "out_channels", 1: "in_channels"}, {0: "in_channels", 1: "out_channels"}
_SIZES: dict[type[nn.Module], dict[int, str]] = {
    nn.Linear: {0: "out_features", 1: "in_features"},
    nn.Embedding: {1: "embedding_dim"},
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _OUT_FIRST),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _IN_FIRST),
}


@dataclass(frozen=True)
class Plan:
    """What slimming does; print it.

    Attributes:
        shapes: of each tensor, by name: before and after.
        chosen: norms that choose among channels, by name: how many come in, and how many of them go out.
    """

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


Shifts = Literal["zero", "fold"]


def masked_channels(model: nn.Module, mask: Mask, *, shifts: Shifts = "zero") -> nn.Module:
    """Makes a copy in which the pruned channels are zero: rows and columns of weights, scales, and their biases.

    A channel counts as pruned, as for `slim`, when its row or its column of the mask keeps no entry.

    Args:
        model: stays as it is.
        mask: over weights or scales.
        shifts: "fold" leaves biases and shifts as they are.

    Returns:
        The masked copy.

    Raises:
        SlimmingError: for a mask of another network, and for weights that are computed of others.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> mask = Mask({"0.weight": torch.tensor([[True, True], [False, False], [True, True], [False, False]])})
        >>> _ = nn.init.ones_(network[0].bias)
        >>> masked_channels(network, mask)[0].bias.tolist()
        [1.0, 0.0, 1.0, 0.0]
    """
    _check(model, mask)
    network = copy.deepcopy(model)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, kept in mask.items():
            layer, _, part = name.rpartition(".")
            made_along = out_dim(network.get_submodule(layer), part)
            for dim in range(kept.dim()):
                gone = empty_slices(kept, dim).to(parameters[name].device)
                parameters[name].transpose(0, dim)[gone] = 0
                if dim == made_along and shifts == "zero":
                    bias = _bias_beside(network.get_submodule(layer), part)
                    bias[gone.repeat(len(bias) // len(gone))] = 0  # transposed layers name one group's channels
    return network


def slim(
    model: nn.Module,
    mask: Mask,
    *,
    example: Any,
    round_to: int = 1,
    ignored: Iterable[str] = (),
    emptied: Literal["keep one", "refuse"] = "keep one",
    shifts: Shifts = "zero",
) -> nn.Module:
    """Takes the channels that `mask` prunes out; equal to `masked_channels(model, mask)` in its outputs.

    A channel goes where nothing reads more than zeros of it: on a residual stream when every branch prunes it;
    otherwise a norm that prunes it there chooses among the channels (`IndexedBatchNorm`, `CountedNorm`, which counts
    channels that are gone). A head of attention goes when all rows of its values or all columns of its output are
    pruned.

    Args:
        model: stays as it is.
        mask: over batch-norm scales, or over weights, whose channel goes when all of its entries are pruned.
        example: an input of the network, or a tuple of arguments.
        round_to: widths are multiples of it, fewer channels going.
        ignored: names of layers that keep their channels.
        emptied: what to do for a layer that would lose all channels.
        shifts: "fold" keeps the biases and shifts of pruned channels, and puts the constants they make into the bias
            of the layer that reads them; exact in evaluation mode, refused by name where zero padding makes it not so.

    Returns:
        The smaller network.

    Raises:
        TraceError: when `torch.fx` cannot trace the network.
        SlimmingError: when the mask cannot be cut out as asked.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> mask = Mask({"0.weight": torch.tensor([[True, True], [False, False], [True, True], [False, False]])})
        >>> smaller = slim(network, mask, example=torch.ones(3, 2))
        >>> smaller[0], smaller[2]
        (Linear(in_features=2, out_features=2, bias=True), Linear(in_features=2, out_features=1, bias=True))
        >>> torch.allclose(smaller(torch.ones(3, 2)), masked_channels(network, mask)(torch.ones(3, 2)))
        True
    """
    return _Cut(model, mask, example, round_to, ignored, emptied, shifts).network()


def plan(
    model: nn.Module,
    mask: Mask,
    *,
    example: Any,
    round_to: int = 1,
    ignored: Iterable[str] = (),
    emptied: Literal["keep one", "refuse"] = "keep one",
    shifts: Shifts = "zero",
) -> Plan:
    """Says what `slim` would do, without doing it.

    Args:
        model: stays as it is.
        mask: over batch-norm scales, or over weights, whose channel goes when all of its entries are pruned.
        example: an input of the network, or a tuple of arguments.
        round_to: widths are multiples of it, fewer channels going.
        ignored: names of layers that keep their channels.
        emptied: what to do for a layer that would lose all channels.
        shifts: "fold" keeps the biases and shifts of pruned channels, and puts the constants they make into the bias
            of the layer that reads them; exact in evaluation mode, refused by name where zero padding makes it not so.

    Returns:
        Shapes before and after.

    Raises:
        TraceError: when `torch.fx` cannot trace the network.
        SlimmingError: when the mask cannot be cut out as asked.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> mask = Mask({"0.weight": torch.tensor([[True, True], [False, False], [True, True], [False, False]])})
        >>> print(plan(network, mask, example=torch.ones(3, 2)))
        0.weight  [4, 2] -> [2, 2]
        0.bias    [4] -> [2]
        2.weight  [1, 4] -> [1, 2]
        17 -> 9 entries
    """
    return _Cut(model, mask, example, round_to, ignored, emptied, shifts).plan()


def _check(model: nn.Module, mask: Mask) -> None:
    """Refuses, by name, a mask of another network, and layers whose weights are computed of others."""
    parameters = dict(model.named_parameters())
    for name, module in model.named_modules():
        parts = module._parameters
        orig = [part for part in parts if part.endswith("_orig") and f"{part[:-5]}_mask" in module._buffers]
        if orig or nn.utils.parametrize.is_parametrized(module):
            raise SlimmingError(
                f"layer {name!r} (got {orig[0] if orig else 'a parametrization'!r}), expected plain parameters; call "
                "torch.nn.utils.prune.remove or torch.nn.utils.parametrize.remove_parametrizations first"
            )
    for name, kept in mask.items():
        if name not in parameters or parameters[name].shape != kept.shape:
            got = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise SlimmingError(f"mask tensor {name!r} (got {got} in the model), expected shape {tuple(kept.shape)}")


def _bias_beside(layer: nn.Module, part: str) -> Tensor:
    """The bias of what a weight makes; without one, a number that may be written to."""
    if part in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        bias: Any = getattr(layer, "in_proj_bias", None)
        return torch.zeros(layer.get_parameter(part).shape[0]) if bias is None else bias.chunk(3)["qkv".index(part[0])]
    bias = getattr(layer, part.replace("weight", "bias"), None) if "weight" in part else None
    weight = layer.get_parameter(part)
    return torch.zeros(weight.shape[out_dim(layer, part)], device=weight.device) if bias is None else bias


class _Cut:
    """Which units go, and the network or the plan that this leaves."""

    def __init__(
        self, model: nn.Module, mask: Mask, example: Any, round_to: int, ignored: Iterable[str], emptied: str,
        shifts: Shifts,
    ) -> None:  # fmt: skip
        if round_to < 1 or emptied not in ("keep one", "refuse") or shifts not in ("zero", "fold"):
            got = (round_to, emptied, shifts)
            expected = "at least 1, 'keep one' or 'refuse', and 'zero' or 'fold'"
            raise SlimmingError(f"round_to, emptied, shifts (got {got}), expected {expected}")
        self.pruned = masked_channels(model, mask, shifts=shifts)
        self.channels: Channels = channels_of(self.pruned, example, mask, ignored, fold_constants=shifts == "fold")
        self._alive: list[nn.Parameter] = []  # so that no new parameter gets the id of an old one
        self.gone = self._removable()
        self._spare(round_to, emptied)
        self._settle_norms()

    def plan(self) -> Plan:
        """Shapes before and after."""
        sizes = {name: list(tensor.shape) for name, tensor in self.pruned.state_dict().items()}
        self._fold()
        new = {name: list(tensor.shape) for name, tensor in self.pruned.state_dict().items()}
        for site in self.channels.sites:
            new[site.tensor][site.dim] = len(self._kept(site))
        shapes = {name: (tuple(sizes.get(name, [0])), tuple(new[name])) for name in new}
        chosen = {name: (len(before), len(index)) for name, before, index in self._choices()}
        return Plan(shapes, chosen)

    def network(self) -> nn.Module:
        """The smaller network."""
        self._fold()
        sites: dict[str, dict[str, list[Site]]] = {}
        for site in self.channels.sites:
            sites.setdefault(site.layer, {}).setdefault(site.name, []).append(site)
        tied: dict[int, nn.Parameter] = {}
        for layer_name, tensors in sites.items():
            layer = self.pruned.get_submodule(layer_name)
            for name, tensor_sites in tensors.items():
                self._take(layer, name, tensor_sites, tied)
            _resize(layer)
        for name, _, index in self._choices():
            norm: Any = self.pruned.get_submodule(name)
            self._put(name, CountedNorm(norm, index) if _of_layers(norm) else IndexedBatchNorm(norm, index))
        self._put_heads()
        self._recount()
        return self.pruned

    def _put(self, name: str, layer: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.pruned.get_submodule(parent), child, layer)

    def _put_heads(self) -> None:
        """Attention that has lost heads, or channels that it reads or makes, becomes `SlimAttention`."""
        for name, heads in self.channels.heads.items():
            old: Any = self.pruned.get_submodule(name)
            width, stay = old.embed_dim, self._stay(heads)
            into = [p.shape[1] for part, p in old.named_parameters(recurse=False) if part == "in_proj_weight"]
            if not bool(stay.all()) or old.out_proj.weight.shape != (width, width) or into not in ([], [width]):
                index = stay.nonzero().squeeze(1).to(old.out_proj.weight.device)
                self._put(name, SlimAttention(old, index))
        for module in self.pruned.modules():
            slim_inside = any(isinstance(inner, SlimAttention) for inner in module.modules())
            if isinstance(module, nn.TransformerEncoder) and slim_inside:
                module.use_nested_tensor = False  # made for a fast path that knows full heads only

    def _recount(self) -> None:
        """Sizes that the network's code has as attributes."""
        sizes: dict[tuple[str, str], set[int]] = {}
        for count in self.channels.counts:
            new = count.value if count.units is None else int(self._stay(count.units).sum())
            sizes.setdefault((count.module, count.attribute), set()).add(new)
        for (name, attribute), values in sizes.items():
            if len(values) > 1:
                raise SlimmingError(
                    f"layer {name!r} (got sizes {sorted(values)} for its attribute {attribute!r}), expected one; give "
                    "the sizes attributes of their own, or write -1"
                )
            vars(self.pruned.get_submodule(name))[attribute] = values.pop()

    def _fold(self) -> None:
        """Constants that go are put into the bias of the layer that reads them."""
        for read in self.channels.reads:
            if read.constants is None:
                continue
            layer: Any = self.pruned.get_submodule(read.layer)
            weight = layer.weight.detach()
            kernel = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
            groups = getattr(layer, "groups", 1)
            lost = torch.where(self._stay(read.units), 0, read.constants).to(kernel)
            added = (kernel.view(groups, -1, kernel.shape[1]) @ lost.view(groups, -1, 1)).flatten()
            if layer.bias is None:
                layer.bias = nn.Parameter(torch.zeros_like(added))
                made = [s for s in self.channels.sites if (s.layer, s.name, s.dim) == (read.layer, "weight", 0)]
                self.channels.sites += [Site(s.layer, "bias", 0, s.units) for s in made]
            with torch.no_grad():
                layer.bias += added

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
        for read in channels.reads:
            needed.update(channels.roots(read.units[~read.spared]).tolist())
        # Units before a norm are needed where a unit behind it is; from the last norm to the first.
        for _, before, after in reversed(channels.norms):
            behind = channels.roots(after).tolist()
            pairs = zip(channels.roots(before).tolist(), behind, strict=True)
            needed.update(root for root, root_behind in pairs if root_behind in needed)
        return {channels.root(unit) for unit in range(len(channels.parents))} - needed

    def _spare(self, round_to: int, emptied: str) -> None:
        """Gives channels back where a layer would be empty or its width no multiple."""
        for site in self.channels.sites:
            roots = self.channels.roots(site.units).tolist()
            width = sum(root not in self.gone for root in roots)
            if not width and emptied == "refuse":
                raise SlimmingError(
                    f"layer {site.layer!r} (got all {len(roots)} channels of {site.name!r} pruned), expected one to "
                    "stay; prune fewer, or emptied='keep one'"
                )
            wanted = max(1, -(-width // round_to) * round_to)
            for root in dict.fromkeys(root for root in roots if root in self.gone):
                if width >= wanted:
                    break
                self.gone.discard(root)
                width = sum(other not in self.gone for other in roots)

    def _settle_norms(self) -> None:
        """A channel given back behind a norm is given back before it."""
        for _, before, after in reversed(self.channels.norms):
            pairs = zip(self.channels.roots(before).tolist(), self.channels.roots(after).tolist(), strict=True)
            self.gone -= {root for root, behind in pairs if behind not in self.gone}

    def _stay(self, units: Tensor) -> Tensor:
        return torch.tensor([root not in self.gone for root in self.channels.roots(units).tolist()], dtype=torch.bool)

    def _kept(self, site: Site) -> Tensor:
        """Indices of the slices that stay."""
        return self._stay(site.units).repeat(site.blocks).nonzero().squeeze(1)

    def _choices(self) -> list[tuple[str, Tensor, Tensor]]:
        """Norms that drop channels which come in, or count some that do not: name, what comes in, which of it."""
        choices = []
        for name, before, after in self.channels.norms:
            comes, stays = self._stay(before), self._stay(after)
            if bool((comes & ~stays).any()) or (_of_layers(self.pruned.get_submodule(name)) and not bool(comes.all())):
                device = next(self.pruned.get_submodule(name).parameters()).device
                choices.append((name, before[comes], stays[comes].nonzero().squeeze(1).to(device)))
        return choices


def _of_layers(norm: nn.Module) -> bool:
    return isinstance(norm, nn.LayerNorm | nn.RMSNorm)


def _resize(layer: Any) -> None:
    """Brings a layer's sizes in line with its tensors."""
    names = next((attributes for kind, attributes in _SIZES.items() if issubclass(type(layer), kind)), {})
    grouped = "groups" in vars(layer) and layer.groups > 1
    if grouped and layer.groups == layer.in_channels:  # depthwise: as many groups as channels
        layer.groups = layer.weight.shape[0] // (layer.out_channels // layer.groups)
    for dim, attribute in names.items():
        setattr(layer, attribute, layer.weight.shape[dim])
    if grouped:
        attribute = names[1]  # what a group's slices count
        setattr(layer, attribute, layer.weight.shape[1] * layer.groups)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None:
        layer.num_features = layer.weight.shape[0]
    if isinstance(layer, nn.GroupNorm):
        layer.num_groups = layer.weight.shape[0] // (layer.num_channels // layer.num_groups)
        layer.num_channels = layer.weight.shape[0]
    if isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.shape[0]
    if issubclass(type(layer), nn.RNN | nn.GRU | nn.LSTM):
        layer.hidden_size, layer.input_size = layer.weight_hh_l0.shape[1], layer.weight_ih_l0.shape[1]
        layer.flatten_parameters()
