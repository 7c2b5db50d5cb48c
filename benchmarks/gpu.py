"""What gebt does on one CUDA device, every figure beside its floor: eight minutes on an H100.

python benchmarks/gpu.py --budget 470 --json gpu.json [--sections NAME ...] [--pretend]

Sections run in an order of worth, each within its time, until the budget is spent. They run in a process of their own:
one that dies, hangs or breaks the device takes no other with it. Rows are kept as they are found, beside the JSON file
as OUT.jsonl. `--pretend` rehearses all of them on the CPU, at sizes that say nothing of speed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# Seconds that each section may take, in the order in which they run.
LIMITS = {
    "ceilings": 20.0,
    "tests": 90.0,
    "products": 100.0,
    "small": 80.0,
    "arxiv": 70.0,
    "reddit": 90.0,
    "two-of-four": 20.0,
    "energy": 35.0,
    "compiled": 60.0,
}
# A section is told to stop at its limit, and stopped this much later.
GRACE_S = 15.0


def main() -> None:
    """Runs the sections and writes what they found; the exit status is 1 where one raised or was stopped."""
    arguments = _arguments()
    if arguments.child:
        from gpu_sections.child import run_sections

        run_sections(arguments)
        return
    if arguments.prepare:
        from gpu_sections.prepare import prepare

        prepare(arguments.folder, arguments.pretend)
        return
    out = (arguments.json or Path("gpu.json")).with_suffix(".jsonl")
    out.unlink(missing_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="gebt-gpu-"))
    preparing = _start(["--prepare", "--folder", str(folder)], arguments, CUDA_VISIBLE_DEVICES="")
    # What was found by then is reported after a stop, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        states = _run_all(arguments, folder, out)
    except KeyboardInterrupt:
        ended = {line["ended"]: line["how"] for line in _lines(out) if "ended" in line}
        states = dict.fromkeys(arguments.sections, "stopped: the run was interrupted") | ended
    finally:
        preparing.kill()
        preparing.wait()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(_report(arguments, out, states))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=470.0, help="seconds for all sections")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write rows, summary and machine to this file")
    parser.add_argument("--sections", nargs="+", choices=list(LIMITS), default=list(LIMITS), help="run these alone")
    parser.add_argument("--pretend", action="store_true", help="rehearse on the CPU: checks the script, not the speed")
    parser.add_argument("--data-root", type=Path, help="folder of the raw data; default $GEBT_DATA")
    for name in ("--child", "--prepare"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    for name in ("--folder", "--out"):
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _start(more: list[str], arguments: argparse.Namespace, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "gpu.py"), *more]
    command += ["--pretend"] if arguments.pretend else []
    command += ["--data-root", str(arguments.data_root)] if arguments.data_root else []
    paths = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    if arguments.pretend:
        # Triton must be told before it is imported that its kernels shall be interpreted.
        own["TRITON_INTERPRET"] = "1"
    return subprocess.Popen(command, env=own)


def _run_all(arguments: argparse.Namespace, folder: Path, out: Path) -> dict[str, str]:
    """Runs the sections in child processes, a new one after each that died, and returns how each of them ended."""
    end, states, left = time.monotonic() + arguments.budget, dict[str, str](), list(arguments.sections)
    while left and time.monotonic() < end:
        child = _start(["--child", "--folder", str(folder), "--out", str(out), "--sections", *left,
                        "--budget", str(end - time.monotonic())], arguments)  # fmt: skip
        _watch(child, out, end)
        lines = _lines(out)
        begun = [line["begun"] for line in lines if "begun" in line]
        states |= {line["ended"]: line["how"] for line in lines if "ended" in line}
        unfinished = [name for name in begun if name not in states]
        if not any(name in left for name in begun):
            # It died before its first section: another would too.
            states |= {name: f"raised: the process ended with status {child.returncode}" for name in left
                       if name not in states}  # fmt: skip
        for name in unfinished:
            states[name] = f"stopped: the process ended with status {child.returncode}"
        left = [name for name in left if name not in states]
    return states | dict.fromkeys(left, "skipped: the budget was spent")


def _watch(child: subprocess.Popen[bytes], out: Path, end: float) -> None:
    """Waits for a child; kills it when its present section is far over its limit, or all are over the budget."""
    section, since = "", time.monotonic()
    try:
        while child.poll() is None:
            time.sleep(0.2)
            now = time.monotonic()
            begun = [line["begun"] for line in _lines(out) if "begun" in line]
            if begun and begun[-1] != section:
                section, since = begun[-1], now
            if now > end + GRACE_S or now - since > LIMITS.get(section, 60.0) + GRACE_S:
                break
    finally:
        child.kill()
        child.wait()


def _lines(out: Path) -> list[dict[str, Any]]:
    if not out.is_file():
        return []
    # The last line may be half written.
    return [json.loads(line) for line in out.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _report(arguments: argparse.Namespace, out: Path, states: dict[str, str]) -> int:
    from common import finish

    rows = [line["row"] for line in _lines(out) if "row" in line]
    broken = [name for name, how in states.items() if how.startswith(("raised", "stopped", "out of time"))]
    failed = [f"{row['section']}: {row['what']}" for row in rows if row["passed"] is False]
    summary = {
        "sections": states,
        "passed": sum(row["passed"] is True for row in rows),
        "failed": failed,
        "broken_sections": broken,
        "rehearsal": arguments.pretend,
    }
    if rows:
        finish("rehearsal on the CPU" if arguments.pretend else "one CUDA device", rows, summary, arguments.json)
    else:
        print(f"no section found anything: {states}")
    return 1 if broken or not rows or (arguments.pretend and failed) else 0


if __name__ == "__main__":
    main()
