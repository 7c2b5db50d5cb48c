"""Slimming layer by layer: blocks of known architectures, constants folded into biases, networks that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from gebt.prune import Mask
from gebt.prune.slim.channels import SlimmingError, TraceError
from gebt.prune.slim.slim import Shifts, masked_channels, plan, slim

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))


def shaken(model: nn.Module) -> nn.Module:
    """Random entries everywhere, running statistics too. Evaluation mode."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                drawn = 0.5 * torch.randn(tensor.shape, generator=generator)
                tensor.copy_(drawn.abs() + 0.1 if name.endswith("running_var") else drawn)
    return model.eval()


def without(model: nn.Module, gone: dict[str, list[int]]) -> Mask:
    """A mask that prunes these channels that come out; of a transposed layer or a table, columns."""
    kept = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in gone}
    for name, channels in gone.items():
        layer = model.get_submodule(name.rpartition(".")[0])
        along = 1 if isinstance(layer, nn.ConvTranspose2d | nn.Embedding) else 0
        kept[name].transpose(0, along)[channels] = False
    return Mask(kept)


def check(model: nn.Module, mask: Mask, example: Any, *, shifts: Shifts = "zero", smaller: bool = True) -> Any:
    slimmed = slim(model, mask, example=example, shifts=shifts)
    expected = masked_channels(model, mask, shifts=shifts)(example)
    torch.testing.assert_close(slimmed(example), expected, atol=1e-5, rtol=1e-5)
    assert bool(expected.abs().sum() > 0)
    counts = [sum(p.numel() for p in network.parameters()) for network in (slimmed, model)]
    assert (counts[0] < counts[1]) == smaller
    shapes = {name: tuple(tensor.shape) for name, tensor in slimmed.state_dict().items() if not name.endswith("index")}
    assert {name: new for name, (_, new) in plan(model, mask, example=example, shifts=shifts).shapes.items()} == shapes
    return slimmed


class Net(nn.Module):
    """Layers by name and a function of them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: Any) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(into: int, out: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, padding=size // 2, **options)


def inverted_residual() -> Net:
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.stem(x)
        y = F.relu6(n.bn2(n.depth(F.relu6(n.bn1(n.expand(x))))))
        return n.out((x + n.bn3(n.project(y))).mean((2, 3)))

    return Net(
        run, stem=conv(3, 4), expand=conv(4, 8, 1, bias=False), depth=conv(8, 8, groups=8, bias=False),
        project=conv(8, 4, 1, bias=False), out=nn.Linear(4, 2),
        bn1=nn.BatchNorm2d(8), bn2=nn.BatchNorm2d(8), bn3=nn.BatchNorm2d(4),
    )  # fmt: skip


def squeeze_and_excite() -> Net:
    def run(n: Any, x: Tensor) -> Tensor:
        y = F.relu(n.bn(n.stem(x)))
        gate = torch.sigmoid(n.up(F.relu(n.down(F.adaptive_avg_pool2d(y, 1)))))
        return n.out((y * gate).flatten(1))

    return Net(
        run, stem=conv(3, 8), bn=nn.BatchNorm2d(8),
        down=nn.Conv2d(8, 4, 1), up=nn.Conv2d(4, 8, 1), out=nn.Linear(512, 2),
    )  # fmt: skip


def inception() -> Net:
    def run(n: Any, x: Tensor) -> Tensor:
        parts = [F.relu(n.one(x)), F.relu(n.three(F.relu(n.reduce(x)))), n.pooled(F.max_pool2d(x, 3, 1, 1))]
        return n.out(torch.cat(parts, 1).mean((2, 3)))

    return Net(
        run, one=conv(3, 4, 1), reduce=conv(3, 6, 1), three=conv(6, 5), pooled=conv(3, 3, 1), out=nn.Linear(12, 2)
    )


def unet() -> Net:
    def run(n: Any, x: Tensor) -> Tensor:
        high = F.relu(n.first(x))
        low = F.relu(n.second(F.max_pool2d(high, 2)))
        return n.out(F.relu(n.merge(torch.cat([high, n.up(low)], dim=1))))

    return Net(
        run, first=conv(3, 6), second=conv(6, 8), up=nn.ConvTranspose2d(8, 4, 2, 2), merge=conv(10, 6), out=conv(6, 2)
    )


def convnext() -> Net:
    def run(n: Any, x: Tensor) -> Tensor:
        x = n.stem(x)
        y = n.norm(n.depth(x).permute(0, 2, 3, 1))
        y = n.scale * n.second(F.gelu(n.first(y)))
        return n.out((x + y.permute(0, 3, 1, 2)).mean([-2, -1]))

    layers = {"norm": nn.LayerNorm(4), "first": nn.Linear(4, 16), "second": nn.Linear(16, 4), "out": nn.Linear(4, 2)}
    return Net(run, stem=conv(3, 4), depth=conv(4, 4, 7, groups=4), scale=nn.Parameter(torch.ones(4)), **layers)


def group_normed() -> Net:
    return Net(
        lambda n, x: n.out(F.silu(n.norm(n.stem(x))).mean((2, 3))),
        stem=conv(3, 8), norm=nn.GroupNorm(4, 8), out=nn.Linear(8, 2),
    )  # fmt: skip


def signals() -> Net:
    return Net(
        lambda n, x: n.out(n.act(n.second(F.avg_pool1d(n.bn(n.first(x.flatten(2))), 3, padding=1))).amax(2)),
        first=nn.Conv1d(3, 6, 5), bn=nn.BatchNorm1d(6), second=nn.Conv1d(6, 8, 3), act=nn.PReLU(8), out=nn.Linear(8, 2),
    )  # fmt: skip


def transposed_groups() -> Net:
    return Net(
        lambda n, x: n.out(n.up(F.relu(n.stem(x)))),
        stem=conv(3, 8), up=nn.ConvTranspose2d(8, 6, 2, 2, groups=2), out=conv(6, 2),
    )  # fmt: skip


def gated() -> Net:
    def run(n: Any, x: Tensor) -> Tensor:
        one, other = n.both(x.flatten(1)).chunk(2, dim=-1)
        return n.out(F.silu(one) * other) + n.last(F.glu(n.two(x.flatten(1)), 1))

    wide = [nn.Linear(192, 8) for _ in range(2)]
    return Net(run, both=wide[0], two=wide[1], out=nn.Linear(4, 2), last=nn.Linear(4, 2))


def twice() -> Net:
    return Net(
        lambda n, x: n.out(n.same(F.relu(n.same(F.relu(n.stem(x))))).mean((2, 3))),
        stem=conv(3, 6), same=conv(6, 6), out=nn.Linear(6, 2),
    )  # fmt: skip


BLOCKS: dict[str, tuple[Callable[[], Net], dict[str, list[int]], dict[str, tuple[int, ...]]]] = {
    "mobilenetv2": (
        inverted_residual,
        {"bn1.weight": [1, 5], "bn2.weight": [1, 5, 6], "bn3.weight": [2], "stem.weight": [2]},
        {"expand.weight": (5, 3, 1, 1), "depth.weight": (5, 1, 3, 3), "project.weight": (3, 5, 1, 1)},
    ),
    "squeeze and excitation": (
        squeeze_and_excite, {"bn.weight": [0, 3, 4], "down.weight": [1]},
        {"down.weight": (3, 5, 1, 1), "up.weight": (5, 3, 1, 1), "out.weight": (2, 320)},
    ),
    "inception": (
        inception, {"one.weight": [1], "reduce.weight": [0, 2], "three.weight": [0, 4], "pooled.weight": [2]},
        {"three.weight": (3, 4, 3, 3), "out.weight": (2, 8)},
    ),
    "unet": (
        unet, {"first.weight": [0, 1], "second.weight": [3], "up.weight": [1, 2], "merge.weight": [5]},
        {"second.weight": (7, 4, 3, 3), "up.weight": (7, 2, 2, 2), "merge.weight": (5, 6, 3, 3)},
    ),
    "convnext": (
        convnext,
        {"first.weight": [0, 7], "norm.weight": [3], "depth.weight": [3], "second.weight": [3], "stem.weight": [3]},
        {"first.weight": (14, 3), "second.weight": (3, 14), "scale": (3,), "depth.weight": (3, 1, 7, 7)},
    ),
    "group norm, groups whole": (
        group_normed, {"norm.weight": [2, 3, 4]}, {"stem.weight": (6, 3, 3, 3), "norm.weight": (6,)},
    ),
    "one dimension": (
        signals, {"bn.weight": [0], "second.weight": [1, 2]},
        {"first.weight": (5, 3, 5), "second.weight": (6, 5, 3), "act.weight": (6,), "out.weight": (2, 6)},
    ),
    "transposed, in groups": (
        transposed_groups, {"stem.weight": [0, 4], "up.weight": [1]},
        {"stem.weight": (6, 3, 3, 3), "up.weight": (6, 2, 2, 2), "out.weight": (2, 4, 3, 3)},
    ),
    "gates of halves": (
        gated, {"both.weight": [1, 5], "two.weight": [3, 7]}, {"out.weight": (2, 3), "last.weight": (2, 3)},
    ),
    "one layer twice": (twice, {"stem.weight": [0, 2], "same.weight": [0, 2]}, {"same.weight": (4, 4, 3, 3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_known_architectures_are_cut(name: str) -> None:
    make, gone, expected = BLOCKS[name]
    model = shaken(make())
    slimmed = check(model, without(model, gone), IMAGE)
    assert {key: tuple(slimmed.state_dict()[key].shape) for key in expected} == expected
    slimmed.train()(IMAGE).sum().backward()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_units_of_stacked_and_bidirectional_recurrent_layers_go(kind: Any, both: bool, layers: int) -> None:
    def run(n: Any, tokens: Tensor) -> Tensor:
        out, last = n.rnn(n.table(tokens))
        last = last[0] if kind is nn.LSTM else last
        return n.out(out[:, -1]) + n.other(last[-1])

    rnn = kind(6, 5, layers, batch_first=True, bidirectional=both)
    outputs = {"out": nn.Linear(5 * (1 + both), 2), "other": nn.Linear(5, 2)}
    model = shaken(Net(run, table=nn.Embedding(20, 6), rnn=rnn, **outputs))
    gates = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[kind]
    rows = [gate * 5 + unit for gate in range(gates) for unit in (1, 3)]
    weights = {name: rows for name, _ in rnn.named_parameters() if name.startswith("weight")}
    gone = {f"rnn.{name}": own for name, own in weights.items()} | {"table.weight": [2]}
    slimmed = check(model, without(model, gone), TOKENS)
    assert (slimmed.rnn.hidden_size, slimmed.rnn.input_size) == (3, 5)
    assert slimmed.out.in_features == 3 * (1 + both)
    if layers == 2 or both:
        # A unit of one direction or layer alone keeps its place in all of them.
        part = {"rnn.weight_ih_l0": rows, "rnn.weight_hh_l0": rows}
        assert check(model, without(model, part), TOKENS, smaller=False).rnn.hidden_size == 5


def test_a_recurrent_unit_that_only_its_own_layer_reads_stays_until_that_does_not() -> None:
    layers = {"table": nn.Embedding(20, 6), "rnn": nn.GRU(6, 5, batch_first=True), "out": nn.Linear(5, 2)}
    model = shaken(Net(lambda n, tokens: n.out(n.rnn(n.table(tokens))[0].mean(1)), **layers))
    names = ("out.weight", "rnn.weight_hh_l0")
    kept = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    kept["out.weight"][:, 2] = False
    check(model, Mask(kept), TOKENS, smaller=False)
    kept["rnn.weight_hh_l0"][:, 2] = False
    assert check(model, Mask(kept), TOKENS).rnn.hidden_size == 4


def test_columns_that_nobody_reads_let_their_channel_go() -> None:
    model: Any = shaken(
        Net(lambda n, x: n.out(torch.sigmoid(n.first(x.flatten(1)))), first=nn.Linear(192, 6), out=nn.Linear(6, 2))
    )
    kept = torch.ones(2, 6, dtype=torch.bool)
    kept[:, [1, 4]] = False
    assert check(model, Mask({"out.weight": kept}), IMAGE).first.out_features == 4


def folding(act: Callable[[Tensor], Tensor], **options: Any) -> Net:
    return Net(
        lambda n, x: n.out(act(n.bn2(n.second(act(n.bn1(n.first(x)))))).mean((2, 3))),
        first=conv(3, 8, bias=False), bn1=nn.BatchNorm2d(8),
        second=nn.Conv2d(8, 8, 3, **options), bn2=nn.BatchNorm2d(8), out=nn.Linear(8, 2),
    )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("act", [F.relu, torch.sigmoid, lambda x: F.gelu(x) + 1], ids=["relu", "sigmoid", "gelu + 1"])
def test_shifts_of_pruned_channels_are_folded_into_the_next_bias(act: Any, groups: int, bias: bool) -> None:
    model: Any = shaken(folding(act, groups=groups, bias=bias))
    gone = {"bn1.weight": [0, 3, 4, 7], "bn2.weight": [0, 4]}
    slimmed = check(model, without(model, gone), IMAGE, shifts="fold")
    assert slimmed.first.out_channels == 4
    assert slimmed.out.in_features == (4 if groups == 8 else 6)  # constants go through depthwise layers and norms
    # The shift counts: without it the outputs are others.
    zeroed = masked_channels(model, without(model, gone))(IMAGE)
    assert not torch.allclose(zeroed, slimmed(IMAGE), atol=1e-3)


def test_folding_is_refused_by_name_where_zero_padding_makes_it_inexact() -> None:
    model: Any = shaken(folding(F.relu, padding=1))
    mask = without(model, {"bn1.weight": [0, 3, 4, 7]})
    with pytest.raises(SlimmingError, match=r"layer 'second' \(got \d channels that are constants but not zero\)"):
        slim(model, mask, example=IMAGE, shifts="fold")
    check(model, mask, IMAGE)
    with torch.no_grad():
        model.bn1.bias[[0, 3, 4, 7]] = -1.0  # dead behind the ReLU: zeros, padded or not
    assert check(model, mask, IMAGE, shifts="fold").first.out_channels == 4
    model = shaken(folding(F.relu, padding=1, padding_mode="reflect"))
    assert check(model, mask, IMAGE, shifts="fold").first.out_channels == 4


def test_frozen_layers_are_cut_and_stay_frozen() -> None:
    model: Any = shaken(group_normed())
    model.stem.requires_grad_(False)
    slimmed = check(model, without(model, {"norm.weight": [2, 3]}), IMAGE)
    assert not slimmed.stem.weight.requires_grad
    assert slimmed.out.weight.requires_grad


def test_weights_that_are_computed_of_others_are_refused_by_name() -> None:
    model: Any = shaken(twice())
    mask = without(model, {"same.weight": [0]})
    prune.random_unstructured(model.stem, "weight", 0.5)
    with pytest.raises(SlimmingError, match=r"layer 'stem' \(got 'weight_orig'\), expected plain parameters"):
        slim(model, mask, example=IMAGE)
    prune.remove(model.stem, "weight")
    check(model, mask, IMAGE, smaller=False)
    parametrizations.weight_norm(model.same)
    with pytest.raises(SlimmingError, match=r"layer 'same' \(got 'a parametrization'\), expected plain parameters"):
        slim(model, without(model, {"stem.weight": [0]}), example=IMAGE)


def test_control_flow_on_data_is_refused_with_layer_and_line() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if bool(x.sum() > 0) else -x

    model = Net(lambda n, x: n.inner(n.stem(x)), stem=conv(3, 4), inner=Inner())
    with pytest.raises(
        TraceError, match=r"layer 'inner' \(got .*line \d+: return x if bool\(x.sum\(\) > 0\) else -x\)"
    ):
        slim(model, without(model, {"stem.weight": [0]}), example=IMAGE)


def test_what_is_not_known_keeps_its_channels() -> None:
    for act in (lambda x: x.cumsum(1), lambda x: F.softmax(x, 1), lambda x: F.normalize(x, dim=1), lambda x: x.flip(1)):
        model = shaken(
            Net(lambda n, x, act=act: n.out(act(n.stem(x)).mean((2, 3))), stem=conv(3, 6), out=nn.Linear(6, 2))
        )
        check(model, without(model, {"stem.weight": [0, 2]}), IMAGE, smaller=False)
