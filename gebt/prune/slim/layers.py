"""Layers of a slimmed network that torch does not have; the state dict names are those of the layers they replace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class IndexedBatchNorm(nn.Module):
    """A batch norm of some of the channels that come in: those of a residual stream that the next layer reads.

    Scales, shifts and statistics have the names they had.

    Args:
        norm: the batch norm replaced, already cut to the channels that stay.
        index: which of the channels that come in it normalizes.

    Example:
        >>> norm = IndexedBatchNorm(nn.BatchNorm1d(2), torch.tensor([0, 2])).eval()
        >>> norm(torch.tensor([[1.0, 5.0, 3.0]])).round().tolist()
        [[1.0, 3.0]]
    """

    index: Tensor

    def __init__(self, norm: Any, index: Tensor) -> None:
        super().__init__()
        self._kind, self.momentum, self.eps = type(norm).__name__, norm.momentum, norm.eps
        _take_over(self, norm)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes the chosen channels.

        Args:
            x: [B, C, ...].

        Returns:
            [B, chosen, ...].
        """
        momentum = 0.0 if self.momentum is None else self.momentum
        return F.batch_norm(
            x.index_select(1, self.index), self.running_mean, self.running_var, getattr(self, "weight", None),  # type: ignore[arg-type]
            getattr(self, "bias", None), self.training or self.running_mean is None, momentum, self.eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """As a batch norm shows itself.

        Returns:
            Kind and number of channels.
        """
        return f"{self._kind}, {self.index.numel()} channels"


class CountedNorm(nn.Module):
    """A layer norm or RMS norm of a stream whose other channels were zero and are gone: it counts them all the same.

    mean = sum(x) / C and var = (sum((x - mean)^2) + (C - c) mean^2) / C of the c channels that come in, C = `width`.

    Args:
        norm: the norm replaced, of width C, its weights already cut to `index`.
        index: which of the normalized channels it gives out.

    Example:
        >>> full, cut = nn.RMSNorm(4), nn.RMSNorm(4)
        >>> cut.weight = nn.Parameter(torch.ones(2))
        >>> norm, x = CountedNorm(cut, torch.arange(2)), torch.tensor([[3.0, 1.0]])
        >>> torch.allclose(norm(x), full(torch.tensor([[3.0, 1.0, 0.0, 0.0]]))[:, :2])
        True
    """

    index: Tensor
    weight: Tensor

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm, index: Tensor) -> None:
        super().__init__()
        self._kind, self.width = type(norm).__name__, norm.normalized_shape[0]
        self._centered = isinstance(norm, nn.LayerNorm)
        self.eps = norm.eps
        _take_over(self, norm)
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes the stream.

        Args:
            x: [..., c].

        Returns:
            [..., chosen].
        """
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        mean = x.sum(-1, keepdim=True) / self.width if self._centered else torch.zeros_like(x[..., :1])
        centered = x - mean
        variance = (centered.square().sum(-1, keepdim=True) + (self.width - x.shape[-1]) * mean.square()) / self.width
        scaled = (centered * torch.rsqrt(variance + eps)).index_select(-1, self.index) * self.weight
        bias: Any = getattr(self, "bias", None)
        return scaled if bias is None else scaled + bias

    def extra_repr(self) -> str:
        """Channels that come out, and that are counted.

        Returns:
            One line.
        """
        return f"{self._kind}, {self.index.numel()} channels, counts {self.width}"


class SlimAttention(nn.Module):
    """`nn.MultiheadAttention` with some of its heads, each as wide as before: called as it is.

    Averaged weights are those of the remaining heads.

    Args:
        attention: the layer replaced, its weights already cut.
        index: which of all heads remain; an `attn_mask` of three dimensions is that of all heads.
    """

    index: Tensor

    def __init__(self, attention: nn.MultiheadAttention, index: Tensor) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.all_heads = index.numel(), attention.head_dim, attention.num_heads
        self.embed_dim, self.dropout = attention.out_proj.out_features, attention.dropout
        self.batch_first, self.out_proj = attention.batch_first, attention.out_proj
        # What torch's transformer layers ask before they call a fast path, which knows full heads only.
        self._qkv_same_embed_dim = False
        _take_over(self, attention)
        self.register_buffer("index", index)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Attends from `query` to `key` and `value`; layout [T, B, E] without `batch_first`.

        Args:
            query: [B, T, E] or [T, E].
            key: [B, S, E] or [S, E].
            value: [B, S, E] or [S, E].
            key_padding_mask: [B, S] or [S], keys to leave out.
            need_weights: whether to return the weights.
            attn_mask: [T, S], or [B all heads, T, S].
            average_attn_weights: over the heads.
            is_causal: a hint that comes with `attn_mask`.

        Returns:
            The output, and the weights or None.

        Raises:
            ValueError: for `is_causal` without `attn_mask`.
        """
        if is_causal and attn_mask is None:
            raise ValueError("attn_mask (got None with is_causal), expected the causal mask, as nn.MultiheadAttention")
        single, turned = query.dim() == 2, query.dim() == 3 and not self.batch_first
        inputs = [x.unsqueeze(0) if single else x.transpose(0, 1) if turned else x for x in (query, key, value)]
        # [B, heads, length, head_dim] each
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in self._projected(inputs))
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out.transpose(0, 1) if turned else out), weights

    def _projected(self, inputs: list[Tensor]) -> list[Tensor]:
        together: Any = getattr(self, "in_proj_weight", None)
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = [getattr(self, name) for name in names] if together is None else together.chunk(3)
        bias: Any = getattr(self, "in_proj_bias", None)
        biases = [None] * 3 if bias is None else bias.chunk(3)
        return [F.linear(x, weight, b) for x, weight, b in zip(inputs, weights, biases, strict=True)]

    def _mask(self, attended: Tensor | None, padding: Tensor | None, like: Tensor) -> Tensor | None:
        """Both masks added, -inf where they are true, to be added to scores [B, heads, T, S]."""
        if attended is not None and attended.dim() == 3:
            attended = attended.unflatten(0, (-1, self.all_heads)).index_select(1, self.index)
        if padding is not None:
            padding = padding.unsqueeze(0) if padding.dim() == 1 else padding
            padding = padding[:, None, None]
        masks = [_added(mask, like) for mask in (attended, padding) if mask is not None]
        return sum(masks[1:], masks[0]) if masks else None

    def extra_repr(self) -> str:
        """Heads that remain, and their width.

        Returns:
            One line.
        """
        return f"{self.num_heads} of {self.all_heads} heads, {self.head_dim} wide"


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, float("-inf"))


def _take_over(module: nn.Module, old: nn.Module) -> None:
    """Parameters and buffers of `old`, under their names."""
    for name, parameter in old.named_parameters(recurse=False):
        module.register_parameter(name, parameter)
    for name, buffer in old.named_buffers(recurse=False):
        module.register_buffer(name, buffer)
    module.train(old.training)
