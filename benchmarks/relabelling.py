"""Does the order of the nodes leak into a ticket? The same search on randomly relabeled graphs.

python benchmarks/relabeling.py [--dataset cora] [--methods default best teddy ...] [--ratios 0.4,0] [--quick]
    [--json OUT]

Mean test accuracy for each method and relabeling, and how far the means move against their standard error. Methods:
presets and the methods of `gebt.experiments.methods`.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from common import finish, options

from gebt.experiments.methods import OTHER_METHODS, run_method
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, graph_for, model_for
from gebt.graph import Graph, canonical_graph
from gebt.recipes import retrain
from gebt.sparse import Pattern, SparseMatrix


def relabeled(graph: Graph, new_label: torch.Tensor) -> Graph:
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
    """One row a relabeling; row 0 is the graph as it comes."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="cora")
    parser.add_argument("--methods", nargs="+", default=["early-bird"])
    parser.add_argument("--ratios", default="0.4,0", help="edge,weight")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    relabelings, seeds = (1, 2) if arguments.quick else (5, 5)
    edge_ratio, weight_ratio = (float(ratio) for ratio in arguments.ratios.split(","))
    few = {"epochs": 10, "retrain_epochs": 10, "max_epochs": 10} if arguments.quick else {}
    given = {"dataset": arguments.dataset, "data_root": arguments.data_root, **few}
    rows, summary = [], {}
    for method in arguments.methods:
        preset = "early-bird" if method in OTHER_METHODS else method
        settings = RunOptions(preset=preset, edge_ratio=edge_ratio, weight_ratio=weight_ratio, **given).resolved()
        own = rows_of(method, settings, relabelings, seeds)
        rows += own
        moves = [abs(row["accuracy"] - own[0]["accuracy"]) for row in own[1:]]
        errors = [math.hypot(row["standard_error"], own[0]["standard_error"]) for row in own[1:]]
        summary[f"{method}: largest move, points"] = max(moves)
        in_errors = max(m / e if e else 0.0 for m, e in zip(moves, errors, strict=True))
        summary[f"{method}: largest move, standard errors"] = in_errors
        # Of several moves the largest is expected to be large; their mean is the fair question.
        relabeled_values = [value for row in own[1:] for value in row["values"]]
        gap = statistics.fmean(relabeled_values) - own[0]["accuracy"]
        error = math.hypot(
            statistics.stdev(relabeled_values) / math.sqrt(len(relabeled_values)), own[0]["standard_error"]
        )
        summary[f"{method}: mean of the relabeled less the graph as it comes, standard errors"] = gap / error
    shown = [{name: value for name, value in row.items() if name != "values"} for row in rows]
    title = f"{arguments.dataset}, {seeds} seeds, tickets at ({arguments.ratios}), accuracy in %"
    finish(title, shown, summary, arguments.json)


def rows_of(method: str, settings: RunOptions, relabelings: int, seeds: int) -> list[dict[str, Any]]:
    """One row a relabeling of one method."""
    rows: list[dict[str, Any]] = []
    for number in range(relabelings + 1):
        graph = graph_for(settings, 0)
        if number:
            generator = torch.Generator().manual_seed(number)
            graph = relabeled(graph, torch.randperm(graph.num_nodes, generator=generator))
        values = [100 * accuracy(method, settings, graph, seed) for seed in range(seeds)]
        error = statistics.stdev(values) / math.sqrt(seeds)
        rows.append({"method": method, "relabeling": number, "accuracy": statistics.fmean(values)})
        rows[-1] |= {"standard_error": error, "values": values}
        print(rows[-1], flush=True)
    return rows


def accuracy(method: str, settings: RunOptions, graph: Graph, seed: int) -> float:
    """Test accuracy of one ticket."""
    model = model_for(settings, graph, seed)
    if method in OTHER_METHODS:
        return run_method(method, settings, graph, model, seed).test_accuracy
    ticket = find_ticket(settings, graph, model, seed)
    return retrain.run(ticket, model_for(settings, graph, seed), graph, settings.retraining(), seed=seed).test_accuracy


if __name__ == "__main__":
    main()
