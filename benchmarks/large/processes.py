"""One process and several, double precision, same seed: the same masks and losses, and how much faster.

python benchmarks/large/processes.py [--dataset ogbn-arxiv-surrogate] [--processes 2] [--parts 8] [--epochs 3]
    [--model gcn] [--hidden 128] [--quick] [--json OUT]

Every process has one thread. All take the same steps: `--processes` batches each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options

from gebt.experiments.options import RunOptions
from gebt.experiments.setup import graph_for, model_for
from gebt.graph.batch_schedule import BatchSchedule, BatchSettings
from gebt.graph.batches import Sampler
from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.recipes import minibatch as recipes
from gebt.sparse.pattern import SparseMatrix
from gebt.ticket import Ticket
from gebt.train.loop import History
from gebt.train.minibatch import Batched
from gebt.train.processes import Processes, processes


def main() -> None:
    """Runs itself under torchrun, once with one process and once with several, and compares what they found."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="ogbn-arxiv-surrogate")
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.quick:
        own.hidden, own.parts, own.epochs = 8, 4, 2
        own.dataset = "digits" if own.dataset == "ogbn-arxiv-surrogate" else own.dataset
    if own.worker is not None:
        _worker(own)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {count: _run(own, count, Path(folder) / f"{count}.json") for count in (1, own.processes)}
    one, many = found[1], found[own.processes]
    apart = max(abs(a - b) / abs(a) for a, b in zip(one["losses"], many["losses"], strict=True))
    rows = [
        {
            "processes": count,
            "seconds_an_epoch": here["seconds_an_epoch"],
            "faster": one["seconds_an_epoch"] / here["seconds_an_epoch"],
            "loss": here["losses"][-1],
            "mask": here["mask"],
        }
        for count, here in found.items()
    ]
    summary = {"same mask": one["mask"] == many["mask"], "losses apart, relative": apart}
    finish(f"{own.dataset}, {own.model} of {own.hidden}, {own.parts} parts", rows, summary, own.json)


def _run(own: Any, count: int, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--local-addr", "127.0.0.1"]
    command += [__file__, "--worker", str(out), "--dataset", own.dataset, "--model", own.model]
    for name in ("hidden", "processes", "parts", "epochs"):
        command += [f"--{name}", str(getattr(own, name))]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(out.read_text())  # type: ignore[no-any-return]


def _worker(own: Any) -> None:
    torch.set_num_threads(1)
    run = RunOptions(dataset=own.dataset, model=own.model, hidden=own.hidden, data_root=own.data_root, threshold=1e-9)
    run = replace(run, max_epochs=own.epochs).resolved()
    graph = _double(graph_for(run, 0))
    model = model_for(run, graph, 0).double()
    with processes() as here:
        ticket, history, seconds = _searched(model, graph, here, own, run)
        if here.first:
            mask = hashlib.sha256(ticket.edge_mask[EDGES].numpy().tobytes())
            mask.update(ticket.weight_mask.flat().numpy().tobytes())
            found = {"losses": history.losses, "mask": mask.hexdigest()[:16], "fired": ticket.fired}
            own.worker.write_text(json.dumps({**found, "seconds_an_epoch": seconds}))


def _searched(
    model: torch.nn.Module, graph: Graph, here: Processes, own: Any, run: RunOptions
) -> tuple[Ticket, History, float]:
    edges = Edges.from_pairs(graph.pairs, graph.num_nodes)
    cut = BatchSettings("cluster", own.parts, accumulate_batches=own.processes)
    plan = BatchSchedule(Sampler(edges), graph.train_mask.nonzero().squeeze(1), cut, 0)
    kept: list[History] = []
    ends: list[float] = []

    def note(epoch: int, history: History) -> bool:
        kept.append(history)
        ends.append(time.perf_counter())
        return False

    ticket = recipes.joint(
        model,
        Batched(graph, plan, here, edges=edges),
        edge_ratio=0.2,
        weight_ratio=0.5,
        settings=run.search(),
        on_epoch=note,
    )
    # The first epoch builds and compiles what the others use.
    return ticket, kept[-1], (ends[-1] - ends[0]) / (len(ends) - 1)


def _double(graph: Graph) -> Graph:
    features = graph.features
    if isinstance(features, SparseMatrix):
        return replace(graph, features=SparseMatrix(features.pattern, features.values.double()))
    return replace(graph, features=features.double())


if __name__ == "__main__":
    main()
