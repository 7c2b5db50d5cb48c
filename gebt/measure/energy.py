"""Joules, where the machine has a meter: RAPL for processors and memory (Linux), NVML for NVIDIA devices."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

POWERCAP = Path("/sys/class/powercap")
# RAPL counters wrap around, on a busy server after some five minutes; a wrap is seen if it is looked for more often.
POLL_S = 30.0


@dataclass
class Energy:
    """`joules` used inside an `energy_meter` block, None without a meter; `what`: the meters, or why there is none."""

    joules: float | None = None
    what: str = ""


class _Counter(Protocol):
    name: str

    def joules(self) -> float:
        """Joules since the counter was made."""


@contextmanager
def energy_meter(device: str = "cpu", powercap: Path = POWERCAP) -> Iterator[Energy]:
    """Measures the energy that the machine uses inside the block: everything that runs on it, not this process alone.

    On "cpu" the RAPL zones of packages and memory, on "cuda" the device by NVML, and RAPL where it can be read. The
    block begins and ends with an idle device. NVML counts in steps of up to 0.1 s: fill at least a second.
    """
    used = Energy()
    counters: list[_Counter] = []
    try:
        if device != "cpu":
            # What was queued before belongs to others.
            torch.cuda.synchronize()
            counters.append(_Nvml())
        counters.extend(_rapl_zones(powercap))
    except (OSError, ValueError, ImportError, _nvml_error()) as error:
        used.what = f"not measured: {error}"  # unless the device has its own meter: then by that alone
    if not counters:
        yield used
        return
    over = threading.Event()
    poll = threading.Thread(target=_poll, args=(counters, over), daemon=True)
    poll.start()
    try:
        yield used
    finally:
        over.set()
        poll.join()
    if device != "cpu":
        # What was queued inside is to be over.
        torch.cuda.synchronize()
    used.joules = sum(counter.joules() for counter in counters)
    used.what = ", ".join(counter.name for counter in counters)


def _poll(counters: list[_Counter], over: threading.Event) -> None:
    while not over.wait(POLL_S):
        for counter in counters:
            counter.joules()


class _Rapl:
    """One zone of the kernel's powercap interface: microjoules that wrap around at the zone's range."""

    def __init__(self, zone: Path) -> None:
        self.name = f"RAPL {(zone / 'name').read_text().strip()}"
        self._file, self._range = zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())
        self._last, self._total = self._read(), 0

    def joules(self) -> float:
        """Joules since the counter was made."""
        now = self._read()
        self._total += now - self._last + (self._range if now < self._last else 0)
        self._last = now
        return self._total / 1e6

    def _read(self) -> int:
        return int(self._file.read_text())


def _rapl_zones(powercap: Path) -> list[_Rapl]:
    """Packages, and memory that stands beside them; cores and graphics are inside a package, "psys" is around it."""
    zones = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        name = (zone / "name").read_text().strip()
        if name.startswith("package") or name == "dram":
            zones.append(_Rapl(zone))
    if not zones:
        raise OSError(f"no RAPL zones under {powercap}")
    return zones


class _Nvml:
    """The total energy of the current CUDA device, in millijoules since its driver was loaded."""

    def __init__(self) -> None:
        self._nvml = importlib.import_module("pynvml")
        self._nvml.nvmlInit()
        # By identity: NVML does not number devices as CUDA does.
        identity = f"GPU-{torch.cuda.get_device_properties().uuid}"
        self._device = self._nvml.nvmlDeviceGetHandleByUUID(identity)
        self.name = f"NVML {torch.cuda.get_device_name()}"
        self._start = self._read()

    def joules(self) -> float:
        """Joules since the counter was made."""
        return (self._read() - self._start) / 1e3

    def _read(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device))


def _nvml_error() -> Any:
    """The exception of NVML, where it is installed (package nvidia-ml-py)."""
    try:
        return importlib.import_module("pynvml").NVMLError
    except ImportError:
        return ImportError
