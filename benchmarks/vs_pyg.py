"""The same GCN, data, seeds and settings on our road and on PyG's: seconds and accuracy.

python benchmarks/vs_pyg.py [--dataset cora] [--quick] [--json OUT]

Dense training with an evaluation each epoch, and the whole of GEBT (search + retraining) against PyG's dense training.
With the same weights both give the same logits: checked before anything is timed.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable

import torch
from common import finish, options
from torch import Tensor

from gebt.experiments.bench.pyg import PygTraining
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, graph_for, model_for
from gebt.graph import Edges, Graph
from gebt.recipes import baselines, retrain


def pyg_dense(settings: RunOptions, graph: Graph, adjacency: Tensor, seed: int) -> float:
    """PyG's example loop: one step and one evaluation an epoch; test accuracy at the best validation epoch."""
    torch.manual_seed(seed)
    ours = model_for(settings, graph, seed)
    peer = PygTraining(graph, ours, settings.training(), fresh=True, adjacency=adjacency)
    best_val = best_test = 0.0
    for _ in range(settings.epochs or 0):
        val, test = peer.epoch()
        if val > best_val:
            best_val, best_test = val, test
    return best_test


def difference(settings: RunOptions, graph: Graph) -> float:
    """Largest difference of our logits and PyG's with our weights, as a share of the largest; stops beyond 1e-4."""
    model = model_for(settings, graph, 0)
    for conv in model.convs:
        torch.nn.init.normal_(conv.bias)
    ours = model.eval()(graph.features, Edges.from_pairs(graph.pairs, graph.num_nodes)).detach()
    shares = []
    for adjacency in adjacencies(graph):
        theirs = PygTraining(graph, model, settings.training(), adjacency=adjacency).infer()
        shares.append(float((ours - theirs).abs().max() / ours.abs().max()))
    if not max(shares) <= 1e-4:
        raise SystemExit(f"logits (got {shares} of the largest apart from PyG's), expected at most 1e-4")
    return max(shares)


def ours_dense(settings: RunOptions, graph: Graph, seed: int) -> float:
    """The same training on our road."""
    return baselines.dense(model_for(settings, graph, seed), graph, settings.training(), seed=seed).accuracy


def ours_whole(settings: RunOptions, graph: Graph, seed: int) -> float:
    """Search and retraining of a joint ticket."""
    ticket = find_ticket(settings, graph, model_for(settings, graph, seed), seed)
    return retrain.run(ticket, model_for(settings, graph, seed), graph, settings.retraining(), seed=seed).test_accuracy


def adjacencies(graph: Graph) -> tuple[Tensor, Tensor]:
    """The edge index of a graph, and its CSR adjacency (symmetric, so its own transpose)."""
    edge_index = torch.cat((graph.pairs, graph.pairs.flip(0)), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coo = torch.sparse_coo_tensor(edge_index, torch.ones(edge_index.shape[1]), (graph.num_nodes,) * 2)
        return edge_index, coo.to_sparse_csr()


def main() -> None:
    """One row a way of training; every way is run for each seed in turn."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="cora")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="Sparse CSR")
    seeds, epochs = (1, 5) if arguments.quick else (arguments.seeds, None)
    settings = RunOptions(
        dataset=arguments.dataset,
        edge_ratio=0.2,
        weight_ratio=0.9,
        seeds=seeds,
        epochs=epochs,
        retrain_epochs=epochs,
        max_epochs=epochs,
        data_root=arguments.data_root,
    ).resolved()
    ways: dict[str, Callable[[Graph, int], float]] = {
        "gebt dense": lambda graph, seed: ours_dense(settings, graph, seed),
        "gebt search + retrain": lambda graph, seed: ours_whole(settings, graph, seed),
        "pyg GCNConv(cached), edge index": lambda graph, seed: pyg_dense(settings, graph, adjacencies(graph)[0], seed),
        "pyg GCNConv(cached), CSR": lambda graph, seed: pyg_dense(settings, graph, adjacencies(graph)[1], seed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    accuracy: dict[str, list[float]] = {name: [] for name in ways}
    apart = difference(settings, graph_for(settings, 0))
    ours_dense(settings, graph_for(settings, 0), 0)  # warm-up
    for seed in range(seeds):
        graph = graph_for(settings, seed)
        for name, way in ways.items():
            start = time.perf_counter()
            accuracy[name].append(way(graph, seed))
            seconds[name].append(time.perf_counter() - start)
    ours, whole, pyg, pyg_best = (statistics.median(seconds[name]) for name in ways)
    rows = [
        {
            "way": name,
            "seconds": statistics.median(seconds[name]),
            "gebt_dense_is_faster_by": statistics.median(seconds[name]) / ours,
            "accuracy": statistics.fmean(accuracy[name]),
        }
        for name in ways
    ]
    summary = {
        "train_speedup": pyg / ours,
        "train_speedup_over_pyg_csr": pyg_best / ours,
        "end_to_end_speedup": pyg / whole,
        "accuracy_ours": rows[0]["accuracy"],
        "accuracy_pyg": rows[2]["accuracy"],
        "accuracy_ticket": rows[1]["accuracy"],
        "logits_apart": apart,
    }
    title = f"{arguments.dataset}: {settings.epochs} epochs with an evaluation each, medians of {seeds} seed(s)"
    finish(title, rows, summary, arguments.json)


if __name__ == "__main__":
    main()
