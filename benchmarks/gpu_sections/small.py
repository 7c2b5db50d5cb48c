"""Section "small": the whole of GEBT on Cora and PubMed, recorded and not, beside PyG."""

from __future__ import annotations

import statistics
import time

from gpu_sections.setting import Setting, synchronize
from gpu_sections.training import Peer, dense, network, retrained, searched, settings_for, timed_epochs

from gebt.graph import Graph
from gebt.recipes import baselines
from gebt.sparse.backends import BACKENDS, using
from gebt.train.cuda_graph import Replay

MOST_POINTS = 0.015
# Many networks at once are for graphs of Cora's size.
MANY_NODES = 5000


def small(setting: Setting) -> None:
    """Epochs of every phase, full runs, and many seeds."""
    for graph in setting.small_graphs("cora", "pubmed"):
        for engine in ("torch-csr", "triton"):
            why = BACKENDS[engine].missing()
            # Whole trainings under Triton's interpreter would take hours.
            why = "its interpreter is too slow for trainings" if setting.pretend and engine == "triton" else why
            if why is not None:
                setting.row(f"{graph.name}, {engine}", None, "ms", note=f"skipped: {why}")
                continue
            with setting.attempt(f"{graph.name}, {engine}"), using(engine):
                _phases(setting, graph, engine)
        _peers(setting, graph)
        if graph.num_nodes < MANY_NODES:
            with setting.attempt(f"{graph.name}, many networks"):
                _many(setting, graph)


def _phases(setting: Setting, graph: Graph, engine: str) -> None:
    epochs, case = setting.sizes.epochs, f"{graph.name}, {engine}"
    recorded = dense(graph, network(graph), epochs, replay=True)
    setting.row(f"{case}: dense epoch, recorded", recorded.ms, "ms", most=0.5)
    setting.row(f"{case}: first dense epochs", recorded.first_seconds, "s")
    setting.row(f"{case}: dense epoch, not recorded", dense(graph, network(graph), epochs, replay=False).ms, "ms")
    for preset in ("early-bird", "paper"):
        _, clock = searched(graph, network(graph), epochs, preset, threshold=1e-9)
        setting.row(f"{case}: search epoch, {preset}", clock.ms, "ms", most=1.5)
    # The compiling is done by now.
    seconds, accuracies = [], []
    for seed in range(setting.sizes.seeds):
        synchronize()
        start = time.perf_counter()
        ticket, _ = searched(graph, network(graph, seed), epochs, seed=seed)
        result, clock = retrained(graph, network(graph, seed), ticket, epochs, seed)
        synchronize()
        seconds.append(time.perf_counter() - start)
        accuracies.append(result.test_accuracy)
    setting.row(f"{case}: epoch of a ticket", clock.ms, "ms", most=0.5)
    note = f"accuracy of the tickets {statistics.fmean(accuracies):.3f}"
    setting.row(f"{case}: {len(seconds)} searches and retrainings", sum(seconds), "s", most=5.0, note=note)


def _peers(setting: Setting, graph: Graph) -> None:
    epochs, model = setting.sizes.epochs, network(graph)
    ways = {"edge index": {}, "CSR": {"csr": True}, "edge index, recorded by us": {"indices": True}}
    for way, options in ways.items():
        with setting.attempt(f"{graph.name}, PyG, {way}"):
            peer = Peer(graph.to(setting.home) if "csr" in options else graph, model, **options)
            work = Replay(peer.epoch, [peer.optimizer]) if "indices" in options else peer.epoch
            clock = timed_epochs(work, epochs)
            refused = work.refused if isinstance(work, Replay) else ""
            setting.row(f"{graph.name}, PyG, {way}: dense epoch", clock.ms, "ms", note=refused)


def _many(setting: Setting, graph: Graph) -> None:
    """Networks one after the other and all together, and accuracies beside those of the CPU."""
    seeds, settings = range(setting.sizes.many_seeds), settings_for(graph, 2 * setting.sizes.epochs)
    count = len(seeds) * settings.epochs

    def timed(work: object) -> tuple[float, list[float]]:
        synchronize()
        start = time.perf_counter()
        histories = work()  # type: ignore[operator]
        synchronize()
        return 1e3 * (time.perf_counter() - start) / count, [history.accuracy for history in histories]

    models = [network(graph, seed) for seed in seeds]
    apart, own = timed(
        lambda: [baselines.dense(m, graph, settings, seed=s) for m, s in zip(models, seeds, strict=True)]
    )
    models = [network(graph, seed) for seed in seeds]
    together, joined = timed(lambda: baselines.dense_stacked(models, graph, settings, seeds=seeds))
    setting.row(f"{graph.name}: epoch a network, {len(seeds)} one after the other", apart, "ms")
    setting.row(f"{graph.name}: epoch a network, {len(seeds)} together", together, "ms", most=apart)
    home = graph.to("cpu")
    here = [network(home, seed) for seed in seeds]
    right = statistics.fmean(h.accuracy for h in baselines.dense_stacked(here, home, settings, seeds=seeds))
    for way, found in (("one after the other", own), ("together", joined)):
        away = abs(statistics.fmean(found) - right)
        note = f"CPU {right:.4f}"
        setting.row(f"{graph.name}: mean accuracy, {way}, away from the CPU's", away, "", most=MOST_POINTS, note=note)
