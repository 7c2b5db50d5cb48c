"""A tiny network and task that all loops train; `ranks.py` imports them, tests have them as fixtures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from gebt.prune import Mask, magnitude, make_mask, prunable_weights
from gebt.prune.enforce import parameters_of

# The folder datasets/ of the repository, which is on the path, is no package; transformers takes it for the library.
found = find_spec("datasets")
if found is not None and found.origin is None:
    sys.modules["datasets"] = None  # type: ignore[assignment]


def make_network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))


def make_task() -> TensorDataset:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def drawn_from(model: nn.Module, ratio: float = 0.5) -> Mask:
    return make_mask(magnitude(prunable_weights(model)), ratio=ratio)


def is_held(model: nn.Module, mask: Mask) -> bool:
    """Pruned entries are zero, kept ones are not."""
    parameters = parameters_of(model, mask)
    pruned = torch.cat([parameters[name][~kept] for name, kept in mask.items()])
    stay = torch.cat([parameters[name][kept] for name, kept in mask.items()])
    return bool(pruned.numel()) and not bool(pruned.any()) and bool(stay.all())


def bytes_of(state: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())


@pytest.fixture
def network() -> Callable[..., nn.Sequential]:
    return make_network


@pytest.fixture
def task() -> TensorDataset:
    return make_task()


@pytest.fixture
def drawn() -> Callable[..., Mask]:
    return drawn_from


@pytest.fixture
def held() -> Callable[[nn.Module, Mask], bool]:
    return is_held


@pytest.fixture
def size() -> Callable[[dict[str, Tensor]], int]:
    return bytes_of
