"""Section "two-of-four": products with weights of the 2:4 pattern on sparse tensor cores."""

from __future__ import annotations

from functools import partial

import torch
from gpu_sections.setting import Setting, relative_error
from torch.nn import functional as F

from gebt.models.linear import SemiStructuredLinear
from gebt.prune.n_m_sparsity import two_of_four as keep_two_of_four

NODES = 169_343
RIGHT = 1e-2


def two_of_four(setting: Setting) -> None:
    """[N, h] times [h, h], dense in three types and 2:4 in bfloat16."""
    nodes = 64 if setting.pretend else NODES
    before = torch.get_float32_matmul_precision()
    for side in setting.sizes.hidden:
        x, weight = (torch.randn(rows, side, device="cuda") for rows in (nodes, side))
        weight = weight * keep_two_of_four({"w": weight.abs()})["w"]
        small, packed = x.bfloat16(), weight.bfloat16()
        floor = _floor_ms(setting, nodes, side)
        for kind, precision in (("float32", "highest"), ("TF32", "high")):
            torch.set_float32_matmul_precision(precision)
            setting.row(f"h = {side}, {kind}", setting.clock.ms(partial(F.linear, x, weight)), "ms")
        torch.set_float32_matmul_precision(before)
        dense = setting.clock.ms(partial(F.linear, small, packed))
        setting.row(f"h = {side}, bfloat16", dense, "ms", floor=floor)
        right = F.linear(small.double(), packed.double())
        error = relative_error(F.linear(small, packed), right)
        setting.row(f"h = {side}, bfloat16, error", error, "", most=RIGHT, exact=True)
        if setting.pretend:
            setting.row(f"h = {side}, 2:4", None, "ms", note="skipped: no tensor cores to pretend")
            continue
        with setting.attempt(f"h = {side}, 2:4"):
            layer = SemiStructuredLinear(packed)
            error = relative_error(layer(small), right)
            setting.row(f"h = {side}, 2:4, error", error, "", most=RIGHT, exact=True)
            ms = setting.clock.ms(partial(layer, small))
            setting.row(f"h = {side}, 2:4", ms, "ms", floor=floor, note=f"{dense / ms:.2f} times as fast as dense")
        setting.forget()


def _floor_ms(setting: Setting, nodes: int, side: int) -> float:
    """The longer of its bytes and its dense arithmetic in bfloat16, at the measured ceilings."""
    moved = 2 * (2 * nodes * side + side * side) / setting.bandwidth
    rate = setting.known.get("flops bfloat16", 750e12)
    return 1e3 * max(moved, 2 * nodes * side * side / rate)
