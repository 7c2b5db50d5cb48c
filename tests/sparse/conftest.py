"""Random sparse matrices, and a watch over what a product allocates."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gebt.sparse import Pattern
from gebt.sparse.backends import triton_plan

# Rows, columns, entries: ordinary, full, wide with empty rows, one cell, no entries, no rows, nothing at all.
SIZES = [(5, 7, 12), (4, 4, 16), (12, 3, 4), (1, 1, 1), (3, 2, 0), (0, 4, 0), (4, 0, 0), (0, 0, 0)]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


@pytest.fixture(params=SIZES, ids=str)
def size(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return request.param


@pytest.fixture(scope="session")
def entries() -> Callable[..., tuple[Tensor, Tensor]]:
    """`count` different positions of a matrix, in no order."""

    def draw(rows: int, cols: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        flat = torch.randperm(rows * cols, generator=torch.Generator().manual_seed(seed))[:count]
        return flat // max(1, cols), flat % max(1, cols)

    return draw


@pytest.fixture(scope="session")
def make_pattern(entries: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Pattern]:
    def make(rows: int, cols: int, count: int, seed: int = 0) -> Pattern:
        return Pattern.from_entries(*entries(rows, cols, count, seed), (rows, cols))[0]

    return make


@pytest.fixture(scope="session")
def largest_allocation() -> Callable[[Callable[[], object]], int]:
    """Bytes of the largest single tensor that a piece of work makes."""

    def watch(work: Callable[[], object]) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            work()
        events = profiled.profiler.kineto_results.events()
        return max(event.nbytes() for event in events if event.name() == "[memory]")

    return watch


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small rows are long ones to the Triton kernels."""
    monkeypatch.setattr(triton_plan, "LONGEST_RUN", 16)


@pytest.fixture
def new_memory_is_nan() -> Iterator[None]:
    """What a kernel forgets to write is seen."""
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")
