"""Sections "arxiv" and "reddit": epochs of large graphs, which bytes bound and not launches."""

from __future__ import annotations

import time

import torch
from gpu_sections.products import adjacency, forward_bytes, gradient_bytes, measure
from gpu_sections.setting import Setting, synchronize
from gpu_sections.training import Peer, dense, network, retrained, searched, timed_epochs, unit_ticket

from gebt.graph import Edges, Graph
from gebt.sparse import precision
from gebt.sparse.backends import BACKENDS, DEFAULT, using

EPOCHS = 20
PRECISIONS: tuple[precision.Precision, ...] = ("float32", "tf32", "bf16")
MOST_BYTES = 25e9


def _engine(setting: Setting) -> str:
    """Ours where it is here."""
    return "triton" if BACKENDS["triton"].missing() is None and not setting.pretend else DEFAULT


def _epochs(setting: Setting) -> int:
    return setting.sizes.epochs if setting.pretend else EPOCHS


def dense_floor_ms(setting: Setting, graph: Graph, widths: list[int], size: int = 4) -> float:
    """Of the products of an epoch: forward, backward and an evaluation, for each width; `size`: bytes a number."""
    matrix = adjacency(graph.name, Edges.from_pairs(graph.pairs, graph.num_nodes))
    return 1e3 * sum(3 * forward_bytes(matrix, width, size) for width in widths) / setting.bandwidth


def arxiv(setting: Setting) -> None:
    """The GCN of ogbn-arxiv, three layers of 256: dense, search and ticket, in every precision, and PyG."""
    graph = setting.graph("ogbn-arxiv-surrogate")
    hidden, count = setting.sizes.arxiv_hidden, _epochs(setting)
    widths = [hidden, graph.num_classes]
    floors = {kind: dense_floor_ms(setting, graph, widths, 2 if kind == "bf16" else 4) for kind in PRECISIONS}
    ours: dict[str, float] = {}
    for engine in dict.fromkeys((_engine(setting), DEFAULT)):
        for kind in PRECISIONS:
            case = f"{engine}, {kind}"
            if setting.pretend and kind == "bf16":
                setting.row(case, None, "ms", note="skipped: on the CPU no engine multiplies 16 bits")
                continue
            with setting.attempt(case), using(engine), precision.using(kind, "cuda"):
                ours[case] = dense(graph, network(graph, hidden=hidden), count).ms
                setting.row(f"{case}: dense epoch", ours[case], "ms", floor=floors[kind], note="floor: products alone")
                _, clock = searched(graph, network(graph, hidden=hidden), count, threshold=1e-9)
                setting.row(f"{case}: search epoch", clock.ms, "ms")
                model = network(graph, hidden=hidden)
                _, clock = retrained(graph, model, unit_ticket(graph, model), count)
                setting.row(f"{case}: epoch of a ticket (units, 0.4 and 0.75)", clock.ms, "ms", most=ours[case])
            setting.forget()
    for way, (csr, share) in {"edge index": (False, 1 / 3), "CSR": (True, 1.1)}.items():
        with setting.attempt(f"PyG, {way}"):
            peer = Peer(graph.to(setting.home) if csr else graph, network(graph, hidden=hidden), csr=csr)
            theirs = timed_epochs(peer.epoch, count).ms
            setting.row(f"PyG, {way}: dense epoch", theirs, "ms")
            best = ours[f"{_engine(setting)}, float32"]
            setting.row(f"dense epoch as a share of PyG's, {way}", best / theirs, "", most=share)
        setting.forget()


def reddit(setting: Setting) -> None:
    """115 million entries: products, the adjacency, dense and search epochs, and their peak of memory."""
    graph = setting.graph("reddit-surrogate")
    setting.forget()
    synchronize()
    start = time.perf_counter()
    edges = Edges.from_pairs(graph.pairs, graph.num_nodes)
    synchronize()
    setting.row("adjacency from pairs", time.perf_counter() - start, "s")
    for width in (graph.num_classes, setting.sizes.widths[1]):
        measure(setting, adjacency(graph.name, edges), width, torch.float32)
        setting.forget()
    del edges
    count = _epochs(setting)
    floor = dense_floor_ms(setting, graph, [graph.num_classes])
    with using(_engine(setting)):
        with setting.attempt("dense"):
            clock = dense(graph, network(graph), count)
            setting.row("dense epoch", clock.ms, "ms", floor=floor, most=30.0)
            _peak(setting, "dense")
        with setting.attempt("search"):
            _, clock = searched(graph, network(graph), count, threshold=1e-9)
            setting.row("search epoch", clock.ms, "ms", floor=_search_floor_ms(setting, graph), most=80.0)
            _peak(setting, "search")
    messages = 4 * 2 * graph.num_pairs * network(graph).widths[1] / 1e9
    setting.row("PyG, edge index", None, "ms", note=f"left out: a layer's messages take {messages:.3g} GB")
    with setting.attempt("PyG, CSR"):
        clock = timed_epochs(Peer(graph.to(setting.home), network(graph), csr=True).epoch, count)
        setting.row("PyG, CSR: dense epoch", clock.ms, "ms")


def _peak(setting: Setting, what: str) -> None:
    setting.row(f"peak memory, {what}", torch.cuda.max_memory_allocated() / 1e9, "GB", most=MOST_BYTES / 1e9)
    setting.forget()


def _search_floor_ms(setting: Setting, graph: Graph) -> float:
    """Forward and gradients of both layers, since the edge values change; without the normalization and the draw."""
    matrix = adjacency(graph.name, Edges.from_pairs(graph.pairs, graph.num_nodes))
    widths = (network(graph).widths[1], graph.num_classes)
    moved = sum(forward_bytes(matrix, width, 4) + gradient_bytes(matrix, width, 4) for width in widths)
    return 1e3 * moved / setting.bandwidth
