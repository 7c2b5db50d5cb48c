"""The parts of a run: the graph, the network and the ticket of a seed, and the first entries of its record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from gebt.data.graphs import load_graph
from gebt.data.manifest import dataset_info
from gebt.data.mapped.mapped_graph import HEADER, MappedGraph, open_mapped
from gebt.experiments.methods import method_epochs
from gebt.experiments.options import RunOptions
from gebt.experiments.record import machine
from gebt.graph.graph import Graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.graph.links import LinkGraph, hold_out_links
from gebt.measure.cost import macs_paper
from gebt.models.gnn import GCN
from gebt.models.graph_classifier import GraphClassifier
from gebt.models.links import LinkPredictor
from gebt.models.registry import Network, build
from gebt.prune.detector import pairwise_distances
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.recipes import baselines, search
from gebt.sparse import backends
from gebt.ticket import Ticket
from gebt.train.loop import History
from gebt.train.stacked import worth_stacking

# More entries than this are sampled for the heat maps of mask distances, which only picture the search.
PICTURED_ENTRIES = 1 << 20
# The most seeds that are trained together: their results are on disk before the next ones begin.
MOST_STACKED = 10


def graph_for(options: RunOptions, seed: int) -> Graph:
    """The graph of one seed; a random split is of that seed unless `split_seed` is set.

    Args:
        options: resolved.
        seed: of the run.

    Returns:
        The graph, on the device of the options.
    """
    split_seed = _split_seed(options, seed)
    graph = load_graph(options.dataset, options.data_root, split_seed=split_seed, to_undirected=options.to_undirected)
    if options.task == "links" and not isinstance(graph, LinkGraph):
        graph = hold_out_links(graph, seed=_eval_seed(options, seed))
    return graph if options.device == "cpu" else graph.to(options.device)


def is_mapped(options: RunOptions) -> bool:
    """Whether the data set is a graph that `gebt convert` wrote.

    Args:
        options: resolved.

    Returns:
        True where it is read from disk.
    """
    info = dataset_info(options.dataset)  # the name of a data set is never a folder
    return info.format == "folder" and (Path(info.folder) / HEADER).is_file()


def source_for(options: RunOptions, seed: int) -> Graph | MappedGraph:
    """The data of a run in batches: a mapped graph with its split, or `graph_for`.

    Args:
        options: resolved.
        seed: of the run.

    Returns:
        The graph, on the CPU.

    Raises:
        ValueError: for a task other than nodes on a mapped graph.
    """
    if is_mapped(options):
        if options.task != "nodes":
            raise ValueError(f"--task (got {options.task!r}), expected 'nodes' for a graph that is read from disk")
        return open_mapped(dataset_info(options.dataset).folder)
    return graph_for(dataclasses.replace(options, device="cpu"), seed)  # batches are cut on the CPU


def graphs_for(options: RunOptions, seeds: Sequence[int]) -> list[Graph]:
    """The graph of each seed.

    Args:
        options: resolved.
        seeds: of the group.

    Returns:
        One for each seed; seeds with the same split share an object.
    """
    splits = [(_split_seed(options, seed), _eval_seed(options, seed)) for seed in seeds]
    loaded = {split: graph_for(options, seed) for split, seed in zip(splits, seeds, strict=True)}
    return [loaded[split] for split in splits]


def _eval_seed(options: RunOptions, seed: int) -> int:
    """The seed that draws the held-out pairs, where the data set has none."""
    drawn = options.task == "links" and dataset_info(options.dataset).task == "nodes"
    return (seed if options.split_seed is None else options.split_seed) if drawn else 0


def _split_seed(options: RunOptions, seed: int) -> int:
    info = dataset_info(options.dataset)
    if options.task == "links":
        return 0  # the split of the nodes is not read
    if options.split_seed is not None:
        return options.split_seed
    return {"seeded": seed, "fixed": seed % info.splits, "public": 0}[info.split]


def model_for(options: RunOptions, graph: Graph, seed: int) -> Network | LinkPredictor:
    """The network of one seed; for links one with embeddings of `hidden` numbers, and a predictor as wide.

    Args:
        options: resolved.
        graph: gives the numbers of features and classes.
        seed: of the start weights.

    Returns:
        The network, on the device of the options.
    """
    links = isinstance(graph, LinkGraph)
    out = options.hidden if links else graph.num_classes
    sizes: tuple[Any, ...] = (options.hidden, out, options.depth, options.dropout)
    more = {"input_dropout": options.input_dropout, "heads": options.heads, "aggregation": options.aggregation}
    if isinstance(graph, GraphClassificationFold):
        classifier = GraphClassifier(graph.num_features, *sizes, seed, input_dropout=options.input_dropout)  # type: ignore[call-arg]
        return classifier.to(options.device)
    model: Network | LinkPredictor = build(options.model, graph.num_features, *sizes, seed, **more)  # type: ignore[arg-type, call-arg]
    if links:
        model = LinkPredictor(model, options.hidden, seed=seed)  # type: ignore[arg-type]
    return model.to(options.device)


def macs_for(options: RunOptions, graph: Graph, ticket: Ticket | None) -> float:
    """`macs_paper` of one inference.

    Args:
        options: resolved.
        graph: of the run.
        ticket: None: the dense network.

    Returns:
        Multiply-adds.
    """
    if ticket is not None:
        return macs_with(options, graph, ticket.edge_mask.kept, ticket.weight_mask.kept)
    weights = prunable_weights(model_for(options, graph, 0))
    return macs_with(options, graph, graph.num_pairs, sum(weight.numel() for weight in weights.values()))


def macs_with(options: RunOptions, graph: Graph, pairs: int, weights: int) -> float:
    """`macs_paper` of one inference with so many kept pairs and weights.

    Args:
        options: resolved.
        graph: of the run.
        pairs: kept.
        weights: kept.

    Returns:
        Multiply-adds.
    """
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


def parameters_of(options: RunOptions, graph: Any, model: nn.Module, ticket: Ticket | None) -> dict[str, int]:
    """Trainable numbers of both stages, as OGB asks: of the training, without pruned weights, and of the search before.

    A search trains all weights, and one value a pair where its scores are trained.

    Args:
        options: resolved.
        graph: of the run.
        model: its network.
        ticket: what the network is masked with; None: nothing.

    Returns:
        Numbers of parameters: "training" and "search".
    """
    parameters = sum(p.numel() for p in model.parameters())
    if ticket is None:
        return {"training": parameters, "search": 0}
    pruned = ticket.weight_mask.size - ticket.weight_mask.kept
    trains = options.algorithm != "weights" and options.search().trains_edges
    searched = parameters + trains * graph.num_pairs if ticket.epochs_searched else 0
    return {"training": parameters - pruned, "search": searched}


def epochs_of(options: RunOptions) -> int:
    """The most epochs that a run trains, all variants and seeds together, for a progress bar.

    Args:
        options: resolved.

    Returns:
        The number.
    """
    search_epochs = options.max_epochs + (options.epochs if options.algorithm == "graph" else 0)  # type: ignore[operator]
    other_methods = sum(method_epochs(name, options) for name in options.other_methods)
    return options.seeds * (options.epochs + search_epochs + 3 * options.retrain_epochs + other_methods)  # type: ignore[operator]


def find_ticket(
    options: RunOptions,
    graph: Graph,
    model: Network | LinkPredictor,
    seed: int,
    on_draw: search.DrawObserver | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """The ticket of one seed by the chosen algorithm; a graph-only search pretrains the network first.

    Args:
        options: resolved.
        graph: to prune.
        model: to prune; the search trains it.
        seed: of everything random.
        on_draw: called with every draw of masks.
        on_epoch: called after every epoch.

    Returns:
        The ticket.
    """
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
    models: Sequence[Network | LinkPredictor],
    seeds: Sequence[int],
    on_draw: search.DrawObserver | None = None,
    on_epoch: Callable[[int, int, History], bool] | None = None,
) -> list[Ticket]:
    """The tickets of a group of seeds (`groups`), by one search for all.

    Args:
        options: resolved.
        graphs: one for each seed.
        models: one for each seed.
        seeds: those of the group.
        on_draw: called with every draw of the first seed.
        on_epoch: called after every epoch, with the place in the group, the epoch and the history.

    Returns:
        One for each seed.
    """
    if len(seeds) == 1:
        on_epoch_of_first = None if on_epoch is None else partial(on_epoch, 0)
        return [find_ticket(options, graphs[0], models[0], seeds[0], on_draw, on_epoch_of_first)]

    def watch(number: int, epoch: int, weights: Mask, edges: Mask) -> None:
        if on_draw is not None and number == 0:
            on_draw(epoch, weights, edges)

    gcns = cast(Sequence[GCN], models)  # as `worth_stacking` has checked
    ratios = {"edge_ratio": options.edge_ratio, "weight_ratio": options.weight_ratio}
    settings = options.search()
    return search.joint_stacked(
        gcns, graphs, **ratios, settings=settings, seeds=seeds, on_draw=watch, on_epoch=on_epoch
    )


def groups(options: RunOptions) -> list[list[int]]:
    """The seeds in groups that are trained together (`train.stacked`) where that is possible and faster.

    Args:
        options: resolved.

    Returns:
        Lists of seeds, each of one seed where they are trained one by one.
    """
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    joint = options.stack_seeds and options.algorithm == "joint" and search.can_stack(options.search())
    if len(seeds) > 1 and joint:
        graph = graph_for(options, 0)
        if worth_stacking(graph, model_for(options, graph, 0), len(seeds)):
            return [seeds[first : first + MOST_STACKED] for first in range(0, len(seeds), MOST_STACKED)]
    return [[seed] for seed in seeds]


class DrawLog:
    """The masks of every draw of one search, for the heat maps of their pairwise distances."""

    def __init__(self) -> None:
        self._drawn: dict[str, list[torch.Tensor]] = {"weights": [], "edges": []}
        self._sample: dict[str, torch.Tensor | None] = {}

    def __call__(self, epoch: int, weights: Mask, edges: Mask) -> None:
        """Stores the masks drawn in an epoch."""
        for kind, mask in (("weights", weights), ("edges", edges)):
            flat = mask.flat()
            if kind not in self._sample:
                self._sample[kind] = None
                if flat.numel() > PICTURED_ENTRIES:
                    shuffled = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(0))
                    self._sample[kind] = shuffled[:PICTURED_ENTRIES].to(flat.device, copy=True)
            sample = self._sample[kind]
            self._drawn[kind].append(flat if sample is None else flat[sample])

    def pairwise(self) -> dict[str, list[list[float]]]:
        """Distances of any two draws.

        Returns:
            For weights and edges the share of entries that differ, [draws, draws].
        """
        return {
            kind: [[round(d, 6) for d in row] for row in pairwise_distances(torch.stack(masks)).tolist()]
            for kind, masks in self._drawn.items()
        }


def opening(options: RunOptions, graph: Graph, *, complete: bool) -> dict[str, Any]:
    """The first entries of every record: the data, the options, the machine.

    Args:
        options: resolved.
        graph: of the run.
        complete: whether the run is done.

    Returns:
        Plain JSON.
    """
    return {
        "complete": complete,
        "dataset": options.dataset,
        "graph": _described(graph),
        "config": json.loads(options.to_json()),
        "machine": machine(options.device),
        "products": backends.choices(),
    }


def _described(graph: Graph) -> dict[str, Any]:
    return {
        "nodes": graph.num_nodes,
        "pairs": graph.num_pairs,
        "features": graph.num_features,
        "classes": graph.num_classes,
        **_parts(graph),
        "notes": list(graph.notes),
        "metric": graph.metric,
    }


def _parts(graph: Graph) -> dict[str, int]:
    """How many nodes, or links, are in each part of the split."""
    if isinstance(graph, LinkGraph):
        return {"train": graph.num_pairs, "val": graph.val_edges.shape[1], "test": graph.test_edges.shape[1]}
    masks = {"train": graph.train_mask, "val": graph.val_mask, "test": graph.test_mask}
    return {part: int(mask.sum()) for part, mask in masks.items()}
