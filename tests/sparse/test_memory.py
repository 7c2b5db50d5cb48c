from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.graph.edges import Edges
from gebt.models import GCN
from gebt.sparse import memory
from gebt.sparse.memory import OutOfRoomError, check_room, free_bytes
from gebt.train.loop import NodeTask, fit
from tests.pretend_cuda import pretend_cuda

CPU = torch.device("cpu")


@pytest.fixture
def meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the system says of its memory."""
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       9999999 kB\nMemFree:        11 kB\nMemAvailable:   3145728 kB\nSwapTotal: 0 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", path)
    return path


def test_free_memory_is_what_the_system_calls_available(meminfo: Path) -> None:
    assert free_bytes(CPU) == 3 * 2**30


@pytest.mark.parametrize("needed", [0, 1, 3 * 2**30])
def test_what_fits_is_let_through(meminfo: Path, needed: int) -> None:
    check_room("adjacency", needed, CPU)


def test_what_does_not_fit_is_refused_with_need_and_room(meminfo: Path) -> None:
    message = r"adjacency of 5 nodes \(got a need of 4.5 GiB\), expected at most the 3.0 GiB that are free on cpu"
    with pytest.raises(OutOfRoomError, match=message):
        check_room("adjacency of 5 nodes", 9 * 2**29, CPU)
    with pytest.raises(OutOfRoomError, match=r"the 3\.0 GiB"):
        check_room("a byte too much", 3 * 2**30 + 1, CPU)
    assert issubclass(OutOfRoomError, ValueError)


@pytest.mark.parametrize("content", [None, "", "MemTotal: 5 kB\n"])
def test_where_free_memory_cannot_be_known_nothing_is_refused(meminfo: Path, content: str | None) -> None:
    meminfo.unlink()
    if content is not None:
        meminfo.write_text(content)
    assert free_bytes(CPU) is None
    check_room("anything", 2**80, CPU)


def test_this_machine_has_some_room() -> None:
    if memory.MEMINFO.is_file():
        assert 2**20 < (free_bytes(CPU) or 0) < 2**50


def test_a_device_has_the_room_that_torch_has_set_aside_and_refuses_what_exceeds_it(
    make_graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = make_graph(nodes=40)
    with pretend_cuda():
        on_device = graph.to("cuda")
        task = NodeTask(on_device, Edges.from_pairs(on_device.pairs, 40))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (10_000, 80 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 3_000)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda *_: 2_000)
        assert free_bytes(torch.device("cuda", 0)) == 11_000
        with pytest.raises(OutOfRoomError, match=r"training GCN on 'toy' \(got a need of 0.0 GiB\), expected at most"):
            fit(GCN(5, 64, 3).to("cuda"), task, [], 1)
