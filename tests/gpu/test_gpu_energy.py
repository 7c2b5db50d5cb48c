"""The meters of a real device."""

from __future__ import annotations

import time

import pytest
import torch

from gebt.experiments.record import machine
from gebt.measure.cost import peak_memory
from gebt.measure.energy import energy_meter

# The most watts of an H100.
MOST_WATTS = 750.0


def test_the_energy_counter_rises_with_work(gpu: str) -> None:
    a = torch.randn(4096, 4096, device=gpu)
    with energy_meter("cuda") as meter:
        start = time.perf_counter()
        while time.perf_counter() - start < 0.7:
            a @ a
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    if meter.joules is None:
        pytest.skip(meter.what)
    assert 35.0 < meter.joules <= MOST_WATTS * seconds * 1.2


def test_the_peak_of_memory_is_that_of_the_device(gpu: str) -> None:
    with peak_memory("cuda") as peak:
        held = torch.empty(64 << 20, dtype=torch.uint8, device=gpu)
        del held
    assert 64 << 20 <= peak.bytes - peak.before < 80 << 20


def test_the_record_names_the_device(gpu: str) -> None:
    assert machine()["device"] == torch.cuda.get_device_name()
