"""Section "ceilings": what this device can do at most, so that every later figure stands beside its floor."""

from __future__ import annotations

import importlib
import time
from importlib.util import find_spec

import torch
from gpu_sections.setting import Setting, synchronize

from gebt.measure.energy import energy_meter

LAUNCHES = 1000


def ceilings(setting: Setting) -> None:
    """Copy, gathered rows, matrix products, launches one by one and recorded, and the energy counter."""
    _copies(setting)
    _products(setting)
    _launches(setting)
    # Everything on the CPU that is compiled needs a numba that knows this numpy.
    with setting.attempt("numba"):
        if find_spec("numba") is not None:
            importlib.import_module("numba")
        setting.row("numba can be imported", float(find_spec("numba") is not None), "", least=1.0)
    with energy_meter("cuda") as meter:
        time.sleep(0.05 if setting.pretend else 1.0)
    setting.row("energy of a second idle", meter.joules, "J", least=10.0, note=meter.what)


def _copies(setting: Setting) -> None:
    count = setting.sizes.copied_bytes // 4
    source = torch.rand(count, device="cuda")
    target = torch.full_like(source, float("nan"))
    ms = setting.clock.ms(lambda: target.copy_(source))
    setting.row("copy of float32, bytes read and written", 8 * count / ms * 1e3 / 1e12, "TB/s", least=2.5)
    setting.note("copy", 8 * count / ms * 1e3)
    for row_bytes in (256, 512, 1024):
        table = source.view(-1, row_bytes // 4)
        chosen = torch.randint(table.shape[0], (table.shape[0],), device="cuda")
        out = torch.full_like(table, float("nan"))
        ms = setting.clock.ms(lambda a=table, b=chosen, c=out: torch.index_select(a, 0, b, out=c))
        rate = (8 * count + 8 * chosen.numel()) / ms * 1e3
        share = rate / setting.bandwidth
        setting.row(f"random rows of {row_bytes} bytes", rate / 1e12, "TB/s", note=f"{share:.2f} of a copy")


def _products(setting: Setting) -> None:
    side = setting.sizes.square
    expected = {"float32": 45.0, "TF32": 300.0, "bfloat16": 600.0}
    before = torch.get_float32_matmul_precision()
    for kind, least in expected.items():
        dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
        a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in "ab")
        torch.set_float32_matmul_precision("high" if kind == "TF32" else "highest")
        rate = 2 * side**3 / setting.clock.ms(lambda a=a, b=b: a @ b) * 1e3
        setting.row(f"matrix product {side}^3, {kind}", rate / 1e12, "TFLOP/s", least=least)
        setting.note(f"flops {kind}", rate)
    torch.set_float32_matmul_precision(before)


def _launches(setting: Setting) -> None:
    number = torch.zeros(1, device="cuda")

    def many() -> None:
        for _ in range(LAUNCHES):
            number.add_(1.0)

    many()
    synchronize()
    start = time.perf_counter()
    many()
    synchronize()
    setting.row("one small kernel, launched by itself", 1e6 * (time.perf_counter() - start) / LAUNCHES, "us", most=10.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    number.zero_()
    graph.replay()
    setting.row("sum after a replay", float(number), "", least=LAUNCHES, exact=True)
    setting.row("one small kernel, replayed", 1e3 * setting.clock.ms(graph.replay) / LAUNCHES, "us", most=3.0)
