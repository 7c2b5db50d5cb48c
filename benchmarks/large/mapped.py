"""Seconds and memory of writing a clustered graph to disk, of its parts, and of an epoch of batches read from there.

python benchmarks/large/mapped.py FOLDER --nodes 1000000    (ten directed edges a node)
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from streams import clustered

from gebt.data.mapped.convert import convert_stream
from gebt.data.mapped.mapped_graph import open_mapped
from gebt.graph.batches import Sampler
from gebt.graph.streamed_clusters import clusters_mapped, streamed_clusters


def resident() -> dict[str, float]:
    """MiB of this process by kind."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    wanted = ("VmRSS:", "RssAnon:")
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[0] in wanted}


@contextmanager
def watched(step: str, record: dict[str, Any]) -> Iterator[None]:
    """Notes seconds and the largest memory of a step, looked at every 5 ms."""
    most, done = resident(), threading.Event()
    before = dict(most)

    def look() -> None:
        while not done.wait(0.005):
            for kind, now in resident().items():
                most[kind] = max(most[kind], now)

    watcher = threading.Thread(target=look)
    watcher.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        largest = {f"{kind}_mib": round(size) for kind, size in most.items()}
        record[step] = {"seconds": round(seconds, 2), "before_mib": round(before["VmRSS"]), **largest}
        print(step, record[step], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--memory-mib", type=int, default=256)
    parser.add_argument("--batch", type=int, default=10_000, help="nodes a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {"nodes": options.nodes, "memory_mib": options.memory_mib}
    stream = clustered(options.nodes)
    with watched("convert", record):
        convert_stream(stream, options.folder, memory=options.memory_mib * 2**20)
    graph = open_mapped(options.folder)
    record["directed_edges"] = 2 * graph.num_pairs
    record["bytes"] = sum(file["bytes"] for file in graph.header.files.values())
    count = max(1, options.nodes // 1000)
    with watched("clusters_mapped", record):
        clusters_mapped(graph, count)
    graph.release()
    with watched("streamed_clusters", record):
        parts = streamed_clusters(graph, count)
    graph.release()
    for released in (True, False):
        nodes = pairs = 0
        with watched(f"epoch, pages {'released' if released else 'kept'}", record):
            sampler = Sampler(graph)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
            for chosen in order.split(options.batch // 1000):
                batch = sampler.induced(torch.isin(parts, chosen).nonzero().squeeze(1))
                features = graph.features_of(batch.nodes)
                nodes, pairs = nodes + len(features), pairs + batch.pair_ids.numel()
                if released:
                    graph.release()
        record["in_batches"] = {"nodes": nodes, "share_of_pairs": round(pairs / graph.num_pairs, 4)}
    print(json.dumps(record))


if __name__ == "__main__":
    main()
