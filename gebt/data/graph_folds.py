"""One fold of a data set for graph classification, as the graph that a training reads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gebt.data.readers.tu import GraphDataset
from gebt.graph.graph import GraphError
from gebt.graph.graph_sets import GraphClassificationFold

VAL_SHARE = 0.1


def fold_of(graphs: GraphDataset, fold: int, *, val_share: float = VAL_SHARE) -> GraphClassificationFold:
    """One fold of a data set for graph classification, some of its training graphs set apart for validation.

    The validation graphs are drawn by the number of the fold: of the n training graphs of a class round(val_share n),
    at least one.

    Args:
        graphs: the data set.
        fold: number of the fold, from 0.
        val_share: share of the training graphs that validate.

    Returns:
        The graph of all graphs, with masks [G] over graphs.

    Raises:
        GraphError: for a fold that the data set lacks, and for a class that would have no graph to train with.
    """
    if not 0 <= fold < len(graphs.folds):
        raise GraphError(f"fold (got {fold}), expected 0 to {len(graphs.folds) - 1}, the folds of {graphs.name!r}")
    train_graphs, test_graphs = graphs.folds[fold]
    train, val, test = torch.zeros(3, graphs.num_graphs, dtype=torch.bool)
    val[_stratified(graphs, train_graphs, val_share, fold)] = True
    train[train_graphs], test[test_graphs] = True, True
    return GraphClassificationFold(
        graphs.name.lower(), graphs.pairs, graphs.features, graphs.labels, train & ~val, val, test, graphs.num_classes,
        notes=(f"{graphs.num_graphs} graphs; labels and split are of graphs",), graph_of=graphs.graph_of,
    )  # fmt: skip


def _stratified(graphs: GraphDataset, candidates: Tensor, share: float, seed: int) -> Tensor:
    """Numbers of round(share n) training graphs of each class, at least one."""
    # RandomState, as in `seeded_split`: its stream never changes.
    order = candidates[torch.from_numpy(np.random.RandomState(seed).permutation(len(candidates)))]
    drawn = []
    for number in range(graphs.num_classes):
        members = order[graphs.labels[order] == number]
        count = max(1, round(share * len(members)))
        if len(members) <= count:
            raise GraphError(
                f"class {number} of {graphs.name!r} (got {len(members)} training graphs in fold {seed}), expected more "
                f"than {count} for validation"
            )
        drawn.append(members[:count])
    return torch.cat(drawn)
