"""Section "tests": the tests that need a CUDA device."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from gpu_sections.setting import Setting

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 8


def gpu_tests(setting: Setting) -> None:
    """Runs them; a rehearsal only collects them."""
    # The other files need not even be imported.
    files = [str(path) for path in sorted((ROOT / "tests").rglob("*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", *files]
    command += ["--collect-only"] if setting.pretend else ["-n", str(WORKERS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], done.stderr[-2000:], sep="\n")
    counted = dict.fromkeys(("passed", "failed", "error", "skipped", "deselected"), 0)
    counted |= {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|error|skipped)", done.stdout)}
    collected = re.search(r"(\d+)(?:/\d+)? tests collected", done.stdout)
    if setting.pretend:
        setting.row("tests found", float(collected[1]) if collected else 0.0, "", least=10.0, exact=True)
        return
    setting.row("tests passed", float(counted["passed"]), "", least=10.0)
    bad = counted["failed"] + counted["error"] + (done.returncode not in (0, 1))
    names = ", ".join(re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE))
    setting.row("tests failed", float(bad), "", most=0.0, note=names)
