"""Every command on the pretend CUDA device: no mixed devices, and what is recorded computes what plain epochs compute."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gebt.cli.main import main
from gebt.data.readers.folder import save_graph_folder
from gebt.graph import Graph
from gebt.train import loop, stacked
from tests.pretend_cuda import Device, pretend_cuda

# The fourth epoch is recorded, the fifth replayed.
FEW = ("--epochs", "5", "--max-epochs", "5", "--retrain-epochs", "5", "--hidden", "8", "--device", "cuda")
BATCHES = ("--num-parts", "3", "--accumulate-batches", "2", "--batching")
COMMANDS = {
    "default": (),
    **{f"preset {name}": ("--preset", name) for name in ("paper", "best", "fast")},
    **{f"algorithm {name}": ("--algorithm", name) for name in ("graph", "weights")},
    **{f"model {name}": ("--model", name) for name in ("sage", "gin", "gat")},
    "model resgcn": ("--model", "resgcn7"),
    **{
        f"edge score {name}": ("--edge-score", name)
        for name in ("magnitude", "local_degree", "similarity", "reliance", "reliance+magnitude", "learned")
    },
    **{f"structure {name}": ("--weight-structure", name) for name in ("unit", "feature", "joint", "2:4")},
    "scope": ("--scope", "layer"),
    "draw": ("--draw-at", "validation", "--edge-score", "similarity", "--prediction-ema", "0.5"),
    "soft labels": ("--soft-labels", "--draw-at", "validation", "--label-propagation", "0.5"),
    **{f"edge weights {name}": ("--edge-weights", name) for name in ("trained", "degree_corrected")},
    "penalty": ("--edge-l1", "0.001"),
    "no compaction": ("--no-compaction",),
    "seeds": ("--seeds", "3"),
    "seeds apart": ("--seeds", "2", "--no-stack-seeds"),
    **{f"start {name}": ("--start", name) for name in ("rewind", "reinit")},
    **{
        f"method {name}": ("--method", name)
        for name in ("ugs", "wd-glt", "sgcn", "teddy", "imp", "one-shot", "dropedge", "released")
    },
    "links": ("--task", "links"),
    **{f"batching {name}": (*BATCHES, name) for name in ("random", "cluster", "neighbor", "random-walk")},
    "batching links": (*BATCHES, "cluster", "--task", "links"),
    "bf16": ("--precision", "bf16"),
    "tf32": ("--precision", "tf32"),
}  # fmt: skip
