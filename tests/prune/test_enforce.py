from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import nn, optim

from gebt.prune import Mask, enforce_mask, magnitude, make_mask, prunable_weights

MAKERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p, wd: optim.SGD(p, lr=0.1, weight_decay=wd),
    "momentum": lambda p, wd: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=wd),
    "adam": lambda p, wd: optim.Adam(p, lr=0.1, weight_decay=wd),
    "adam-fused": lambda p, wd: optim.Adam(p, lr=0.1, weight_decay=wd, fused=True),
    "adamw": lambda p, wd: optim.AdamW(p, lr=0.1, weight_decay=wd),
    "adamw-foreach": lambda p, wd: optim.AdamW(p, lr=0.1, weight_decay=wd, foreach=True),
}


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture
def mask(model: nn.Module) -> Mask:
    return make_mask(magnitude(prunable_weights(model)), ratio=0.5)


def step(model: nn.Module, optimizer: optim.Optimizer, seed: int = 0) -> None:
    x = torch.rand(8, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (model(x) - 1).square().sum().backward()
    optimizer.step()


def pruned_entries(model: nn.Module, mask: Mask) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    return torch.cat([parameters[name][~kept] for name, kept in mask.items()])


@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
@pytest.mark.parametrize("kind", MAKERS)
def test_pruned_weights_are_zero_after_every_step(model: nn.Module, mask: Mask, kind: str, weight_decay: float) -> None:
    optimizer = MAKERS[kind](model.parameters(), weight_decay)
    for seed in range(3):  # momentum that is warm when the mask is first enforced is what leaks elsewhere
        step(model, optimizer, seed)
    enforce_mask(model, mask, optimizer)
    assert not pruned_entries(model, mask).any()
    kept = {name: dict(model.named_parameters())[name][k].clone() for name, k in mask.items()}
    for seed in range(20):
        step(model, optimizer, seed)
        assert not pruned_entries(model, mask).any()
    assert all(not torch.equal(dict(model.named_parameters())[n][mask[n]], old) for n, old in kept.items())


def test_a_state_dict_is_untouched_and_keeps_the_zeros_through_a_file(model: nn.Module, mask: Mask) -> None:
    names = list(model.state_dict())
    optimizer = MAKERS["adam"](model.parameters(), 0.0)
    enforce_mask(model, mask, optimizer)
    step(model, optimizer)
    assert list(model.state_dict()) == names
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    again = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    again.load_state_dict(stored["model"])
    assert not pruned_entries(again, mask).any()
    optimizer = MAKERS["adam"](again.parameters(), 0.0)
    enforce_mask(again, mask, optimizer)
    optimizer.load_state_dict(stored["optimizer"])
    step(again, optimizer)
    step(model, optimizer)
    assert not pruned_entries(again, mask).any()


def test_after_remove_the_weights_are_free(model: nn.Module, mask: Mask) -> None:
    optimizer = MAKERS["adam"](model.parameters(), 0.0)
    enforce_mask(model, mask, optimizer).remove()
    step(model, optimizer)
    assert pruned_entries(model, mask).any()


def test_a_parameter_outside_the_mask_moves_freely(model: nn.Module) -> None:
    before = model[2].weight.detach().clone()
    optimizer = MAKERS["sgd"](model.parameters(), 0.0)
    enforce_mask(model, Mask({"0.weight": torch.zeros(5, 4, dtype=torch.bool)}), optimizer)
    assert torch.equal(model[2].weight, before)
    step(model, optimizer)
    assert not model[0].weight.any()
    assert model[0].bias.any()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("9.weight", (5, 4), r"mask tensor '9.weight' \(got no such parameter\), expected one of \['0.bias'"),
        ("0.weight", (4, 5), r"mask tensor '0.weight' \(got shape \(4, 5\)\), expected \(5, 4\)"),
        ("2.weight", (3, 5), r"parameter '2.weight' \(got none in this optimizer\)"),
        ("module.0.weight", (5, 4), r"mask tensors '0.weight', 'module.0.weight' \(got both for '0.weight'\)"),
    ],
)
def test_a_mask_that_fits_not_is_refused_and_nothing_is_zeroed(
    model: nn.Module, name: str, shape: tuple[int, ...], message: str
) -> None:
    optimizer = MAKERS["sgd"](model[0].parameters(), 0.0)
    before = model[0].weight.detach().clone()
    mask = {"0.weight": torch.zeros(5, 4, dtype=torch.bool), name: torch.zeros(shape, dtype=torch.bool)}
    with pytest.raises(ValueError, match=message):
        enforce_mask(model, Mask(mask), optimizer)
    assert torch.equal(model[0].weight, before)


class Wrapper(nn.Module):
    """Names as DistributedDataParallel has them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


def wrapped(model: nn.Module, how: str) -> nn.Module:
    if how == "compile the layers":
        return nn.Sequential(*(torch.compile(layer, backend="eager") for layer in model))
    return {
        "plain": lambda: model,
        "wrap": lambda: Wrapper(model),
        "compile": lambda: torch.compile(model, backend="eager"),
        "compile, then wrap": lambda: Wrapper(torch.compile(model, backend="eager")),
    }[how]()


# Dynamo, given the output of another compiled layer, asks for its gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("inner", ["plain", "wrap"])
@pytest.mark.parametrize("outer", ["plain", "wrap", "compile", "compile, then wrap", "compile the layers"])
def test_a_mask_holds_however_its_model_and_the_trained_one_are_wrapped(
    model: nn.Module, inner: str, outer: str
) -> None:
    drawn = make_mask(magnitude(prunable_weights(wrapped(model, inner))), ratio=0.5)
    outside = wrapped(model, outer)
    names = list(outside.state_dict())
    optimizer = MAKERS["adam"](outside.parameters(), 5e-4)
    enforce_mask(outside, drawn, optimizer)
    plain = Mask({name.removeprefix("module."): kept for name, kept in drawn.items()})
    for _ in range(2 if outer == "plain" or "wrap" in outer else 1):
        step(outside, optimizer)
        assert not pruned_entries(model, plain).any()
    assert pruned_entries(model, Mask({name: ~kept for name, kept in plain.items()})).all()
    assert list(outside.state_dict()) == names


def test_a_compiled_model_is_held_under_its_own_names(model: nn.Module, mask: Mask) -> None:
    names = list(model.state_dict())
    model.compile(backend="eager")
    optimizer = MAKERS["momentum"](model.parameters(), 0.0)
    enforce_mask(model, mask, optimizer)
    step(model, optimizer)
    assert not pruned_entries(model, mask).any()
    assert list(model.state_dict()) == names


def test_names_that_are_alike_without_wrappers_are_refused_unless_one_is_the_same(model: nn.Module) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.first = nn.ModuleDict({"module": nn.Linear(2, 2)})
            self.module.first = nn.Linear(2, 2)

    both = Both()
    optimizer = MAKERS["sgd"](both.parameters(), 0.0)
    none = torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"mask tensor 'first.weight' \(got \['module.first.weight', 'first.module"):
        enforce_mask(both, Mask({"first.weight": none}), optimizer)
    enforce_mask(both, Mask({"module.first.weight": none}), optimizer)
    assert not both.module.first.weight.any()
    assert both.first["module"].weight.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_every_kind_of_number_in_any_order_of_memory_is_zeroed_whatever_it_holds(
    dtype: torch.dtype, format: torch.memory_format
) -> None:
    layer = nn.Conv2d(3, 4, 2, bias=False, dtype=dtype).to(memory_format=format)
    values = torch.tensor([1.5, -2.0, float("nan"), float("inf")]).repeat(12).view(4, 3, 2, 2).to(dtype)
    layer.weight.data.copy_(values)
    kept = torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.5
    enforce_mask(layer, Mask({"weight": kept}), optim.SGD(layer.parameters(), lr=0.1))
    assert torch.equal(layer.weight[~kept], torch.zeros_like(layer.weight[~kept]))
    torch.testing.assert_close(layer.weight[kept], values[kept], rtol=0, atol=0, equal_nan=True)


def test_a_model_that_changes_its_numbers_while_held_stays_held(model: nn.Module, mask: Mask) -> None:
    optimizer = MAKERS["momentum"](model.parameters(), 0.0)
    enforce_mask(model, mask, optimizer)
    model.double()
    optimizer.zero_grad()
    model(torch.rand(8, 4).double()).square().sum().backward()
    optimizer.step()
    assert not pruned_entries(model, mask).any()


@pytest.mark.parametrize("kind", ["momentum", "adam-fused", "adamw-foreach"])
@pytest.mark.parametrize("enabled", [True, False])
def test_steps_of_a_gradient_scaler_taken_or_skipped_leave_pruned_weights_at_zero(
    model: nn.Module, mask: Mask, kind: str, enabled: bool
) -> None:
    optimizer, scaler = MAKERS[kind](model.parameters(), 5e-4), torch.amp.GradScaler("cpu", enabled=enabled)
    enforce_mask(model, mask, optimizer)
    for number in range(4):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(torch.rand(8, 4)) - 1).square().mean()
        scaler.scale(loss).backward()
        overflow = enabled and number == 2
        if overflow:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        assert not pruned_entries(model, mask).any()
        moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert any(moved) != overflow
