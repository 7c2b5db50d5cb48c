"""The process that runs sections one after the other."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from gpu import LIMITS
from gpu_sections.setting import Setting

# Where each section is: its module is imported when it begins, so that one that cannot be stops no other.
SECTIONS = {
    "ceilings": ("ceilings", "ceilings"),
    "tests": ("gpu_tests", "gpu_tests"),
    "products": ("products", "products"),
    "small": ("small", "small"),
    "arxiv": ("large", "arxiv"),
    "reddit": ("large", "reddit"),
    "two-of-four": ("two_of_four", "two_of_four"),
    "energy": ("energy", "energy"),
    "compiled": ("compiled", "compiled"),
}
# They need no device, or none that can be pretended.
ON_THE_HOST = ("tests", "compiled")


class OutOfTimeError(BaseException):
    """A section is over its limit; no attempt inside it catches this."""


def find(name: str) -> Callable[[Setting], None]:
    """The section of that name."""
    module, function = SECTIONS[name]
    return getattr(importlib.import_module(f"gpu_sections.{module}"), function)


def run_sections(arguments: argparse.Namespace) -> None:
    """Runs the sections and notes how each of them ended; the process ends where the device is of no more use."""
    warnings.filterwarnings("ignore", message="Sparse CSR")
    end = time.monotonic() + arguments.budget
    setting = Setting(arguments.folder, arguments.out, arguments.pretend, arguments.data_root)
    if arguments.out.is_file():
        for line in arguments.out.read_text().splitlines():
            setting.known |= json.loads(line).get("known", {})
    if not arguments.pretend and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here, expected one; --pretend rehearses on the CPU")
    signal.signal(signal.SIGALRM, _out_of_time)
    for name in arguments.sections:
        left = end - time.monotonic()
        if left < 5.0:
            break
        setting.section = name
        setting.write({"begun": name})
        how, usable = _run(name, setting, min(left, LIMITS[name]))
        setting.write({"ended": name, "how": how})
        if not usable:
            break
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def _run(name: str, setting: Setting, limit: float) -> tuple[str, bool]:
    """How a section ended, and whether the device is still of use."""
    start, how = time.monotonic(), "done"
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        with nullcontext() if name in ON_THE_HOST else setting.device():
            find(name)(setting)
            setting.forget()
    except OutOfTimeError:
        how = f"out of time after {limit:.0f} s"
    except Exception as error:
        traceback.print_exc()
        how = f"raised {type(error).__name__}: {error}".splitlines()[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    return f"{how} in {time.monotonic() - start:.1f} s", setting.pretend or _usable()


def _usable() -> bool:
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return bool(torch.ones(1, device="cuda").item() == 1.0)
    except RuntimeError:
        return False


def _out_of_time(*_: Any) -> None:
    raise OutOfTimeError
