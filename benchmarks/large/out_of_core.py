"""A graph on disk and the same in memory, trained in the same batches: seconds an epoch and memory of the process.

python benchmarks/large/out_of_core.py FOLDER ... [--batching random] [--num-parts 10] [--clusters-per-batch 1]
    [--hidden 64] [--epochs 2] [--only mapped] [--picture OUT.png] [--quick] [--json OUT]

FOLDER: what `gebt convert` wrote, or a number of directed edges of a clustered graph to be written (`streams.py`), 100
a node. An epoch is one of the search: batches, a step of the pair values in their files, a draw of both masks. Each
measurement is in a process of its own.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options
from mapped import watched
from streams import clustered

from gebt.data.mapped.convert import convert_stream
from gebt.data.mapped.mapped_graph import open_mapped
from gebt.graph.batch_schedule import BatchSchedule, BatchSettings
from gebt.graph.batches import Sampler
from gebt.graph.edges import Edges
from gebt.measure.cost import in_fresh_process
from gebt.models import GCN
from gebt.recipes import minibatch as recipes
from gebt.train.minibatch import Batched
from gebt.train.search_settings import SearchSettings

DEGREE = 100


def measured(
    folder: str,
    in_memory: bool,
    batching: str,
    parts: int,
    clusters_per_batch: int,
    hidden: int,
    epochs: int,
    threads: int,
) -> dict[str, Any]:
    """Seconds an epoch and the largest memory of a search in this process."""
    torch.set_num_threads(threads)
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as scratch, watched("all", record):
        mapped = open_mapped(folder)
        source, edges = mapped, None
        if in_memory:
            source = mapped.to_graph()
            edges = Edges.from_pairs(source.pairs, source.num_nodes)
        start = time.perf_counter()
        schedule = BatchSchedule(
            Sampler(edges or mapped), source.train_mask.nonzero().squeeze(1),
            BatchSettings(batching, parts, clusters_per_batch), 0,
        )  # fmt: skip
        cut = time.perf_counter() - start
        mapped.release()
        ends: list[float] = []
        recipes.joint(
            GCN(source.num_features, hidden, source.num_classes), Batched(source, schedule, edges=edges),
            edge_ratio=0.2, weight_ratio=0.5, settings=SearchSettings(max_epochs=epochs + 1, threshold=1e-9),
            values_in=None if in_memory else Path(scratch), on_epoch=lambda *_: ends.append(time.perf_counter()),
        )  # fmt: skip
    memory = record["all"]
    return {
        "nodes": source.num_nodes, "directed_edges": 2 * source.num_pairs, "cut_s": cut,
        "seconds_an_epoch": (ends[-1] - ends[0]) / epochs,
        "resident_mib": memory["VmRSS_mib"], "anonymous_mib": memory["RssAnon_mib"],
    }  # fmt: skip


def main() -> None:
    """A row for every graph, mapped and in memory."""
    parser = options(__doc__ or "")
    parser.add_argument("graphs", nargs="*")
    parser.add_argument("--batching", default="random", choices=("random", "cluster"))
    parser.add_argument("--num-parts", type=int, help="default: of 1000 nodes each")
    parser.add_argument("--clusters-per-batch", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--only", choices=("mapped", "in_memory"))
    parser.add_argument("--folder", type=Path, help="where graphs are written; default: a temporary one")
    parser.add_argument("--picture", type=Path)
    own = parser.parse_args()
    graphs = own.graphs or (["100000"] if own.quick else ["1e6", "1e7", "1e8"])
    rows = []
    with tempfile.TemporaryDirectory(dir=own.folder) as scratch:
        for graph in graphs:
            written = 0.0
            folder = Path(graph)
            if not folder.is_dir():
                folder, start = Path(scratch) / graph, time.perf_counter()
                convert_stream(clustered(int(float(graph)) // DEGREE, degree=DEGREE), folder, memory=2**29)
                written = time.perf_counter() - start
            parts = own.num_parts or max(1, open_mapped(folder).num_nodes // 1000)
            for kind in (own.only,) if own.only else ("mapped", "in_memory"):
                found = in_fresh_process(
                    "out_of_core:measured", folder=str(folder), in_memory=kind == "in_memory", batching=own.batching,
                    parts=parts, clusters_per_batch=min(parts, own.clusters_per_batch), hidden=own.hidden,
                    epochs=own.epochs, threads=own.threads,
                )  # fmt: skip
                rows.append({"graph": Path(graph).name, "where": kind, "parts": parts, "written_s": written, **found})
                print(rows[-1], flush=True)
    summary = {"exponent of seconds": exponent(rows)} if len(graphs) > 1 else {}
    if own.picture:
        picture(rows, own.picture)
    finish(f"GCN of {own.hidden}, {own.batching} parts", rows, summary, own.json)


def exponent(rows: list[dict[str, Any]]) -> float:
    """How seconds an epoch grow with the edges of mapped graphs, from the smallest to the largest."""
    first, *_, last = [row for row in rows if row["where"] == rows[0]["where"]]
    grown = last["seconds_an_epoch"] / first["seconds_an_epoch"]
    return math.log(grown) / math.log(last["directed_edges"] / first["directed_edges"])


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory against edges."""
    figure = Figure(figsize=(10, 4))
    seconds, memory = figure.subplots(1, 2)
    for where, mark in (("mapped", "o-"), ("in_memory", "s--")):
        own = [row for row in rows if row["where"] == where]
        if not own:
            continue
        edges = [row["directed_edges"] for row in own]
        name = where.replace("_", " ")
        seconds.plot(edges, [row["seconds_an_epoch"] for row in own], mark, label=name)
        memory.plot(edges, [row["resident_mib"] for row in own], mark, label=f"{name}, resident")
        memory.plot(edges, [row["anonymous_mib"] for row in own], mark, alpha=0.4, label=f"{name}, not files")
    seconds.set(xscale="log", yscale="log", xlabel="directed edges", ylabel="seconds an epoch of the search")
    memory.set(xscale="log", xlabel="directed edges", ylabel="largest memory of the process, MiB", ylim=(0, None))
    for axes in (seconds, memory):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
