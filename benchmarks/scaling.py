"""Does a search stay linear? Seconds and peak memory of a joint search epoch, from 1e5 to 1e8 directed edges.

python benchmarks/scaling.py [--sizes 1e5 1e6 ...] [--epochs 5] [--backend compiled] [--quick] [--json OUT]

Generated graphs of 20 directed edges a node, 32 features, 32 hidden units, two layers; each in a process of its own.
The exponents are slopes of a line through all rows, both axes logarithmic: 1 is linear.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from common import finish, options
from drawing import TimedSearch

from gebt.data.surrogate import SurrogateSpec, generate
from gebt.graph import Graph
from gebt.measure.cost import in_fresh_process, peak_memory
from gebt.models import GCN
from gebt.recipes.search import SearchSettings
from gebt.sparse import backends

SIZES = (1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8)
QUICK_SIZES = (1e4, 1e5)
DEGREE, FEATURES, HIDDEN, CLASSES, DEPTH = 20, 32, 32, 10, 2
RATIOS = (0.2, 0.9, None)
# A graph too small to be seen in a peak: what is loaded or compiled on first use is so on this one.
TINY = 10_000
# What a peak grows by can be told from what the allocator had left over, from here on.
SEEN_BYTES = 1 << 24


def main() -> None:
    """One row a size."""
    parser = options(__doc__ or "")
    parser.add_argument("--sizes", type=float, nargs="+", help="directed edges")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of search that are timed")
    # Not "auto": the engines that lose would count in the peak.
    parser.add_argument("--backend", default="compiled", help="engine of the sparse products")
    arguments = parser.parse_args()
    sizes = arguments.sizes or (QUICK_SIZES if arguments.quick else SIZES)
    rows = []
    for size in sizes:
        what = {"edges": int(size), "epochs": arguments.epochs, "threads": arguments.threads}
        rows.append(in_fresh_process("scaling:measure", **what, backend=arguments.backend))
        print(rows[-1], flush=True)
    keys = {"seconds": "seconds", "draw_at": "draw_seconds", "bytes": "peak_bytes"}
    summary: dict[str, Any] = {f"{name}_exponent": exponent(rows, key) for name, key in keys.items()}
    seen = [row for row in rows if row["own_bytes"] >= SEEN_BYTES]
    summary["own_bytes_exponent"] = exponent(seen, "own_bytes") if len(seen) > 1 else None
    summary["largest_edges"] = rows[-1]["edges"]
    title = f"a joint search epoch, {DEGREE} directed edges a node, {FEATURES} features, {HIDDEN} hidden units"
    torch.set_num_threads(arguments.threads)
    finish(f"{title}, {arguments.backend} products", rows, summary, arguments.json)


def measure(edges: int, epochs: int, threads: int, backend: str) -> dict[str, Any]:
    """Seconds of an epoch and of its draw, medians of `epochs` after the first, and the peak of search and graph.

    `own_bytes` is the peak beside interpreter, libraries and compiled code.
    """
    torch.set_num_threads(threads)
    backends.use(backend)
    search(generated(TINY), 2)
    with peak_memory("cpu") as idle:
        pass
    graph = generated(edges)
    with peak_memory("cpu") as peak:
        seconds, draws = search(graph, epochs + 1)
    return {
        "edges": 2 * graph.num_pairs,
        "nodes": graph.num_nodes,
        "seconds": statistics.median(seconds[1:]),
        "draw_seconds": statistics.median(draws[1:]),
        "first_seconds": seconds[0],
        "peak_bytes": peak.bytes,
        "own_bytes": peak.bytes - idle.before,
    }


def generated(edges: int) -> Graph:
    """A graph of so many directed edges."""
    spec = SurrogateSpec(nodes=edges // DEGREE, pairs=edges // 2, features=FEATURES, classes=CLASSES)
    return generate(spec)


def search(graph: Graph, epochs: int) -> tuple[list[float], list[float]]:
    """Seconds of every epoch of a search, the first with all that is built for it, and of every draw with detector."""
    model = GCN(FEATURES, HIDDEN, CLASSES, DEPTH)
    # A threshold that is never met: the search goes on for all epochs.
    work = TimedSearch(model, graph, RATIOS, SearchSettings(max_epochs=epochs, threshold=1e-12), 0)
    seconds: list[float] = []
    draws: list[float] = []
    ended = time.perf_counter()

    def after_detector(*_: object) -> bool:
        nonlocal ended
        now = time.perf_counter()
        seconds.append(now - ended)
        draws.append(now - work.began)
        ended = now
        return False

    work.run(None, after_detector)
    return seconds, draws


def exponent(rows: list[dict[str, Any]], key: str) -> float:
    """k of `key` ~ edges^k, by least squares on the logarithms."""
    edges, values = ([row[name] for row in rows] for name in ("edges", key))
    return float(np.polyfit(np.log(edges), np.log(values), 1)[0])


if __name__ == "__main__":
    main()
