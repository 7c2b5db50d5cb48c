"""What a run is made of: the graph, the network and the ticket of a seed, and how its record begins."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch

from gebt.config import RunOptions
from gebt.cost import macs_paper
from gebt.data.graphs import load_graph
from gebt.data.manifest import dataset_info
from gebt.graph.canonical import Graph
from gebt.graph.sets import FoldOfGraphs
from gebt.models.gnn import GCN
from gebt.models.graph_classifier import GraphClassifier
from gebt.models.kinds import Network, build
from gebt.prune.detector import pairwise_distances
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.recipes import baselines, search
from gebt.record import machine
from gebt.rivals import rival_epochs
from gebt.sparse import backends
from gebt.ticket import Ticket
from gebt.train.loop import History
from gebt.train.many import pays

# More entries than this are sampled for the heat maps of mask distances, which only picture the search.
PICTURED_ENTRIES = 1 << 20
# Seeds that are trained together at most: what they find is on disk before the next ones begin.
TOGETHER = 10


def graph_for(options: RunOptions, seed: int) -> Graph:
    """The graph of one seed: a drawn split follows the seed of the run unless one is fixed."""
    split_seed = _split_seed(options, seed)
    graph = load_graph(options.dataset, options.data_root, split_seed=split_seed, symmetrise=options.symmetrise)
    return graph if options.device == "cpu" else graph.to(options.device)


def graphs_for(options: RunOptions, seeds: Sequence[int]) -> list[Graph]:
    """The graph of each seed; one and the same object where their splits are."""
    splits = [_split_seed(options, seed) for seed in seeds]
    loaded = {split: graph_for(options, seed) for split, seed in zip(splits, seeds, strict=True)}
    return [loaded[split] for split in splits]


def _split_seed(options: RunOptions, seed: int) -> int:
    if options.split_seed is not None:
        return options.split_seed
    info = dataset_info(options.dataset)
    return {"seeded": seed, "fixed": seed % info.splits, "public": 0}[info.split]


def model_for(options: RunOptions, graph: Graph, seed: int) -> Network:
    """The network of one seed."""
    sizes: tuple[Any, ...] = (options.hidden, graph.num_classes, options.depth, options.dropout)
    more = {"input_dropout": options.input_dropout, "heads": options.heads, "aggregation": options.aggregation}
    if isinstance(graph, FoldOfGraphs):
        widths = (options.hidden, graph.num_classes, options.depth, options.dropout)
        classifier = GraphClassifier(graph.num_features, *widths, seed, input_dropout=options.input_dropout)  # type: ignore[arg-type]
        return classifier.to(options.device)
    model = build(options.model, graph.num_features, *sizes, seed, **more)  # type: ignore[arg-type, call-arg]
    return model.to(options.device)


def macs_for(options: RunOptions, graph: Graph, ticket: Ticket | None) -> float:
    """`macs_paper` of one inference of the ticket, or of the dense network (None)."""
    if ticket is not None:
        return macs_with(options, graph, ticket.edge_mask.kept, ticket.weight_mask.kept)
    whole = prunable_weights(model_for(options, graph, 0))
    return macs_with(options, graph, graph.num_pairs, sum(weight.numel() for weight in whole.values()))


def macs_with(options: RunOptions, graph: Graph, pairs: int, weights: int) -> float:
    """`macs_paper` of one inference with so many pairs and weights left."""
    heads = options.heads if options.model == "gat" else 1
    return macs_paper(
        nodes=graph.num_nodes,
        pairs=pairs,
        features=graph.num_features,
        # The convention counts one head's weights; a network has those of all.
        weights=weights / heads,
        depth=options.depth,  # type: ignore[arg-type]
        heads=heads,
    )


def epochs_of(options: RunOptions) -> int:
    """The most epochs that a run trains, all arms and seeds together (for a progress bar)."""
    search_epochs = options.max_epochs + (options.epochs if options.algorithm == "graph" else 0)  # type: ignore[operator]
    rivals = sum(rival_epochs(name, options) for name in options.rivals)
    return options.seeds * (options.epochs + search_epochs + 3 * options.retrain_epochs + rivals)  # type: ignore[operator]


def find_ticket(
    options: RunOptions,
    graph: Graph,
    model: Network,
    seed: int,
    on_draw: search.DrawObserver | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """The ticket of one seed by the chosen algorithm; a graph-only search pretrains the network first."""
    common: dict[str, Any] = {"settings": options.search(), "seed": seed, "on_draw": on_draw, "on_epoch": on_epoch}
    weights: dict[str, Any] = {"weight_ratio": options.weight_ratio, "feature_ratio": options.feature_ratio}
    if options.algorithm == "joint":
        return search.joint(model, graph, edge_ratio=options.edge_ratio, **weights, **common)
    if options.algorithm == "weights":
        return search.weights_only(model, graph, **weights, **common)
    baselines.dense(model, graph, options.training(), seed=seed, on_epoch=on_epoch)
    return search.graph_only(model, graph, edge_ratio=options.edge_ratio, **common)


def find_tickets(
    options: RunOptions,
    graphs: Sequence[Graph],
    models: Sequence[Network],
    seeds: Sequence[int],
    on_draw: search.DrawObserver | None = None,
    on_epoch: Callable[[int, int, History], bool] | None = None,
) -> list[Ticket]:
    """The tickets of a group of seeds (`groups`), by one search for all; `on_draw` watches the first seed's.

    `on_epoch(number, epoch, history)` is told the place in the group first.
    """
    if len(seeds) == 1:
        told = None if on_epoch is None else partial(on_epoch, 0)
        return [find_ticket(options, graphs[0], models[0], seeds[0], on_draw, told)]

    def watch(number: int, epoch: int, weights: Mask, edges: Mask) -> None:
        if on_draw is not None and number == 0:
            on_draw(epoch, weights, edges)

    gcns = cast(Sequence[GCN], models)  # as `pays` has found
    ratios = {"edge_ratio": options.edge_ratio, "weight_ratio": options.weight_ratio}
    settings = options.search()
    return search.joint_many(gcns, graphs, **ratios, settings=settings, seeds=seeds, on_draw=watch, on_epoch=on_epoch)


def groups(options: RunOptions) -> list[list[int]]:
    """The seeds, in groups that are trained together (`train.many`) where they can be and it pays; else one by one."""
    seeds = list(range(options.seeds))
    joint = options.together and options.algorithm == "joint" and search.searches_together(options.search())
    if len(seeds) > 1 and joint:
        graph = graph_for(options, 0)
        if pays(graph, model_for(options, graph, 0), len(seeds)):
            return [seeds[first : first + TOGETHER] for first in range(0, len(seeds), TOGETHER)]
    return [[seed] for seed in seeds]


class DrawLog:
    """The masks of every draw of one search, for the heat maps of their pairwise distances."""

    def __init__(self) -> None:
        self._drawn: dict[str, list[torch.Tensor]] = {"weights": [], "edges": []}
        self._sample: dict[str, torch.Tensor | None] = {}

    def __call__(self, epoch: int, weights: Mask, edges: Mask) -> None:
        """Takes the masks drawn in `epoch`."""
        for kind, mask in (("weights", weights), ("edges", edges)):
            flat = mask.flat()
            if kind not in self._sample:
                many = flat.numel() > PICTURED_ENTRIES
                shuffled = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(0)) if many else None
                self._sample[kind] = shuffled[:PICTURED_ENTRIES] if shuffled is not None else None
            sample = self._sample[kind]
            self._drawn[kind].append(flat if sample is None else flat[sample])

    def pairwise(self) -> dict[str, list[list[float]]]:
        """For weights and edges: the share of entries that differ between the draws of every two epochs."""
        return {
            kind: [[round(float(d), 6) for d in row] for row in pairwise_distances(torch.stack(masks))]
            for kind, masks in self._drawn.items()
        }


def opening(options: RunOptions, graph: Graph, *, complete: bool) -> dict[str, Any]:
    """What every record begins with: the data, the resolved options, the machine."""
    return {
        "complete": complete,
        "dataset": options.dataset,
        "graph": _described(graph),
        "config": json.loads(options.to_json()),
        "machine": machine(),
        "products": backends.choices(),
    }


def _described(graph: Graph) -> dict[str, Any]:
    return {
        "nodes": graph.num_nodes,
        "pairs": graph.num_pairs,
        "features": graph.num_features,
        "classes": graph.num_classes,
        "train": int(graph.train_mask.sum()),
        "val": int(graph.val_mask.sum()),
        "test": int(graph.test_mask.sum()),
        "notes": list(graph.notes),
    }
