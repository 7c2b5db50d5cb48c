"""Tests that run on a CUDA device where there is one, and on the pretend one everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.pretend_cuda import pretend_cuda

NO_DEVICE = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=[pytest.mark.gpu, NO_DEVICE])])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which device "cuda" is inside the test."""
    if request.param == "cuda":
        yield "cuda"
        return
    with pretend_cuda():
        yield "pretend"


@pytest.fixture(params=[pytest.param("cuda", marks=[pytest.mark.gpu, NO_DEVICE])])
def gpu(request: pytest.FixtureRequest) -> str:
    """A real device: what the test asks of it cannot be pretended."""
    return request.param
