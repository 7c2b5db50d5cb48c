"""Lottery tickets of any network: exact nested levels, rewinding of all state, resuming, baselines."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn import functional as F

from gebt.prune.imp import Enforce, ImpResult, iterative_magnitude_pruning

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] * X[:, 1] > 0).long()


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 2))
        self.reset(0)

    def reset(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        self[1].reset_running_stats()


class Training:
    """Fifteen steps of SGD; tells what it was asked to do."""

    def __init__(self, enforces: bool = True) -> None:
        self.calls: list[tuple[int, int | None]] = []
        self.enforces = enforces

    def __call__(self, model: nn.Module, *, start: int, stop: int | None, enforce: Enforce) -> Any:
        self.calls.append((start, stop))
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        if self.enforces:
            enforce(optimizer)
        for _ in range(start, 15 if stop is None else stop):
            optimizer.zero_grad()
            loss = F.cross_entropy(model.train()(X), Y)
            loss.backward()
            optimizer.step()
        return {"loss": float(loss.detach())}


def drawn(model: Net, train: Training | None = None, **more: Any) -> ImpResult:
    return iterative_magnitude_pruning(model, train or Training(), **{"ratio": 0.8, "levels": 3, **more})


def test_levels_are_exact_nested_and_trained_from_the_rewound_state() -> None:
    model, train = Net(), Training()
    imp = drawn(model, train)
    total = imp.levels[0].mask.size
    counts = [total - int(share * total) for share in (0, 1 - 0.2 ** (1 / 3), 1 - 0.2 ** (2 / 3), 0.8)]
    assert [level.mask.kept for level in imp.levels] == counts
    for before, after in zip(imp.levels, imp.levels[1:], strict=False):
        assert not bool((after.mask.flat() & ~before.mask.flat()).any())
    assert train.calls == [(0, None)] * 4
    twin = Net()
    imp.levels[-1].mask.apply_(dict(twin.named_parameters()))
    optimizer = optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    # The last level again, by hand.
    from gebt.prune import enforce_mask

    enforce_mask(twin, imp.levels[-1].mask, optimizer)
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(twin.train()(X), Y).backward()
        optimizer.step()
    assert all(torch.equal(tensor, twin.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_late_rewinding_goes_back_to_a_step_with_all_buffers() -> None:
    model, train = Net(), Training()
    imp = drawn(model, train, rewind=4, levels=1)
    assert train.calls == [(0, 4), (4, None), (4, None)]
    expected = Net()
    Training()(expected, start=0, stop=4, enforce=lambda optimizer: None)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in imp.rewound.items())
    assert int(imp.rewound["1.num_batches_tracked"]) == 4


def test_the_smallest_trained_weights_go_in_all_or_in_each() -> None:
    model = Net()
    one = drawn(model, levels=1)
    dense = Net()
    Training()(dense, start=0, stop=None, enforce=lambda optimizer: None)
    flat = torch.cat([dense[0].weight.flatten(), dense[3].weight.flatten()]).detach().abs()
    kept = one.levels[1].mask.flat()
    assert float(flat[kept].min()) >= float(flat[~kept].max())
    each = drawn(Net(), levels=1, layerwise=True).levels[1].mask
    assert [int(kept.sum()) for kept in each.values()] == [120 - 96, 40 - 32]


def test_a_lottery_goes_on_where_it_stopped(tmp_path: Path) -> None:
    uninterrupted = drawn(Net())

    class Broken(Training):
        def __call__(self, *inputs: Any, **more: Any) -> Any:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(*inputs, **more)

    with pytest.raises(KeyboardInterrupt):
        drawn(Net(), Broken(), folder=tmp_path)
    model, train = Net(), Training()
    again = drawn(model, train, folder=tmp_path)
    assert len(train.calls) == 2
    assert [level.mask for level in again.levels] == [level.mask for level in uninterrupted.levels]
    assert [level.result for level in again.levels] == [level.result for level in uninterrupted.levels]
    assert len(list(tmp_path.iterdir())) == 6
    with pytest.raises(ValueError, match=r"folder .* \(got a run with other ratio\), expected the same"):
        drawn(Net(), ratio=0.5, folder=tmp_path)


def test_ratios_of_ones_own_may_prune_before_the_first_training() -> None:
    model = Net()
    flat = torch.cat([model[0].weight.flatten(), model[3].weight.flatten()]).detach().abs()
    imp = iterative_magnitude_pruning(model, Training(), ratio=(0.2, 0.5, 0.5))
    assert [level.mask.kept for level in imp.levels] == [128, 80, 80]
    kept = imp.levels[0].mask.flat()
    assert float(flat[kept].min()) >= float(flat[~kept].max())
    assert imp.levels[1].mask == imp.levels[2].mask
    assert [level.result for level in imp.levels[1:]] == [imp.levels[1].result] * 2
    for ratio, levels in (((), None), ((0.5, 0.2), None), ((0.1, 0.2), 2)):
        with pytest.raises(ValueError, match=r"ratio, levels \(got .*\), expected one ratio and levels, or rising"):
            iterative_magnitude_pruning(Net(), Training(), ratio=ratio, levels=levels)
    with pytest.raises(ValueError, match=r"levels \(got 0\)"):
        iterative_magnitude_pruning(Net(), Training(), ratio=0.5)


def test_what_stays_goes_on_as_trained_also_after_a_stop(tmp_path: Path) -> None:
    class Watching(Training):
        def __call__(self, model: nn.Module, **more: Any) -> Any:
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
            return super().__call__(model, **more)

    seen: list[dict[str, torch.Tensor]] = []
    stays = ("3.weight", "3.bias")
    weights = {"0.weight": (model := Net())[0].weight}
    options: dict[str, Any] = {"ratio": (0.0, 0.5), "weights": weights, "stays": stays}
    iterative_magnitude_pruning(model, Watching(), **options)
    iterative_magnitude_pruning(dense := Net(), Training(), ratio=(0.0,))
    assert all(torch.equal(seen[1][name], dense.state_dict()[name]) for name in stays)
    assert not any(torch.equal(seen[1][name], seen[0][name]) for name in stays)
    assert torch.equal(seen[1]["0.bias"], seen[0]["0.bias"])
    assert torch.equal(seen[1]["1.running_mean"], seen[0]["1.running_mean"])

    class Broken(Training):
        def __call__(self, *args: Any, **more: Any) -> Any:
            if self.calls:
                raise KeyboardInterrupt
            return super().__call__(*args, **more)

    again = Net()
    for train in (Broken(), Training()):
        options["weights"] = {"0.weight": again[0].weight}
        try:
            iterative_magnitude_pruning(again, train, folder=tmp_path, **options)
        except KeyboardInterrupt:
            again.reset(9)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match=r"got a run with other stays\)"):
        iterative_magnitude_pruning(again, Training(), folder=tmp_path, **{**options, "stays": stays[:1]})
    with pytest.raises(ValueError, match=r"stays \(got '9.bias'\), expected names of the state dict"):
        iterative_magnitude_pruning(Net(), Training(), ratio=(0.0,), stays=["9.bias"])


def test_baselines_keep_what_they_say() -> None:
    model = Net()
    imp = drawn(model)
    mask = imp.levels[2].mask
    zeros = {"reinit": mask}
    for how in ("reinit", "shuffled", "shuffled_global"):
        result = imp.baseline(model, Training(), 2, how, seed=5)  # type: ignore[arg-type]
        assert result != imp.levels[2].result
        weights = {name: dict(model.named_parameters())[name].detach() != 0 for name in mask}
        assert sum(int(kept.sum()) for kept in weights.values()) == mask.kept
        if how in zeros:
            assert all(torch.equal(kept, mask[name]) for name, kept in weights.items())
        if how == "shuffled":
            assert [int(kept.sum()) for kept in weights.values()] == [int(kept.sum()) for kept in mask.values()]
    with pytest.raises(ValueError, match=r"how \(got 'luck'\)"):
        imp.baseline(model, Training(), 1, "luck")  # type: ignore[arg-type]


def test_wrong_settings_and_a_training_that_does_not_hold_are_refused() -> None:
    before = copy.deepcopy(Net().state_dict())
    with pytest.raises(ValueError, match=r"levels \(got 0\)"):
        drawn(Net(), levels=0)
    with pytest.raises(ValueError, match=r"rewind \(got -1\)"):
        drawn(Net(), rewind=-1)
    with pytest.raises(ValueError, match=r"pruned entries of '0.weight' \(got non-zero\), expected zero; call"):
        drawn(Net(), Training(enforces=False))
    assert before.keys() == Net().state_dict().keys()


def test_a_layer_is_emptied_only_where_that_is_allowed() -> None:
    class Lopsided(Net):
        def reset(self, seed: int) -> None:
            super().reset(seed)
            self[3].weight.data.mul_(1e-6)

    def still(model: nn.Module, *, start: int, stop: int | None, enforce: Enforce) -> None:
        enforce(optim.SGD(model.parameters(), lr=0.1))

    with pytest.raises(ValueError, match=r"would remove all 40 entries of '3\.weight'"):
        iterative_magnitude_pruning(Lopsided(), still, ratio=0.8, levels=1)
    imp = iterative_magnitude_pruning(Lopsided(), still, ratio=0.8, levels=1, allow_empty=True)
    assert not bool(imp.levels[1].mask["3.weight"].any())
