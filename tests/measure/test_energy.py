"""Joules from a powercap folder made up here, and from an NVML made up here."""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path

import pytest
import torch

from gebt.measure import energy
from gebt.measure.energy import energy_meter

RANGE = 1_000_000

WAITS: list[None] = []


def zone(root: Path, folder: str, name: str, microjoules: int) -> Path:
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_packages_and_memory_are_added_up_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    cores = zone(tmp_path, "intel-rapl:0:0", "core", 0)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 7)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    platform = zone(tmp_path, "intel-rapl:2", "psys", 0)
    with energy_meter(powercap=tmp_path) as meter:
        for path, value in ((first, 300_100), (cores, 999_999), (memory, 50_007), (second, 1_000), (platform, 999_999)):
            (path / "energy_uj").write_text(str(value))
    assert meter.joules == pytest.approx(0.3 + 0.05 + 0.001)
    assert meter.what == "RAPL package-0, RAPL dram, RAPL package-1"


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 200_000)
    with energy_meter(powercap=tmp_path) as meter:
        (path / "energy_uj").write_text("300000")
    assert meter.joules == pytest.approx(0.5)


def test_wraps_inside_a_long_block_are_all_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    zones = energy._rapl_zones(tmp_path)
    for value in (900_000, 400_000, 100_000):  # between polls: 0.9 J, then 0.5 J with a wrap, then 0.7 J with another
        (path / "energy_uj").write_text(str(value))
        last = zones[0].joules()
    assert last == pytest.approx(0.9 + 0.5 + 0.7)
    polled = []
    monkeypatch.setattr(energy, "POLL_S", 0.001)
    monkeypatch.setattr(energy._Rapl, "joules", lambda self: polled.append(self.name) or 1.0)
    with energy_meter(powercap=tmp_path) as meter:
        over = time.monotonic() + 10
        while len(polled) < 3 and time.monotonic() < over:
            time.sleep(0.001)
    assert len(polled) > 3
    assert meter.joules == 1.0


def test_without_zones_nothing_is_measured_and_the_reason_said(tmp_path: Path) -> None:
    with energy_meter(powercap=tmp_path) as meter:
        pass
    assert meter.joules is None
    assert meter.what == f"not measured: no RAPL zones under {tmp_path}"


@pytest.mark.parametrize("broken", ["forbidden", "nonsense"])
def test_a_zone_that_cannot_be_read_leaves_none_measured(tmp_path: Path, broken: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    file = zone(tmp_path, "intel-rapl:1", "package-1", 0) / "energy_uj"
    if broken == "nonsense":
        file.write_text("much")
    else:  # root may read any file, but no folder
        file.unlink()
        file.mkdir()
    with energy_meter(powercap=tmp_path) as meter:
        pass
    assert meter.joules is None
    assert ("energy_uj" if broken == "forbidden" else "much") in meter.what


def test_the_block_s_own_error_comes_through(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with pytest.raises(ValueError, match="mine"), energy_meter(powercap=tmp_path):
        raise ValueError("mine")


class FakeNvml(types.ModuleType):
    """NVML of one device that uses 1.5 J between two looks at it."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.broken, self.millijoules, self.asked = broken, 10_000, ""

    def nvmlInit(self) -> None:  # noqa: N802
        if self.broken:
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByUUID(self, identity: str) -> str:  # noqa: N802
        self.asked = identity
        return "device"

    def nvmlDeviceGetTotalEnergyConsumption(self, device: str) -> int:  # noqa: N802
        assert device == "device"
        self.millijoules += 1500
        return self.millijoules


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: types.SimpleNamespace(uuid="ab-cd"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: WAITS.append(None))
    WAITS.clear()
    return monkeypatch


def test_a_device_is_metered_by_its_identity(tmp_path: Path, cuda: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    cuda.setitem(sys.modules, "pynvml", nvml)
    with energy_meter("cuda", tmp_path) as alone:
        pass
    assert (alone.joules, alone.what, nvml.asked) == (1.5, "NVML GPU", "GPU-ab-cd")
    assert len(WAITS) == 2  # what was queued before is not counted, and what is queued inside is
    path = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with energy_meter("cuda", tmp_path) as both:
        (path / "energy_uj").write_text("250000")
    assert both.joules == pytest.approx(1.75)
    assert both.what == "NVML GPU, RAPL package-0"


@pytest.mark.parametrize(("nvml", "why"), [(None, "pynvml"), (FakeNvml(broken=True), "driver not loaded")])
def test_a_device_without_a_meter_is_not_measured_by_the_processor_s(
    tmp_path: Path, cuda: pytest.MonkeyPatch, nvml: FakeNvml | None, why: str
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    cuda.setitem(sys.modules, "pynvml", nvml)
    with energy_meter("cuda", tmp_path) as meter:
        pass
    assert meter.joules is None
    assert why in meter.what
