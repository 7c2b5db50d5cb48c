"""The GPU benchmark: rehearsed on the CPU, and what becomes of a section that raises, dies or runs out of time."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpu_script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    return gpu


def arguments(folder: Path, *sections: str, budget: float = 60.0) -> argparse.Namespace:
    return argparse.Namespace(
        folder=folder, out=folder / "gpu.jsonl", json=folder / "gpu.json", pretend=True, data_root=None,
        sections=list(sections), budget=budget,
    )  # fmt: skip


def run(
    gpu_script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, section: Callable[..., None]
) -> tuple[int, dict[str, str]]:
    """Status and summary of a run whose first section is this one."""
    from gpu_sections import child

    sections = {"ceilings": section, "energy": lambda setting: setting.row("later", 1.0, "J")}
    monkeypatch.setattr(child, "find", sections.__getitem__)
    asked = arguments(folder, "ceilings", "energy")
    child.run_sections(asked)
    lines = [json.loads(line) for line in asked.out.read_text().splitlines()]
    states = {line["ended"]: line["how"] for line in lines if "ended" in line}
    return gpu_script._report(asked, asked.out, states), json.loads(asked.json.read_text())["summary"]


@pytest.mark.slow
def test_a_rehearsal_of_one_section(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--pretend", "--sections", "ceilings"]
    done = subprocess.run(
        [*command, "--json", str(out)], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found.keys() == {"rows", "summary", "machine"}
    assert {row["section"] for row in found["rows"]} == {"ceilings"}
    assert found["summary"]["sections"].keys() == {"ceilings"}
    assert "copy of float32, bytes read and written" in {row["what"] for row in found["rows"]}


def test_a_section_that_raises_fails_the_run_and_stops_no_other(
    gpu_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(setting: object) -> None:
        raise RuntimeError("no such kernel")

    status, summary = run(gpu_script, monkeypatch, tmp_path, broken)
    assert status == 1
    assert summary["broken_sections"] == ["ceilings"]
    assert summary["sections"]["ceilings"].startswith("raised RuntimeError: no such kernel")
    assert summary["sections"]["energy"].startswith("done")


def test_an_attempt_that_raises_is_a_failed_row_and_fails_a_rehearsal(
    gpu_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def section(setting: object) -> None:
        with setting.attempt("a product"):
            raise RuntimeError("no such kernel")
        setting.row("another", 2.0, "ms")

    status, summary = run(gpu_script, monkeypatch, tmp_path, section)
    assert (status, summary["failed"], summary["broken_sections"]) == (1, ["ceilings: a product"], [])


def test_a_section_over_its_limit_is_ended_and_keeps_its_rows(
    gpu_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from gpu_sections import child

    def endless(setting: object) -> None:
        setting.row("first", 1.0, "ms")
        with setting.attempt("what never ends"):
            while True:
                time.sleep(0.01)

    monkeypatch.setitem(child.LIMITS, "ceilings", 0.2)
    status, summary = run(gpu_script, monkeypatch, tmp_path, endless)
    assert status == 1
    assert summary["sections"]["ceilings"].startswith("out of time after 0 s")
    assert [row["what"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]] == ["first", "later"]


def test_sections_beyond_the_budget_are_skipped(
    gpu_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = arguments(tmp_path, "ceilings", "energy", budget=0.0)
    states = gpu_script._run_all(asked, tmp_path, asked.out)
    assert states == dict.fromkeys(("ceilings", "energy"), "skipped: the budget was spent")


def test_a_process_that_dies_in_a_section_is_replaced(
    gpu_script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first process dies in its first section; the next goes on with the other."""
    asked = arguments(tmp_path, "ceilings", "energy")
    lines = ['{"begun": "ceilings"}', '{"begun": "energy"}\n{"ended": "energy", "how": "done in 0.0 s"}']

    def start(*_: object) -> subprocess.Popen[bytes]:
        script = f"open({str(asked.out)!r}, 'a').write({lines.pop(0)!r} + '\\n'); raise SystemExit({len(lines)})"
        return subprocess.Popen([sys.executable, "-c", script])

    monkeypatch.setattr(gpu_script, "_start", start)
    states = gpu_script._run_all(asked, tmp_path, asked.out)
    assert states["ceilings"] == "stopped: the process ended with status 1"
    assert states["energy"] == "done in 0.0 s"


def test_every_section_has_a_limit_and_is_found(gpu_script: ModuleType) -> None:
    from gpu_sections import child

    assert child.SECTIONS.keys() == gpu_script.LIMITS.keys()
    for module, function in child.SECTIONS.values():
        assert f"def {function}(" in (ROOT / "benchmarks" / "gpu_sections" / f"{module}.py").read_text()


def test_floors_are_the_bytes_of_a_small_product(gpu_script: ModuleType) -> None:
    import torch
    from gpu_sections.products import Matrix, forward_bytes, gradient_bytes

    from gebt.sparse.backends import Csr

    a = Csr(torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([0, 1, 1], dtype=torch.int32))
    own, turned = Matrix("own", a, a, a.col[:0]), Matrix("turned", a, a, a.col)
    # Three entries: a row of two floats, a column, a value each; two rows: where they begin, and two floats written.
    assert forward_bytes(own, 2, 4) == 3 * (8 + 4 + 4) + 2 * (8 + 4)
    assert gradient_bytes(own, 2, 4) == 3 * (8 + 4 + 8) + 2 * (16 + 4)
    assert gradient_bytes(turned, 2, 4) == gradient_bytes(own, 2, 4) + 3 * 4
