from __future__ import annotations

import copy
import importlib
import io
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gebt.callbacks.core import EarlyBirdState, MaskEnforcer
from gebt.prune import EarlyBird, Mask
from gebt.prune.schedule import cubic, cyclic

Network = Callable[..., nn.Sequential]


def alike(ratio: float = 0.5, **options: Any) -> EarlyBirdState:
    """Fires at the fourth draw, whatever is drawn: three distances are under 1."""
    return EarlyBirdState(ratio=ratio, detector=EarlyBird(threshold=1.0, window=3), **options)


def step(model: nn.Module, optimizers: list[optim.Optimizer]) -> None:
    model(torch.ones(2, 4)).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("room", "library", "extra"),
    [("lightning", "lightning.pytorch", "lightning"), ("hugging_face", "transformers", "transformers")],
)
def test_a_library_that_is_missing_is_named_with_the_way_to_get_it(
    room: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"gebt.callbacks.{room}", raising=False)
    message = rf"callbacks for .* \(got import of {library}.*\), expected .*; pip install 'gebt\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        importlib.import_module(f"gebt.callbacks.{room}")


def test_the_search_draws_till_it_fires_and_not_after(network: Network, drawn: Callable[..., Mask]) -> None:
    model, search = network(), alike()
    for epoch in range(1, 7):
        told = search.draw(model, [], epoch, 10 * epoch)
        assert told == ({"early_bird/distance": search.trajectory[-1]["criterion"]} if 1 < epoch < 5 else {})
        if epoch == 4:
            expected = drawn(model)
        with torch.no_grad():
            model[0].weight.mul_(-1).add_(0.3)
    assert (search.fired, search.wants_stop, search.epoch_drawn, search.step_drawn) == (True, True, 4, 40)
    assert search.mask == expected
    assert [row["criterion"] > 0 for row in search.trajectory] == [True] * 3


def test_a_step_is_drawn_once_and_every_counts_steps(network: Network) -> None:
    model, search = network(), alike(every=5)
    for number in range(1, 13):
        for _ in range(2):  # as batches of one accumulated step do
            search.draw_every(model, [], 0, number)
    assert (search.detector.draws, search.step_drawn) == (2, 10)
    assert alike().draw_every(model, [], 0, 5) == {}


def test_a_search_that_does_not_stop_holds_what_it_found(network: Network, held: Callable[..., bool]) -> None:
    model, search = network(), alike(stop=False)
    optimizers: list[optim.Optimizer] = [optim.Adam(model.parameters(), lr=0.1)]
    for epoch in range(1, 6):
        step(model, optimizers)
        search.draw(model, optimizers, epoch, epoch)
        assert held(model, search.mask) == (epoch > 3)  # type: ignore[arg-type]
    assert (search.fired, search.wants_stop) == (True, False)
    search.end()
    step(model, optimizers)
    assert not held(model, search.mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [1, 3, 4])
def test_a_search_resumed_from_a_file_goes_on_as_if_it_had_not_stopped(network: Network, cut: int) -> None:
    def drawn(search: EarlyBirdState, epochs: range) -> EarlyBirdState:
        for epoch in epochs:
            search.draw(network(epoch), [], epoch, epoch)
        return search

    straight, first, second = drawn(alike(), range(1, 7)), drawn(alike(), range(1, cut + 1)), alike()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    drawn(second, range(cut + 1, 7))
    assert (second.epoch_drawn, second.mask, second.trajectory) == (4, straight.mask, straight.trajectory)


def test_every_optimizer_holds_what_it_trains_and_what_none_trains_is_refused(
    network: Network, drawn: Callable[..., Mask], held: Callable[..., bool]
) -> None:
    model = network()
    optimizers: list[optim.Optimizer] = [optim.SGD(model[i].parameters(), lr=0.1, weight_decay=0.1) for i in (0, 2)]
    ticket = MaskEnforcer(drawn(model))
    with pytest.raises(ValueError, match=r"parameter '2.weight' \(got none in 1 optimizers\), expected one of them"):
        ticket.begin(model, optimizers[:1], 0)
    assert model[0].weight.all()
    ticket.begin(model, optimizers, 0)
    for optimizer in optimizers:
        step(model, [optimizer])
        assert held(model, ticket.mask)  # type: ignore[arg-type]


def test_masks_follow_the_schedule_thinner_and_thinner_to_its_end(network: Network, held: Callable[..., bool]) -> None:
    model, schedule = network(), partial(cubic, ratio=0.8, begin=3, end=18)
    optimizers: list[optim.Optimizer] = [optim.AdamW(model.parameters(), lr=0.01)]
    ticket = MaskEnforcer(schedule=schedule, every=4)
    ticket.begin(model, optimizers, 0)
    assert ticket.mask is not None
    assert ticket.mask.sparsity == 0
    drawn: dict[int, Mask] = {}
    for number in range(1, 25):
        before = ticket.mask
        step(model, optimizers)
        told = ticket.after_step(model, optimizers, number)
        if told:
            drawn[number] = ticket.mask
            assert told == {"ticket/sparsity": ticket.mask.sparsity}
            assert held(model, ticket.mask)
            assert all(not bool((kept & ~before[name]).any()) for name, kept in ticket.mask.items())
        else:
            assert ticket.mask is before
    assert list(drawn) == [4, 8, 12, 16, 18]
    assert {n: 70 - mask.kept for n, mask in drawn.items()} == {n: int(schedule(n) * 70) for n in drawn}
    assert len(optimizers[0]._optimizer_step_post_hooks) == 1  # type: ignore[attr-defined]


def test_where_the_share_falls_weights_may_grow_again(network: Network) -> None:
    model = network()
    optimizers: list[optim.Optimizer] = [optim.SGD(model.parameters(), lr=0.1)]
    ticket = MaskEnforcer(schedule=partial(cyclic, ratio=0.6, period=4, cycles=2), every=1)
    ticket.begin(model, optimizers, 0)
    kept = []
    for number in range(1, 10):
        step(model, optimizers)
        ticket.after_step(model, optimizers, number)
        kept.append(ticket.mask.kept)  # type: ignore[union-attr]
    assert kept == [46, 34, 29, 70, 46, 34, 29, 28, 28]


def test_the_end_prunes_weights_that_were_loaded_meanwhile(network: Network, drawn: Callable[..., Mask]) -> None:
    model = network()
    ticket = MaskEnforcer(drawn(model))
    ticket.begin(model, [optim.SGD(model.parameters(), lr=0.1)], 0)
    model.load_state_dict(network(1).state_dict())
    ticket.end(model)
    assert not model[0].weight[~ticket.mask["0.weight"]].any()  # type: ignore[index]


def test_a_second_training_begins_its_schedule_anew(network: Network) -> None:
    model, ticket = network(), MaskEnforcer(schedule=lambda step: min(0.1 * step, 0.5), every=1)
    for _ in range(2):
        optimizers: list[optim.Optimizer] = [optim.SGD(model.parameters(), lr=0.1)]
        ticket.begin(model, optimizers, 0)
        assert ticket.ratio == 0
        ticket.after_step(model, optimizers, 5)
        assert ticket.ratio == 0.5
        ticket.end(model)


def test_whole_channels_are_drawn_and_an_empty_layer_only_where_it_is_allowed(network: Network) -> None:
    model = network()
    search = alike(0.2, scope="channel")
    search.draw(model, [], 1, 1)
    assert search.mask is not None
    rows = torch.cat([kept.float().mean(1) for kept in search.mask.values()])
    assert rows.sort().values.tolist() == [0] * 2 + [1] * 11
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    with pytest.raises(ValueError, match=r"prune ratio \(got 0.5\) would remove all 30 entries of '2.weight'"):
        alike().draw(model, [], 1, 1)
    alike(allow_empty=True).draw(model, [], 1, 1)
    with pytest.raises(ValueError, match="would remove all 30 entries"):
        MaskEnforcer(schedule=lambda step: 0.5).begin(model, [optim.SGD(model.parameters(), lr=0.1)], 0)


def test_arguments_and_states_that_do_not_fit_are_refused(network: Network, drawn: Callable[..., Mask]) -> None:
    mask = drawn(network())
    with pytest.raises(ValueError, match=r"mask, schedule \(got none\), expected one of them"):
        MaskEnforcer()
    with pytest.raises(ValueError, match=r"mask, schedule \(got both\), expected one of them"):
        MaskEnforcer(mask, schedule=lambda step: 0.5)
    with pytest.raises(ValueError, match=r"every \(got 0\), expected at least 1 step"):
        MaskEnforcer(mask, every=0)
    with pytest.raises(ValueError, match=r"every \(got 0\), expected at least 1 step"):
        EarlyBirdState(ratio=0.5, every=0)
    with pytest.raises(ValueError, match=r"prune ratio \(got 1.0\)"):
        EarlyBirdState(ratio=1.0)
    with pytest.raises(ValueError, match=r"state of 'early_bird' \(got one of {'ratio': 0.5, 'scope': 'global'}\)"):
        alike(0.4).load_state_dict(alike(0.5).state_dict())
    with pytest.raises(ValueError, match=r"state of 'ticket' \(got another mask: Mask\(2 tensors, 28 of 70 kept\)\)"):
        MaskEnforcer(mask).load_state_dict(MaskEnforcer(drawn(network(), 0.6)).state_dict())
    MaskEnforcer(mask).load_state_dict(MaskEnforcer(mask).state_dict())


def test_a_loop_of_ones_own_with_low_precision_and_compilation_holds_and_saves_the_same_names(
    network: Network,
    task: TensorDataset,
    drawn: Callable[..., Mask],
    held: Callable[..., bool],
    size: Callable[..., int],
) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    model.compile(backend="eager")
    optimizers: list[optim.Optimizer] = [optim.AdamW(model.parameters(), lr=0.01, fused=True)]
    ticket, scaler = MaskEnforcer(drawn(model)), torch.amp.GradScaler("cpu")
    ticket.begin(model, optimizers, 0)
    for number, (x, y) in enumerate(DataLoader(task, 8), 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[0].zero_grad()
        ticket.after_step(model, optimizers, number)
        assert held(model, ticket.mask)  # type: ignore[arg-type]
    ticket.end(model)
    assert list(model.state_dict()) == list(before)
    assert size(model.state_dict()) == size(before)
