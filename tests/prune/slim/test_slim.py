"""Slimming: outputs are those of the masked network in every architecture; what cannot be cut stays or is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.models.cnn import VGG, PreResNet, ResNet
from gebt.prune import Mask, make_mask
from gebt.prune.scores import bn_scale
from gebt.prune.slim.channels import TraceError
from gebt.prune.slim.slim import IndexedBatchNorm, SlimmingError, masked_channels, plan, slim
from gebt.prune.slim.tracing import channels_of

Case = tuple[nn.Module, Any, dict[str, float]]


def trained(model: nn.Module) -> nn.Module:
    """Random scales, shifts and statistics: nothing is zero or one by accident. Evaluation mode."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model.eval()


def channel_mask(model: nn.Module, ratio: float, names: Callable[[str], bool] = lambda name: True) -> Mask:
    """Random channels of every convolution, linear and recurrent layer whose name is chosen, at least one left."""
    generator, kept = torch.Generator().manual_seed(3), {}
    for name, parameter in model.named_parameters():
        if not name.rpartition(".")[2].startswith("weight") or not names(name):
            continue
        count = parameter.shape[0]
        stays = torch.ones(count, dtype=torch.bool)
        stays[torch.randperm(count, generator=generator)[: int(ratio * count)]] = False
        kept[name] = stays.view(-1, *[1] * (parameter.dim() - 1)).expand(parameter.shape)
    return Mask(kept)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def check(model: nn.Module, mask: Mask, example: Tensor, smaller: bool = True) -> nn.Module:
    before = copy.deepcopy(model.state_dict())
    slimmed = slim(model, mask, example=example)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    expected = masked_channels(model, mask).eval()(example)
    torch.testing.assert_close(slimmed.eval()(example), expected, atol=1e-5, rtol=1e-4)
    assert (parameters(slimmed) < parameters(model)) == smaller
    told = plan(model, mask, example=example)
    assert {
        name: tuple(tensor.shape) for name, tensor in slimmed.state_dict().items() if not name.endswith("index")
    } == {name: new for name, (_, new) in told.shapes.items()}
    return slimmed


IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ratio", [0.3, 0.7])
@pytest.mark.parametrize(
    "make",
    [
        lambda: VGG(11, 10, width=0.15), lambda: VGG(16, 10, width=0.1), lambda: ResNet(18, 10, width=0.1),
        lambda: ResNet(50, 10, width=0.1), lambda: PreResNet(20, 10, width=0.5),
    ],
    ids=["vgg11", "vgg16", "resnet18", "resnet50", "preresnet20"],
)  # fmt: skip
def test_a_global_mask_over_scales_is_cut_out_of_our_networks(make: Callable[[], nn.Module], ratio: float) -> None:
    model = trained(make())
    mask = make_mask(bn_scale(model), ratio=ratio, allow_empty=True)
    slimmed = check(model, mask, IMAGE)
    slimmed.train()(IMAGE).sum().backward()
    assert all(p.grad is not None for p in slimmed.parameters())


def test_norms_choose_among_the_channels_of_a_stream_that_goes_on() -> None:
    model = trained(PreResNet(20, 10, width=0.5))
    mask = make_mask(bn_scale(model), ratio=0.5, allow_empty=True)
    slimmed = slim(model, mask, example=IMAGE)
    chosen = [name for name, module in slimmed.named_modules() if isinstance(module, IndexedBatchNorm)]
    assert "layer1.1.bn1" in chosen
    assert "IndexedBatchNorm(BatchNorm2d" in repr(slimmed)
    assert set(slimmed.state_dict()) == set(model.state_dict()) | {f"{name}.index" for name in chosen}


class DenseBlock(nn.Module):
    """Every layer reads all before it, put side by side, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat((x, conv(F.relu(norm(x)))), dim=1)
        return self.head(x.mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise with and without a multiplier, grouped, transposed, a gate, a flatten into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.depth, self.multiplied = nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.Conv2d(8, 16, 3, groups=8, padding=1)
        self.grouped, self.up = nn.Conv2d(16, 12, 3, groups=4, padding=1), nn.ConvTranspose2d(12, 6, 2)
        self.gate, self.squeeze = nn.Linear(6, 6), nn.AdaptiveAvgPool2d(1)
        self.flat, self.head = nn.Flatten(), nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.expand(x)))
        x = F.relu(self.multiplied(F.relu(self.depth(x))))
        x = self.up(F.relu(self.grouped(x)))
        gate = torch.sigmoid(self.gate(self.squeeze(x).flatten(1)))
        x = x * gate.unsqueeze(2).unsqueeze(3)
        return self.head(self.flat(F.adaptive_avg_pool2d(x, 4)))


class Text(nn.Module):
    """Embedding, a recurrent layer, its last step, a hidden layer."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.table, self.rnn = nn.Embedding(20, 6), kind(6, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.rnn(self.table(tokens))[0]
        return self.head(torch.tanh(self.hidden(x.mean(1))))


def test_concatenated_layers_are_cut() -> None:
    model = trained(DenseBlock())
    check(model, channel_mask(model, 0.4), IMAGE)


def test_depthwise_grouped_transposed_and_flattened_layers_are_cut() -> None:
    model: Any = trained(Mobile())
    pruned = {
        "norm.weight": [1, 3, 5, 7], "depth.weight": [1, 3, 5, 7], "multiplied.weight": [2, 3, 6, 7, 10, 11, 14, 15],
        "grouped.weight": [2, 5, 8, 11], "gate.weight": [1],
    }  # fmt: skip
    kept = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in pruned}
    for name, channels in pruned.items():
        kept[name][channels] = False
    kept["up.weight"] = torch.ones_like(model.up.weight, dtype=torch.bool)
    kept["up.weight"][:, [0, 3]] = False
    slimmed: Any = check(model, Mask(kept), IMAGE)
    assert (slimmed.expand.out_channels, slimmed.norm.num_features) == (4, 4)
    assert (slimmed.depth.groups, slimmed.depth.in_channels, slimmed.depth.out_channels) == (4, 4, 4)
    assert (slimmed.multiplied.groups, slimmed.multiplied.out_channels) == (4, 8)
    assert (slimmed.grouped.groups, slimmed.grouped.in_channels, slimmed.grouped.out_channels) == (4, 8, 8)
    assert (slimmed.up.in_channels, slimmed.up.out_channels) == (8, 4)
    # A gate that is zero before its sigmoid is a half behind it; gates of channels that are gone go with them.
    assert (slimmed.gate.in_features, slimmed.gate.out_features, slimmed.head.in_features) == (4, 4, 64)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_units_of_recurrent_layers_are_cut(kind: Any) -> None:
    torch.manual_seed(0)
    model = Text(kind).eval()
    gates = 3 if kind is nn.GRU else 4
    kept = {"hidden.weight": torch.ones(7, 8, dtype=torch.bool)}
    kept["hidden.weight"][2:5] = False
    for part, width in (("ih", 6), ("hh", 8)):
        mask = torch.ones(gates, 8, width, dtype=torch.bool)
        mask[:, [1, 4, 6]] = False
        kept[f"rnn.weight_{part}_l0"] = mask.view(gates * 8, width)
    tokens = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))
    slimmed: Any = check(model, Mask(kept), tokens)
    assert (slimmed.rnn.hidden_size, slimmed.rnn.input_size, slimmed.hidden.out_features) == (5, 6, 4)


class Transformer(nn.Module):
    """A feed-forward layer between layer norms, weights of the table tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.last = nn.Embedding(20, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up, self.down, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.last(x))))
        return self.head(x)


def test_feed_forward_units_go_and_what_layer_norms_read_stays() -> None:
    torch.manual_seed(0)
    model = Transformer().eval()
    tokens = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = channel_mask(model, 0.5, lambda name: name in ("up.weight", "down.weight"))
    slimmed: Any = check(model, Mask({"up.weight": mask["up.weight"]}), tokens)
    assert (slimmed.up.out_features, slimmed.down.in_features, slimmed.down.out_features) == (16, 16, 8)
    assert slimmed.head.weight is slimmed.table.weight
    check(model, Mask({"down.weight": mask["down.weight"]}), tokens, smaller=False)


def test_a_constant_made_of_nothing_keeps_the_channel() -> None:
    class Shifted(nn.Module):
        def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.first, self.second, self.act = nn.Linear(3, 6), nn.Linear(6, 2), act

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.act(self.first(x)))

    example = torch.randn(4, 3)
    for act, smaller in ((torch.sigmoid, False), (lambda x: F.relu(x) + 1, False), (lambda x: 2 * F.relu(x), True)):
        model = Shifted(act)
        check(model, channel_mask(model, 0.5, lambda name: "first" in name), example, smaller=smaller)


def test_widths_are_rounded_and_ignored_layers_keep_theirs() -> None:
    model = trained(VGG(11, 10, width=0.25))
    mask = make_mask(bn_scale(model), ratio=0.6, allow_empty=True)
    rounded = slim(model, mask, example=IMAGE, round_to=4)
    widths = [m.out_channels for m in rounded.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)
    torch.testing.assert_close(rounded(IMAGE), masked_channels(model, mask)(IMAGE), atol=1e-5, rtol=1e-4)
    kept: Any = slim(model, mask, example=IMAGE, ignored=["features.4", "features.5"])
    assert kept.features[4].out_channels == model.features[4].out_channels


def test_a_layer_that_would_be_empty_keeps_one_or_is_refused() -> None:
    model = trained(VGG(11, 10, width=0.1))
    kept = {name: torch.ones_like(score, dtype=torch.bool) for name, score in bn_scale(model).items()}
    kept["features.5.weight"][:] = False
    slimmed: Any = check(model, Mask(kept), IMAGE)
    assert slimmed.features[4].out_channels == 1
    with pytest.raises(SlimmingError, match=r"layer 'features.4' \(got all 13 channels of 'weight' pruned\)"):
        slim(model, Mask(kept), example=IMAGE, emptied="refuse")


def test_what_cannot_be_cut_is_refused_with_its_reason() -> None:
    class Choosy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    told = r"model Choosy, layer '' \(got TypeError.*line \d+: return x if float.*\), expected one that torch.fx can"
    with pytest.raises(TraceError, match=told):
        channels_of(Choosy(), torch.ones(1, 2), {})
    model = VGG(11, 10, width=0.1)
    with pytest.raises(SlimmingError, match=r"mask tensor 'nothing' \(got no such parameter in the model\)"):
        slim(model, Mask({"nothing": torch.ones(3, dtype=torch.bool)}), example=IMAGE)
    with pytest.raises(
        SlimmingError, match=r"mask tensor 'features.1.weight' \(got \(6,\) in the model\), expected shape"
    ):
        slim(model, Mask({"features.1.weight": torch.ones(3, dtype=torch.bool)}), example=IMAGE)
    mask = Mask({"features.1.weight": torch.ones(6, dtype=torch.bool)})
    with pytest.raises(SlimmingError, match=r"round_to, emptied, shifts \(got \(0, .keep one., .zero.\)\)"):
        slim(model, mask, example=IMAGE, round_to=0)


def test_the_plan_prints_what_changes_and_touches_nothing() -> None:
    model = trained(PreResNet(20, 10, width=0.5))
    mask = make_mask(bn_scale(model), ratio=0.5, allow_empty=True)
    told = plan(model, mask, example=IMAGE)
    assert told.parameters[1] < told.parameters[0]
    text = str(told)
    assert "layer1.0.conv2.weight" in text
    assert "chooses" in text
    assert text.endswith(f"{told.parameters[0]} -> {told.parameters[1]} entries")
    assert not [module for module in model.modules() if isinstance(module, IndexedBatchNorm)]
