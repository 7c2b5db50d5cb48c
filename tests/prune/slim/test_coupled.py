"""Coupled masks: sets of layers ranked together, exact counts, all of it taken out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.models.cnn import PreResNet, ResNet
from gebt.prune.slim.coupled import coupled_mask
from gebt.prune.slim.slim import masked_channels, slim
from gebt.prune.tie_breaking import TieBreaker

IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Two layers added to each other, then one more."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.out = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.one(x) + self.other(x)))


def test_scores_add_up_over_all_layers_that_a_channel_goes_through() -> None:
    model = Residual()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.one.weight[:, 0] = torch.tensor([3.0, 1.0, 2.0, 2.0])
        model.other.weight[:, 1] = torch.tensor([0.0, 2.0, 2.0, 1.0])
        model.out.weight[1] = torch.tensor([0.0, 3.0, 0.0, 1.5])
    # Squares: 9, 14, 8, 7.25; the bias is no channel's.
    mask = coupled_mask(model, ratio=0.5, example=torch.randn(2, 3))
    assert mask["one.weight"].all(1).tolist() == [True, True, False, False]
    assert torch.equal(mask["one.weight"], mask["other.weight"])
    assert mask["out.weight"].tolist() == [[True, True, False, False]] * 2
    assert set(mask) == {"one.weight", "other.weight", "out.weight"}


@pytest.mark.parametrize("ratio", [0.3, 0.5])
@pytest.mark.parametrize("make", [lambda: ResNet(18, 10, width=0.15), lambda: PreResNet(20, 10)], ids=["post", "pre"])
def test_every_stream_loses_its_share(make: Any, ratio: float) -> None:
    model = make().eval()
    mask = coupled_mask(model, ratio=ratio, example=IMAGE)
    small = slim(model, mask, example=IMAGE)
    torch.testing.assert_close(small(IMAGE), masked_channels(model, mask)(IMAGE), atol=1e-5, rtol=1e-5)
    before = {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    after = {n: m.out_channels for n, m in small.named_modules() if isinstance(m, nn.Conv2d)}
    assert after == {name: count - int(ratio * count) for name, count in before.items()}
    assert not [m for m in small.modules() if type(m).__name__ == "IndexedBatchNorm"]


def test_ignored_layers_keep_their_channels() -> None:
    model = Residual()
    with pytest.raises(ValueError, match=r"model Residual \(got no channel that could go\)"):
        coupled_mask(model, ratio=0.5, example=torch.randn(2, 3), ignored=["one"])
    with pytest.raises(ValueError, match=r"prune ratio \(got 1\.0\)"):
        coupled_mask(model, ratio=1.0, example=torch.randn(2, 3))


def test_equal_channels_are_pruned_in_the_seeded_order_and_not_by_position() -> None:
    model = Residual()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    kept = set()
    for seed in range(20):
        order = TieBreaker(seed)
        mask = coupled_mask(model, ratio=0.5, example=torch.randn(2, 3), tie_break=order)
        again = coupled_mask(model, ratio=0.5, example=torch.randn(2, 3), tie_break=order)
        assert all(torch.equal(mask[name], again[name]) for name in mask)
        kept.add(tuple(mask["one.weight"].all(1).tolist()))
    assert {sum(channels) for channels in kept} == {2}
    assert len(kept) == 6  # every two of four
