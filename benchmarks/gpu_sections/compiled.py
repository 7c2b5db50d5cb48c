"""Section "compiled": PyG's GCN under torch.compile, whose first call takes long, so it comes last."""

from __future__ import annotations

import time

import torch
from gpu_sections.setting import Setting, synchronize
from gpu_sections.training import Peer, network, timed_epochs


def compiled(setting: Setting) -> None:
    """Seconds of the first epoch, and milliseconds of the later ones."""
    graph = setting.graph("ogbn-arxiv-surrogate", setting.home)
    peer = Peer(graph, network(graph, hidden=setting.sizes.arxiv_hidden), indices=True)
    # A rehearsal traces, and generates no code.
    peer.model = torch.compile(peer.model, backend="eager" if setting.pretend else "inductor")
    start = time.perf_counter()
    peer.epoch().tolist()
    synchronize()
    setting.row("PyG, torch.compile, edge index: first epoch", time.perf_counter() - start, "s")
    epochs = setting.sizes.epochs if setting.pretend else 30
    setting.row("PyG, torch.compile, edge index: dense epoch", timed_epochs(peer.epoch, epochs).ms, "ms")
