"""Enforcing a mask: pruned weights stay at zero in any training loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.hooks import RemovableHandle

from gebt.prune.mask import Mask

# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into names.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def enforce_mask(model: nn.Module, mask: Mask, optimizer: optim.Optimizer) -> RemovableHandle:
    """Keeps the pruned entries of `model` at zero: now, and after every `optimizer.step()`.

    True under momentum, Adam, AdamW and weight decay too, since the zeroing comes after the update. Parameter names,
    state dicts and forward are untouched. On a CPU the mask takes as much memory as the weights.

    Args:
        model: may be wrapped otherwise than the one whose names the mask has (`parameters_of`).
        mask: which entries stay, by parameter name.
        optimizer: trains the parameters that the mask covers; may be wrapped by accelerate or Lightning.

    Returns:
        A handle; `.remove()` ends the enforcement.

    Raises:
        ValueError: naming the tensor, when the mask does not fit the model or the optimizer.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> optimizer = optim.SGD(layer.parameters(), lr=0.1)
        >>> _ = enforce_mask(layer, Mask({"weight": torch.tensor([[True, False]])}), optimizer)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> layer.weight.ne(0).tolist()
        [[True, False]]
    """
    parameters = parameters_of(model, mask)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in parameters.items():
        if id(parameter) not in trained:
            raise ValueError(f"parameter {name!r} (got none in this optimizer), expected the optimizer to train it")
    masked = [_MaskedParameter(parameter, mask[name]) for name, parameter in parameters.items()]

    def zero_pruned(*_: Any) -> None:
        for parameter in masked:
            parameter.zero()

    zero_pruned()
    return _innermost(optimizer).register_step_post_hook(zero_pruned)


def parameters_of(model: nn.Module, mask: Mask) -> dict[str, nn.Parameter]:
    """The parameters that `mask` covers, under the mask's names.

    A name that the model does not have is looked for without what wrappers put in: "module." (DDP), "_orig_mod."
    (`torch.compile`) and the like, on either side.

    Args:
        model: plain or wrapped.
        mask: a mask over weights.

    Returns:
        The parameters by the mask's names.

    Raises:
        ValueError: naming the tensor, for a name that no parameter, or more than one, has, and for another shape.

    Example:
        >>> wrapped = nn.Sequential()
        >>> wrapped.add_module("module", nn.Linear(2, 1))
        >>> list(parameters_of(wrapped, Mask({"weight": torch.ones(1, 2).bool()})))
        ['weight']
    """
    parameters, covered = dict(model.named_parameters()), dict[str, nn.Parameter]()
    by_plain: dict[str, list[str]] = {}
    for name in parameters:
        by_plain.setdefault(_plain(name), []).append(name)
    taken: dict[int, str] = {}
    for name, shape in mask.shapes.items():
        names = [name] if name in parameters else by_plain.get(_plain(name), [])
        if not names:
            raise ValueError(f"mask tensor {name!r} (got no such parameter), expected one of {sorted(parameters)}")
        if len(names) > 1:
            raise ValueError(f"mask tensor {name!r} (got {names} without wrappers' names), expected one parameter")
        parameter = covered[name] = parameters[names[0]]
        if parameter.shape != shape:
            expected = tuple(parameter.shape)
            raise ValueError(
                f"mask tensor {name!r} (got shape {tuple(shape)}), expected {expected} as the parameter has"
            )
        if taken.setdefault(id(parameter), name) != name:
            raise ValueError(
                f"mask tensors {taken[id(parameter)]!r}, {name!r} (got both for {names[0]!r}), expected one for each"
            )
    return covered


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _innermost(optimizer: Any) -> optim.Optimizer:
    # A hook on accelerate's wrapper would not run, and Lightning's wrapper takes none.
    while isinstance(getattr(optimizer, "optimizer", None), optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


class _MaskedParameter:
    """A parameter, and which of its entries stay."""

    def __init__(self, parameter: nn.Parameter, kept: Tensor) -> None:
        self._parameter, self._kept = parameter, kept
        self._stay: Tensor | None = None
        self._made_for: tuple[torch.device, torch.dtype] | None = None

    def zero(self) -> None:
        weights = self._parameter.data
        if hasattr(weights, "to_local"):  # sharded by FSDP: the part that is here
            weights = weights.to_local()
        if self._stay is None or self._made_for != (weights.device, weights.dtype):
            self._stay, self._made_for = self._made(weights), (weights.device, weights.dtype)
        if self._stay.dtype == torch.bool:
            weights.masked_fill_(self._stay, 0)
        else:
            weights.view(self._stay.dtype).bitwise_and_(self._stay)

    def _made(self, weights: Tensor) -> Tensor:
        """What zeroes `weights`: all bits set where they stay, or True where they go, in the order of their memory."""
        kept = self._kept
        if hasattr(self._parameter.data, "to_local"):
            from torch.distributed.tensor import distribute_tensor

            full: Any = self._parameter.data
            shards: Any = distribute_tensor(
                kept.to(weights.device), full.device_mesh, full.placements, src_data_rank=None
            )
            kept = shards.to_local()
        # On a CPU, where a masked fill goes entry by entry, bits of the weights' width are four times as fast
        # (benchmarks/images/overhead.py); elsewhere memory is what both wait for, and booleans are the less to read.
        bits = _BITS.get(weights.element_size()) if weights.is_cpu else None
        if bits is None:
            return torch.empty_like(weights, dtype=torch.bool).copy_(~kept)
        return torch.empty_like(weights, dtype=bits).copy_(kept).neg_()
