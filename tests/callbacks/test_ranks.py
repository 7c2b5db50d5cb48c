from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

pytest.importorskip("lightning.pytorch", reason="needs lightning; pip install 'gebt[lightning]'")


@pytest.mark.skipif(not distributed.is_gloo_available(), reason="needs gloo")
def test_two_processes_hold_the_same_mask_and_the_same_weights(tmp_path: Path) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",  # processes are forked
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    script = Path(__file__).with_name("ranks.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True, text=True, check=False, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert {"bird", "ticket", "net.0.weight", "ddp.0.weight", "fsdp.0.weight"} <= first.keys()
    assert first.keys() == second.keys()
    assert all(torch.equal(own, second[name]) for name, own in first.items())
