"""Section "energy": joules of a step, by the device's own meter."""

from __future__ import annotations

import importlib
import statistics
import threading
import time
from collections.abc import Callable

import torch
from gpu_sections.setting import Setting, synchronize
from gpu_sections.training import Peer, network, settings_for, unit_ticket

from gebt.graph import Graph
from gebt.measure.energy import energy_meter
from gebt.models.compact import compact_model
from gebt.train.loop import NodeTask, adam
from gebt.train.tasks import task_for

SAMPLE_S = 0.1


def energy(setting: Setting) -> None:
    """Idle first, then steps of the dense network, of a compacted ticket and of PyG, each for some seconds."""
    graph = setting.graph("ogbn-arxiv-surrogate")
    hidden = setting.sizes.arxiv_hidden
    model = network(graph, hidden=hidden)
    works = {"dense": _step(task_for(graph), network(graph, hidden=hidden), graph)}
    ticket = unit_ticket(graph, model)
    ticket.start(model)
    small = compact_model(model, ticket.weight_mask, graph)
    works["ticket"] = _step(task_for(small.graph, ticket.edges(graph)), small.model, graph)
    works["PyG, CSR"] = Peer(graph.to(setting.home), network(graph, hidden=hidden), csr=True).step
    idle = _metered(setting, "idle", lambda: time.sleep(SAMPLE_S), 0.0)
    for name, work in works.items():
        with setting.attempt(name):
            for _ in range(3):
                work()
            _metered(setting, name, work, idle)


def _step(task: NodeTask, model: torch.nn.Module, graph: Graph) -> Callable[[], object]:
    optimizer = adam(model, settings_for(graph, 1))

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        task.loss(task.logits(model)).backward()
        optimizer.step()

    return step


def _metered(setting: Setting, name: str, work: Callable[[], object], idle: float) -> float:
    """Rows of one kind of work, and its watts."""
    steps, watts, over = 0, [], threading.Event()
    sampler = threading.Thread(target=_sample, args=(watts, over), daemon=True)
    if not setting.pretend:
        sampler.start()
    synchronize()
    with energy_meter("cuda") as meter:
        start = time.perf_counter()
        while time.perf_counter() - start < setting.sizes.metered_s:
            work()
            # Launches run ahead of the device: without a wait they would go on after the last second.
            synchronize()
            steps += 1
        seconds = time.perf_counter() - start
    over.set()
    if meter.joules is None:
        setting.row(f"{name}: energy", None, "J", note=meter.what)
        return 0.0
    drawn = meter.joules / seconds
    setting.row(f"{name}: power", drawn, "W", note=meter.what)
    if name != "idle":
        setting.row(f"{name}: energy of a step, less idle", (drawn - idle) * seconds / steps, "J")
    if watts:
        off = abs(statistics.fmean(watts) / drawn - 1)
        setting.row(f"{name}: power samples, away from the energy counter", off, "", most=0.1)
    return drawn


def _sample(watts: list[float], over: threading.Event) -> None:
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties().uuid}")
    while not over.wait(SAMPLE_S):
        watts.append(nvml.nvmlDeviceGetPowerUsage(handle) / 1e3)
