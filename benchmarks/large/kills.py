"""A run of two processes, one of which is killed at a random moment: it must end with the ticket of a run in peace.

python benchmarks/large/kills.py [--kills 20] [--quick] [--json OUT]
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options

from gebt.experiments.record import CHECKPOINTS, read_record

RUN = [
    "--dataset",
    "digits",
    "--batching",
    "cluster",
    "--num-parts",
    "8",
    "--accumulate-batches",
    "2",
    "--epochs",
    "30",
]
RUN += ["--max-epochs", "30", "--retrain-epochs", "15", "--checkpoint-every", "3", "--threshold", "1e-9"]


def main() -> None:
    """One run in peace, and one for each kill."""
    parser = options(__doc__ or "")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    own = parser.parse_args()
    source, kills = random.Random(own.seed), 1 if own.quick else own.kills
    with tempfile.TemporaryDirectory() as folder:
        peace = _run(Path(folder) / "peace", None, source)
        rows: list[dict[str, Any]] = []
        while sum(row["killed"] for row in rows) < kills:  # one that was over before it could be killed does not count
            rows.append(_run(Path(folder) / str(len(rows)), peace, source))
    same = sum(row["same"] for row in rows)
    summary = {"in peace, s": peace["seconds"], "same ticket": f"{same} of {len(rows)}"}
    finish("two processes, one of them killed", rows, summary, own.json)
    if same < len(rows):
        sys.exit(1)


def _run(out: Path, peace: dict[str, Any] | None, source: random.Random) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1"]
    command += ["--monitor-interval", "0.1", "-m", "gebt", "run", *RUN, "--out", str(out)]
    start = time.perf_counter()
    started = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    row: dict[str, Any] = {}
    if peace is not None:
        # Anywhere from the first instant on: also while the processes start, and when all is nearly done.
        time.sleep(source.uniform(0.5, 0.95 * peace["seconds"]))
        rank = source.randrange(2)
        row = {
            "after_s": time.perf_counter() - start,
            "rank": rank,
            "doing": _doing(out),
            "killed": _kill(started.pid, rank),
        }
    _, said = started.communicate()
    if started.returncode:
        sys.exit(said)
    ticket = (out / "ticket.safetensors").read_bytes()
    found = {"seconds": time.perf_counter() - start, "ticket": ticket, "complete": read_record(out)["complete"]}
    if peace is None:
        return found
    row["seconds"] = found["seconds"]
    row["same"] = found["ticket"] == peace["ticket"] and found["complete"]
    print(row, flush=True)
    return row


def _doing(out: Path) -> str:
    """The variant that is being trained."""
    done = {path.stem for path in (out / CHECKPOINTS).glob("seed-0/*.json")}
    variants = ("dense", "search", "random", "random_edges_control", "ticket")
    return "starting" if not out.is_dir() else next((variant for variant in variants if variant not in done), "ending")


def _kill(pid: int, rank: int) -> bool:
    """Kills a worker; False where there is none yet, or none any more."""
    try:
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(sorted(map(int, workers))[rank], signal.SIGKILL)
    except (OSError, IndexError):
        return False
    return True


if __name__ == "__main__":
    main()
