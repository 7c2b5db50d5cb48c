"""Small networks of many architectures, written out: what slimming has to follow."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.models.cnn import VGG, PreResNet, ResNet

TOKENS = 50


class DenseNet(nn.Module):
    """Two dense blocks with a transition between them."""

    def __init__(self, growth: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.stem, wide = nn.Conv2d(3, 16, 3, padding=1, bias=False), 16
        self.layers = nn.ModuleList()
        for block in range(2):
            for _ in range(depth):
                norm, conv = nn.BatchNorm2d(wide), nn.Conv2d(wide, growth, 3, padding=1, bias=False)
                self.layers.append(nn.Sequential(norm, nn.ReLU(), conv))
                wide += growth
            if block == 0:
                half = wide // 2
                transition = (nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, half, 1, bias=False), nn.AvgPool2d(2))
                self.transition, wide = nn.Sequential(*transition), half
        self.depth, self.norm, self.head = depth, nn.BatchNorm2d(wide), nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        x = self.stem(x)
        for number, layer in enumerate(self.layers):
            x = self.transition(x) if number == len(self.layers) // 2 else x
            x = torch.cat([x, layer(x)], dim=1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class Residual(nn.Module):
    """1 x 1, 3 x 3 in groups, 1 x 1, with or without a gate, added to what came in."""

    def __init__(self, wide: int, inner: int, groups: int, gate: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(wide, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
        )  # fmt: skip
        self.squeeze = nn.Conv2d(inner, gate, 1) if gate else None
        self.excite = nn.Conv2d(gate, inner, 1) if gate else None
        self.project, self.norm = nn.Conv2d(inner, wide, 1, bias=False), nn.BatchNorm2d(wide)

    def forward(self, x: Tensor) -> Tensor:
        """As wide as x."""
        y = self.body(x)
        if self.squeeze is not None:
            y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return x + self.norm(self.project(y))


def residuals(inner: int, groups: int, gate: int = 0) -> nn.Module:
    """A stem, three residual blocks, a classifier."""
    blocks = [Residual(16, inner, groups, gate) for _ in range(3)]
    stem = (nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class UNet(nn.Module):
    """Down twice, up twice by transposed convolutions, skips put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (self._double(i, o) for i, o in ((3, 8), (8, 16), (16, 32)))
        self.up_b, self.up_a = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.back_b, self.back_a, self.head = self._double(32, 16), self._double(16, 8), nn.Conv2d(8, 2, 1)

    @staticmethod
    def _double(into: int, out: int) -> nn.Sequential:
        one, two = nn.Conv2d(into, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)
        return nn.Sequential(one, nn.BatchNorm2d(out), nn.ReLU(), two, nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """Two numbers a pixel."""
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2))
        c = self.c(F.max_pool2d(b, 2))
        b = self.back_b(torch.cat([b, self.up_b(c)], 1))
        return self.head(self.back_a(torch.cat([a, self.up_a(b)], 1)))


class Inception(nn.Module):
    """Two modules of four branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norms = nn.Conv2d(3, 16, 3, padding=1), nn.ModuleList(nn.BatchNorm2d(32) for _ in range(2))
        self.ones = nn.ModuleList(nn.Conv2d(i, 8, 1) for i in (16, 32))
        self.threes = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1)) for i in (16, 32)
        )
        self.fives = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 5, padding=2)) for i in (16, 32)
        )
        self.pooled = nn.ModuleList(nn.Conv2d(i, 4, 1) for i in (16, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        x = F.relu(self.stem(x))
        for one, three, five, pooled, norm in zip(
            self.ones, self.threes, self.fives, self.pooled, self.norms, strict=True
        ):
            x = F.relu(norm(torch.cat([one(x), three(x), five(x), pooled(F.max_pool2d(x, 3, 1, 1))], dim=1)))
        return self.head(x.mean((2, 3)))

    @staticmethod
    def _branch(into: int, between: int, out: int, size: int) -> nn.Sequential:
        wide = nn.Conv2d(between, out, size, padding=size // 2)
        return nn.Sequential(nn.Conv2d(into, between, 1), nn.ReLU(), wide)


class ConvNeXt(nn.Module):
    """Depthwise 7 x 7, layer norm, two linear layers, a scale for every channel."""

    def __init__(self, wide: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, wide, 4, 4)
        self.depth = nn.ModuleList(nn.Conv2d(wide, wide, 7, padding=3, groups=wide) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(wide) for _ in range(blocks))
        self.ups = nn.ModuleList(nn.Linear(wide, 4 * wide) for _ in range(blocks))
        self.downs = nn.ModuleList(nn.Linear(4 * wide, wide) for _ in range(blocks))
        self.last, self.head = nn.LayerNorm(wide), nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        x = self.stem(x)
        for depth, norm, up, down in zip(self.depth, self.norms, self.ups, self.downs, strict=True):
            y = down(F.gelu(up(norm(depth(x).permute(0, 2, 3, 1)))))
            x = x + y.permute(0, 3, 1, 2)
        return self.head(self.last(x.mean((2, 3))))


class Recurrent(nn.Module):
    """Embedding, recurrent layers, the last step, a classifier."""

    def __init__(self, kind: Callable[..., nn.Module], layers: int) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(TOKENS, 16), kind(16, 32, layers, batch_first=True)
        self.hidden, self.head = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of sentences."""
        out, _ = self.rnn(self.table(tokens))
        return self.head(F.relu(self.hidden(out[:, -1])))


class Transformer(nn.Module):
    """Pre-norm encoder of `nn.MultiheadAttention`; tied: a language model whose head is the table."""

    def __init__(self, tied: bool = False, wide: int = 32, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.table = nn.Embedding(TOKENS, wide)
        self.attention = nn.ModuleList(nn.MultiheadAttention(wide, heads, batch_first=True) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(wide) for _ in range(2 * blocks + 1))
        self.ups = nn.ModuleList(nn.Linear(wide, 4 * wide) for _ in range(blocks))
        self.downs = nn.ModuleList(nn.Linear(4 * wide, wide) for _ in range(blocks))
        self.head = nn.Linear(wide, TOKENS if tied else 5, bias=not tied)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every token."""
        x = self.table(tokens)
        for number, attention in enumerate(self.attention):
            y = self.norms[2 * number](x)
            x = x + attention(y, y, y, need_weights=False)[0]
            x = x + self.downs[number](F.gelu(self.ups[number](self.norms[2 * number + 1](x))))
        return self.head(self.norms[-1](x))


class ByHand(nn.Module):
    """Attention written out, sizes as attributes."""

    def __init__(self, wide: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, wide // heads
        self.table, self.norm, self.head = nn.Embedding(TOKENS, wide), nn.LayerNorm(wide), nn.Linear(wide, 5)
        self.q, self.k, self.v, self.out = (nn.Linear(wide, wide) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every token."""
        x = self.table(tokens)
        batch, length = tokens.shape
        y = self.norm(x)
        parts = (f(y).view(batch, length, self.heads, self.head_dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(*parts)
        return self.head(x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1)))


class TorchEncoder(nn.Module):
    """torch's own encoder."""

    def __init__(self, wide: int = 32, heads: int = 4) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(wide, heads, 64, batch_first=True)
        self.table, self.head = nn.Embedding(TOKENS, wide), nn.Linear(wide, 5)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of every token."""
        return self.head(self.encoder(self.table(tokens)))


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "VGG-16": (lambda: VGG(16, 10, width=0.25), "image"),
    "ResNet-18": (lambda: ResNet(18, 10, width=0.25), "image"),
    "ResNet-50": (lambda: ResNet(50, 10, width=0.25), "image"),
    "PreResNet-20": (lambda: PreResNet(20, 10), "image"),
    "DenseNet": (DenseNet, "image"),
    "MobileNetV2": (lambda: residuals(48, 48), "image"),
    "ResNeXt": (lambda: residuals(32, 4), "image"),
    "squeeze and excitation": (lambda: residuals(32, 1, 8), "image"),
    "UNet": (UNet, "image"),
    "Inception": (Inception, "image"),
    "ConvNeXt": (ConvNeXt, "image"),
    "LSTM": (lambda: Recurrent(nn.LSTM, 1), "tokens"),
    "LSTM, two layers": (lambda: Recurrent(nn.LSTM, 2), "tokens"),
    "GRU": (lambda: Recurrent(nn.GRU, 1), "tokens"),
    "transformer": (Transformer, "tokens"),
    "tied language model": (lambda: Transformer(tied=True), "tokens"),
    "attention by hand": (ByHand, "tokens"),
    "nn.TransformerEncoder": (TorchEncoder, "tokens"),
}


def drawn(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network with random norms, as if trained, in evaluation mode, and an input."""
    make, kind = ARCHITECTURES[name]
    torch.manual_seed(seed)
    model = make().eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.LayerNorm):
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.3)
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
    return model, torch.randn(2, 3, 32, 32) if kind == "image" else torch.randint(TOKENS, (2, 7))
