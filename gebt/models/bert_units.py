"""Structured pruning of BERT: trainable scales of attention heads and feed-forward units, masks over them, removal."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gebt.models.bert import encoder_of
from gebt.prune.mask import Mask

HEADS, UNITS = "heads", "units"


class Gates(nn.Module):
    """A trainable scale of every attention head [H] and feed-forward unit [I] of each layer, all 1 at first.

    A head's scale multiplies its input to the attention's output matrix, a unit's its input to the layer's output
    matrix. The model itself is not changed.

    Args:
        model: an encoder, or a model that contains one.

    Raises:
        ValueError: as `encoder_of`.

    Source:
        Chen et al. 2021, "EarlyBERT".
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        layers = encoder_of(model)[1].encoder.layer
        device = layers[0].output.dense.weight.device
        self.heads = nn.ParameterList(torch.ones(_heads(layer), device=device) for layer in layers)
        self.units = nn.ParameterList(torch.ones(layer.output.dense.in_features, device=device) for layer in layers)

    def l1(self) -> tuple[Tensor, Tensor]:
        """The L1 norms of the scales.

        Returns:
            Sums of |scale| of all heads, and of all units.
        """
        return (
            torch.stack([scale.abs().sum() for scale in self.heads]).sum(),
            torch.stack([scale.abs().sum() for scale in self.units]).sum(),
        )

    def scores(self, kind: str) -> dict[str, Tensor]:
        """Magnitudes of the scales.

        Args:
            kind: "heads" or "units".

        Returns:
            |scale| of every layer under the names `heads.0`, `heads.1`, ... (or `units.0`, ...).
        """
        return {f"{kind}.{i}": scale.detach().abs() for i, scale in enumerate(getattr(self, kind))}

    def close(self, mask: Mask) -> None:
        """Sets the scales of pruned heads and units to zero.

        Args:
            mask: over `heads.i` and `units.i`.
        """
        mask.apply_(dict(self.named_parameters()))

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Makes the model compute with the scales inside the context.

        Args:
            model: the one the scales were made for.

        Yields:
            Nothing.
        """
        layers, handles = encoder_of(model)[1].encoder.layer, []
        for layer, heads, units in zip(layers, self.heads, self.units, strict=True):
            handles.append(layer.attention.output.dense.register_forward_pre_hook(_scaling(heads)))
            handles.append(layer.output.dense.register_forward_pre_hook(_scaling(units)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def without(model: nn.Module, mask: Mask, gates: Gates | None = None) -> Any:
    """A copy without the pruned heads and units: smaller matrices, outputs as with their scales at zero.

    Args:
        model: not changed.
        mask: `heads.i` and `units.i` of every layer i.
        gates: scales that are multiplied into the output matrices; None: those that stay count as 1.

    Returns:
        The smaller model.

    Raises:
        ValueError: for a mask that does not fit or that empties a layer.
    """
    network = copy.deepcopy(model)
    layers = encoder_of(network)[1].encoder.layer
    _check(mask, layers)
    with torch.no_grad():
        for i, layer in enumerate(layers):
            if gates is not None:
                layer.attention.output.dense.weight *= _expanded(gates.heads[i], layer.attention.output.dense)
                layer.output.dense.weight *= gates.units[i]
            kept = _expanded(mask[f"{HEADS}.{i}"], layer.attention.output.dense).nonzero().squeeze(1)
            attention = layer.attention.self
            for part in (attention.query, attention.key, attention.value):
                _take(part, kept, 0)
            _take(layer.attention.output.dense, kept, 1)
            attention.num_attention_heads = int(mask[f"{HEADS}.{i}"].sum())
            attention.all_head_size = len(kept)
            units = mask[f"{UNITS}.{i}"].nonzero().squeeze(1)
            _take(layer.intermediate.dense, units, 0)
            _take(layer.output.dense, units, 1)
    return network


def _heads(layer: Any) -> int:
    return int(layer.attention.self.num_attention_heads)


def _expanded(values: Tensor, dense: Any) -> Tensor:
    """A value a head as one for each of its columns in the attention's output."""
    return values.repeat_interleave(dense.in_features // values.numel())


def _scaling(scales: Tensor) -> Any:
    def scale(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * _expanded(scales, module), *inputs[1:])

    return scale


def _take(linear: Any, kept: Tensor, dim: int) -> None:
    """Keeps rows (0) of a linear layer and of its bias, or columns (1)."""
    kept = kept.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.index_select(dim, kept))
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias[kept])
    linear.out_features, linear.in_features = linear.weight.shape


def _check(mask: Mask, layers: Any) -> None:
    wanted = {f"{HEADS}.{i}": _heads(layer) for i, layer in enumerate(layers)}
    wanted |= {f"{UNITS}.{i}": layer.output.dense.in_features for i, layer in enumerate(layers)}
    for name, size in wanted.items():
        if name not in mask or mask[name].shape != (size,):
            got = f"shape {tuple(mask[name].shape)}" if name in mask else "no such tensor"
            raise ValueError(f"mask of {name!r} (got {got}), expected one of shape ({size},)")
        if not bool(mask[name].any()):
            raise ValueError(f"mask of {name!r} (got all {size} pruned), expected every layer to keep one")
    if rest := sorted(mask.keys() - wanted.keys()):
        raise ValueError(f"mask tensor {rest[0]!r} (got none in the model), expected heads.i and units.i of its layers")
