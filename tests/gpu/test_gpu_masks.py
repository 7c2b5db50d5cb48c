"""Masks on a device are those of the CPU, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gebt.models.linear import SemiStructuredLinear
from gebt.prune.drawing import Drawing
from gebt.prune.n_m_sparsity import is_two_of_four, two_of_four
from gebt.prune.selection import make_mask, make_unread_mask
from gebt.prune.tie_breaking import TieBreaker


def numbers(size: int) -> Tensor:
    """With ties at many places, zeros of both signs and infinities."""
    drawn = torch.randn(size, generator=torch.Generator().manual_seed(0))
    drawn[: size // 2] = drawn[: size // 2].mul(4).round().div(4)
    drawn[::97] = -0.0
    drawn[5::101], drawn[7::103] = math.inf, -math.inf
    return drawn


def size_of(place: str) -> int:
    return 1_000_000 if place == "cuda" else 20_000


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.97])
def test_a_drawing_and_a_selection_are_those_of_the_cpu(ratio: float, place: str) -> None:
    values, tie_break = numbers(size_of(place)), TieBreaker(3)
    drawing = Drawing({"w": values}, ratio=ratio, tie_break=tie_break)
    on_cpu = drawing.draw({"w": values})["w"]
    moved = values.to("cuda")
    on_device = Drawing({"w": moved}, ratio=ratio, tie_break=tie_break).draw({"w": moved})["w"]
    assert torch.equal(on_device.cpu(), on_cpu)
    selected = make_mask({"w": moved.abs()}, ratio=ratio, tie_break=tie_break, allow_empty=True)["w"]
    assert torch.equal(selected.cpu(), on_cpu)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_an_unread_selection_of_signed_scores_is_that_of_the_cpu(ratio: float, place: str) -> None:
    scores, tie_break = numbers(size_of(place)), TieBreaker(3)
    # At one half the threshold is zero, of either sign.
    on_device = make_unread_mask({"w": scores.to("cuda")}, ratio=ratio, tie_break=tie_break)["w"]
    assert torch.equal(on_device.cpu(), make_mask({"w": scores}, ratio=ratio, tie_break=tie_break)["w"])


def test_a_nan_is_refused(place: str) -> None:
    values = numbers(1000)
    values[500] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        _ = Drawing({"w": values.to("cuda")}, ratio=0.5, tie_break=TieBreaker(0)).draw({"w": values.to("cuda")}).kept


def test_ranks_of_ties_are_those_of_the_cpu(place: str) -> None:
    entries = torch.arange(size_of(place))
    assert torch.equal(TieBreaker(7).of(entries.to("cuda")).cpu(), TieBreaker(7).of(entries))


def test_two_of_four_is_that_of_the_cpu(place: str) -> None:
    scores = numbers(512 * 1433 if place == "cuda" else 16 * 33).view(512 if place == "cuda" else 16, -1).abs()
    on_device = two_of_four({"w": scores.to("cuda")})["w"].cpu()
    assert torch.equal(on_device, two_of_four({"w": scores})["w"])
    full = scores.shape[1] // 4 * 4
    assert is_two_of_four(on_device[:, :full].contiguous())


@pytest.mark.parametrize("shape", [(256, 256), (512, 1440)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sparse_tensor_cores_multiply_as_dense_ones(shape: tuple[int, int], dtype: torch.dtype, gpu: str) -> None:
    weight = torch.randn(shape, device=gpu)
    weight = (weight * two_of_four({"w": weight.abs()})["w"]).to(dtype)
    x = torch.randn(1000, shape[1], device=gpu, dtype=dtype)
    right = F.linear(x.double(), weight.double())
    found = SemiStructuredLinear(weight)(x)
    assert float((found.double() - right).abs().max()) <= 1e-2 * float(right.abs().max())
