"""Does the order of the nodes leak into a ticket? The same search on randomly relabelled graphs.

python benchmarks/relabelling.py [--dataset cora] [--quick] [--json OUT]

Mean test accuracy at (40 %, 0 %) for each relabelling, and how far the means spread against their standard error.
"""

from __future__ import annotations

import dataclasses
import math
import statistics

import torch
from common import finish, options

from gebt.config import RunOptions
from gebt.experiment import graph_for, model_for
from gebt.graph import Graph, canonical_graph
from gebt.recipes import retrain, search
from gebt.sparse import Pattern, SparseMatrix


def relabelled(graph: Graph, new_label: torch.Tensor) -> Graph:
    """The same graph with node u called new_label[u]."""
    old_label = torch.argsort(new_label)
    edges = torch.cat((graph.pairs, graph.pairs.flip(0)), 1)
    masks = tuple(mask[old_label] for mask in (graph.train_mask, graph.val_mask, graph.test_mask))
    features = graph.features
    if isinstance(features, SparseMatrix):
        rows = new_label[features.pattern.row.long()]
        pattern, order = Pattern.from_entries(rows, features.pattern.col, features.shape)
        moved: torch.Tensor | SparseMatrix = SparseMatrix(pattern, features.values[order])
    else:
        moved = features[old_label]
    return canonical_graph(graph.name, new_label[edges], moved, graph.labels[old_label], masks, graph.num_classes)  # type: ignore[arg-type]


def main() -> None:
    """One row a relabelling; row 0 is the graph as it comes."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="cora")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    relabellings, seeds = (1, 2) if arguments.quick else (5, 5)
    base = RunOptions(dataset=arguments.dataset, data_root=arguments.data_root, edge_ratio=0.4, weight_ratio=0.0)
    settings = dataclasses.replace(base, retrain_epochs=10, max_epochs=10) if arguments.quick else base
    settings = settings.resolved()
    rows = []
    for number in range(relabellings + 1):
        graph = graph_for(settings, 0)
        if number:
            generator = torch.Generator().manual_seed(number)
            graph = relabelled(graph, torch.randperm(graph.num_nodes, generator=generator))
        values = [100 * accuracy(settings, graph, seed) for seed in range(seeds)]
        error = statistics.stdev(values) / math.sqrt(seeds)
        rows.append({"relabelling": number, "accuracy": statistics.fmean(values), "standard_error": error})
        print(rows[-1], flush=True)
    moves = [abs(row["accuracy"] - rows[0]["accuracy"]) for row in rows[1:]]
    errors = [math.hypot(row["standard_error"], rows[0]["standard_error"]) for row in rows[1:]]
    summary = {
        "largest_move": max(moves),
        "largest_move_in_standard_errors": max(m / e if e else 0.0 for m, e in zip(moves, errors, strict=True)),
        "mean_of_relabelled": statistics.fmean(row["accuracy"] for row in rows[1:]),
    }
    finish(f"{arguments.dataset}, {seeds} seeds, tickets at (40 %, 0 %), accuracy in %", rows, summary, arguments.json)


def accuracy(settings: RunOptions, graph: Graph, seed: int) -> float:
    """Test accuracy of one ticket."""
    ticket = search.joint(
        model_for(settings, graph, seed), graph, edge_ratio=0.4, weight_ratio=0.0, settings=settings.search(), seed=seed
    )
    return retrain.run(ticket, model_for(settings, graph, seed), graph, settings.retraining(), seed=seed).test_accuracy


if __name__ == "__main__":
    main()
