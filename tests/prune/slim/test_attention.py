"""Slimming of attention: heads go whole, outputs are those of the masked network, every mask and form of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.prune import Mask
from gebt.prune.slim.channels import SlimmingError
from gebt.prune.slim.layers import CountedNorm, SlimAttention
from gebt.prune.slim.slim import masked_channels, plan, slim

WIDE, HEADS = 12, 3
X = torch.randn(2, 5, WIDE, generator=torch.Generator().manual_seed(0))


def shaken(model: nn.Module) -> nn.Module:
    """Random entries everywhere: torch starts biases of attention at zero. Evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def without(model: nn.Module, rows: dict[str, list[int]], columns: dict[str, list[int]] | None = None) -> Mask:
    """A mask that prunes these rows and columns."""
    names = [*rows, *(columns or {})]
    kept = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    for name, indices in rows.items():
        kept[name][indices] = False
    for name, indices in (columns or {}).items():
        kept[name][:, indices] = False
    return Mask(kept)


def check(model: nn.Module, mask: Mask, *inputs: Any, shifts: Any = "zero", smaller: bool = True) -> Any:
    slimmed = slim(model, mask, example=inputs, shifts=shifts)
    expected = masked_channels(model, mask, shifts=shifts)(*inputs)
    torch.testing.assert_close(slimmed(*inputs), expected, atol=1e-5, rtol=1e-5)
    counts = [sum(p.numel() for p in network.parameters()) for network in (slimmed, model)]
    assert (counts[0] < counts[1]) == smaller
    shapes = {name: tuple(tensor.shape) for name, tensor in slimmed.state_dict().items() if not name.endswith("index")}
    assert {name: new for name, (_, new) in plan(model, mask, example=inputs, shifts=shifts).shapes.items()} == shapes
    return slimmed


def head(number: int, part: int = 2, width: int = WIDE // HEADS, wide: int = WIDE) -> list[int]:
    """Rows of a head in the values (2), keys (1) or queries (0) of a joint projection."""
    return list(range(part * wide + number * width, part * wide + (number + 1) * width))


class Attention(nn.Module):
    """Self-attention between two linear layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(WIDE, HEADS, batch_first=True, **options), nn.Linear(WIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shifts", ["zero", "fold"])
def test_a_head_goes_when_its_values_are_pruned(bias: bool, shifts: str) -> None:
    model = shaken(Attention(bias=bias))
    slimmed = check(model, without(model, {"attention.in_proj_weight": head(1)}), X, shifts=shifts)
    assert isinstance(slimmed.attention, SlimAttention)
    assert slimmed.attention.in_proj_weight.shape == (3 * 8, WIDE)
    assert slimmed.attention.index.tolist() == [0, 2]
    assert "SlimAttention(\n    2 of 3 heads, 4 wide" in repr(slimmed)
    slimmed.train()(X).sum().backward()
    assert all(p.grad is not None for p in slimmed.parameters())


def test_a_head_goes_when_its_columns_are_pruned_and_only_whole() -> None:
    model = shaken(Attention())
    slimmed = check(model, without(model, {}, {"attention.out_proj.weight": head(0, 0)}), X)
    assert slimmed.attention.num_heads == 2
    check(model, without(model, {"attention.in_proj_weight": head(1)[:-1]}), X, smaller=False)
    # Queries and keys alone do not silence a head: it then takes the mean of its values.
    check(model, without(model, {"attention.in_proj_weight": head(1, 0) + head(1, 1)}), X, smaller=False)


def test_channels_that_the_attention_makes_go() -> None:
    model = shaken(Attention())
    slimmed = check(model, without(model, {"attention.out_proj.weight": [0, 5]}), X)
    assert (slimmed.attention.out_proj.out_features, slimmed.head.in_features) == (10, 10)


class Cross(nn.Module):
    """Channels that are pruned in front of attention with weights of its own for queries, keys and values."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, WIDE), nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(WIDE, HEADS, kdim=8, vdim=8, **options)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.second(y)
        return self.attention(self.first(x), y, y)[0]


def test_separate_projections_lose_heads_and_inputs() -> None:
    model = shaken(Cross())
    x, y = torch.randn(5, 2, 6), torch.randn(7, 2, 6)
    rows = {"attention.v_proj_weight": head(2, 0), "first.weight": [1, 2], "second.weight": [0]}
    slimmed = check(model, without(model, rows), x, y)
    assert slimmed.attention.q_proj_weight.shape == (8, 10)
    assert slimmed.attention.v_proj_weight.shape == (8, 7)


def test_masks_and_weights_are_those_of_torch() -> None:
    full: Any = shaken(nn.MultiheadAttention(WIDE, HEADS, batch_first=True))
    every: Any = SlimAttention(copy.deepcopy(full), torch.arange(HEADS))
    generator = torch.Generator().manual_seed(1)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    by_head = torch.randn(2 * HEADS, 5, 5, generator=generator)
    cases: list[dict[str, Any]] = [
        {}, {"attn_mask": causal}, {"attn_mask": causal, "is_causal": True}, {"key_padding_mask": padding},
        {"attn_mask": torch.randn(5, 5, generator=generator), "key_padding_mask": padding.float()},
        {"attn_mask": by_head},
    ]  # fmt: skip
    for options in cases:
        for weights in ({"need_weights": False}, {}, {"average_attn_weights": False}):
            expected, got = full(X, X, X, **options, **weights), every(X, X, X, **options, **weights)
            torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-5)
            assert (got[1] is None) == (expected[1] is None)
            if got[1] is not None:
                torch.testing.assert_close(got[1], expected[1], atol=1e-5, rtol=1e-5)
    alone = full(X[1], X[1], X[1], key_padding_mask=padding[1])
    for one, other in zip(every(X[1], X[1], X[1], key_padding_mask=padding[1]), alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    two: Any = SlimAttention(copy.deepcopy(full), torch.tensor([0, 1, 2]))
    two.index, two.all_heads = torch.tensor([1, 2, 0]), HEADS
    other_order = two(X, X, X, attn_mask=by_head)[0]
    assert not torch.allclose(other_order, full(X, X, X, attn_mask=by_head)[0])  # masks follow their heads
    with pytest.raises(ValueError, match="attn_mask \\(got None with is_causal\\)"):
        every(X, X, X, is_causal=True)


def test_weights_that_the_network_reads_keep_their_heads() -> None:
    class Weighing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDE, HEADS, batch_first=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out, weights = self.attention(x, x, x)
            return out, weights.mean(1)

    model = shaken(Weighing())
    mask = without(model, {"attention.in_proj_weight": head(1)})
    assert isinstance(slim(model, mask, example=X).attention, nn.MultiheadAttention)


@pytest.mark.parametrize("shifts", ["zero", "fold"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_transformer_layers_lose_heads_and_units(batch_first: bool, norm_first: bool, shifts: str) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(
                WIDE, HEADS + 1, 16, batch_first=batch_first, norm_first=norm_first, activation="gelu"
            )
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=padding)

    model = shaken(Encoder())
    first = "encoder.layers.0."
    mask = without(
        model,
        {f"{first}self_attn.in_proj_weight": head(1, width=3), f"{first}linear1.weight": [0, 3]},
        {"encoder.layers.1.linear2.weight": [1], "encoder.layers.1.self_attn.out_proj.weight": head(3, 0, 3)},
    )
    padding = torch.zeros(X.shape[:2], dtype=torch.bool)
    padding[-1, -1] = True
    x = X if batch_first else X.transpose(0, 1)
    with torch.no_grad():  # the fast path of torch, for the masked network alone
        slimmed = check(model, mask, x if batch_first else X.transpose(0, 1).contiguous(), padding, shifts=shifts)
    layers = slimmed.encoder.layers
    assert [layer.linear1.out_features for layer in layers] == [14, 15]
    assert [layer.self_attn.num_heads for layer in layers] == [3, 3]
    slimmed.train()(x, padding).sum().backward()
    assert all(p.grad is not None for p in slimmed.parameters())


def test_decoders_lose_heads_of_both_kinds() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerDecoderLayer(WIDE, HEADS, 16, batch_first=True)

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            return self.layer(x, memory)

    model = shaken(Decoder())
    rows = {"layer.self_attn.in_proj_weight": head(0), "layer.multihead_attn.in_proj_weight": head(1) + head(2)}
    slimmed = check(model, without(model, rows), X, torch.randn(2, 4, WIDE))
    assert (slimmed.layer.self_attn.num_heads, slimmed.layer.multihead_attn.num_heads) == (2, 1)


class ByHand(nn.Module):
    """Attention written out: `form` says how sizes and the product of queries and keys are written."""

    def __init__(self, form: str, wide: int = WIDE) -> None:
        super().__init__()
        self.form, self.heads, self.head_dim, self.wide = form, HEADS, wide // HEADS, wide
        self.qkv = nn.Linear(wide, 3 * wide) if form == "joint" else None
        if form != "joint":
            self.q, self.k, self.v = (nn.Linear(wide, wide) for _ in range(3))
        self.out = nn.Linear(wide, wide)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, wide = x.shape
        if self.form == "joint":
            parts = self.qkv(x).reshape(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
            q, k, v = parts[0], parts[1], parts[2]
        elif self.form == "named":
            q, k, v = (
                f(x).view(batch, length, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
        elif self.form in ("computed", "computed before"):
            size = self.wide if self.form == "computed before" else wide
            sizes = (batch, length, self.heads, size // self.heads)
            q, k, v = (f(x).view(*sizes).transpose(1, 2) for f in (self.q, self.k, self.v))
        else:
            q, k, v = (f(x).view(batch, length, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.form == "named":
            scores = (q @ k.transpose(-2, -1)) / self.head_dim**0.5
            scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -1e9)
            mixed = F.dropout(F.softmax(scores, dim=-1), 0.1, self.training) @ v
            return self.out(mixed.transpose(1, 2).contiguous().view(batch, length, self.wide))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


@pytest.mark.parametrize(("form", "shifts"), [("named", "zero"), ("rest", "zero"), ("rest", "fold")])
def test_heads_of_attention_written_out_go(form: str, shifts: str) -> None:
    model: Any = shaken(ByHand(form))
    slimmed = check(model, without(model, {"v.weight": head(1, 0)}), X, shifts=shifts)
    assert [slimmed.get_submodule(part).out_features for part in "qkv"] == [8, 8, 8]
    assert slimmed.out.in_features == 8
    # Sizes that are attributes follow, and those of the model stay as they were.
    assert (slimmed.heads, model.heads) == ((2, 3) if form == "named" else (3, 3))
    check(model, without(model, {}, {"out.weight": head(2, 0)}), X, shifts=shifts)
    check(model, without(model, {"v.weight": head(1, 0)[:2]}), X, smaller=False)


def test_heads_of_one_joint_layer_go_with_all_their_rows_or_columns() -> None:
    model: Any = shaken(ByHand("joint"))
    rows = [row for part in range(3) for row in head(0, part)]
    assert check(model, without(model, {"qkv.weight": rows}), X).qkv.out_features == 24
    slimmed = check(model, without(model, {}, {"out.weight": head(1, 0)}), X)
    assert (slimmed.qkv.out_features, slimmed.heads) == (24, 2)


@pytest.mark.parametrize("form", ["computed", "computed before"])
def test_heads_stay_where_the_code_computes_with_their_number(form: str) -> None:
    model: Any = shaken(ByHand(form))
    slimmed = check(model, without(model, {"v.weight": head(1, 0)}), X, smaller=False)
    assert slimmed.heads == 3


def test_an_attribute_that_would_need_two_sizes_is_named() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.a, self.b, self.out = HEADS, ByHand("rest"), nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(x).view(2, 5, self.heads, 4).flatten(2) + self.a(x).reshape(2, 5, self.heads, 4).flatten(2)
            return self.out(y) + x.view(2, 5, self.heads, 4).sum((2, 3))[..., None]

    model = shaken(Twice())
    mask = without(model, {"b.weight": head(1, 0), "a.out.weight": head(1, 0)})
    with pytest.raises(SlimmingError, match=r"layer '' \(got sizes \[2, 3\] for its attribute 'heads'\)"):
        slim(model, mask, example=X)


class Block(nn.Module):
    """A pre-norm transformer with a stream that can be cut: embedding, positions, attention, feed-forward, norm."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.table, self.positions = nn.Embedding(20, WIDE), nn.Parameter(torch.zeros(1, 5, WIDE))
        self.norm, self.attention = norm(WIDE), nn.MultiheadAttention(WIDE, HEADS, batch_first=True)
        self.second, self.up, self.down = norm(WIDE), nn.Linear(WIDE, 16), nn.Linear(16, WIDE)
        self.last, self.head = norm(WIDE), nn.Linear(WIDE, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.positions
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.down(F.gelu(self.up(self.second(x))))
        return self.head(self.last(x))


TOKENS = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_the_stream_of_a_transformer_is_cut_and_norms_count_what_is_gone(norm: Any) -> None:
    model: Any = shaken(Block(norm))
    norms = {name: [1, 4, 7] for name in ("norm.weight", "second.weight", "last.weight")}
    made = {"attention.out_proj.weight": [1, 4, 7], "down.weight": [1, 4, 7]}
    mask = without(model, norms | made, {"table.weight": [1, 4, 7]})
    # A table of positions that is not pruned keeps its channels of the stream; the norms choose.
    slimmed = check(model, mask, TOKENS)
    assert (slimmed.up.in_features, slimmed.down.out_features, slimmed.positions.shape[-1]) == (9, 12, 12)
    kept = torch.ones_like(model.positions, dtype=torch.bool)
    kept[..., [1, 4, 7]] = False
    slimmed = check(model, Mask({**mask, "positions": kept}), TOKENS)
    assert (slimmed.table.embedding_dim, slimmed.positions.shape[-1], slimmed.down.out_features) == (9, 9, 9)
    assert slimmed.head.weight is slimmed.table.weight


def test_norms_behind_a_cut_stream_are_counted_norms() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.norm(self.first(x))))

    model: Any = shaken(Two())
    x = torch.randn(6, 4)
    slimmed = check(model, without(model, {"first.weight": [0, 3], "norm.weight": [0, 3]}), x)
    assert (slimmed.first.out_features, slimmed.second.in_features) == (6, 6)
    assert isinstance(slimmed.norm, CountedNorm)
    assert "LayerNorm, 6 channels, counts 8" in repr(slimmed)
    # The norm still reads what only it prunes; what it makes of nothing is not nothing.
    assert check(model, without(model, {"norm.weight": [0, 3]}), x).first.out_features == 8
    check(model, without(model, {"first.weight": [0, 3]}), x, smaller=False)
