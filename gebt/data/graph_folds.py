"""One fold of a set of graphs as the graph that a run reads."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gebt.data.readers.tu import GraphDataset
from gebt.graph.graph import GraphError
from gebt.graph.graph_sets import GraphClassificationFold

VAL_SHARE = 0.1


def fold_of(graphs: GraphDataset, fold: int, *, val_share: float = VAL_SHARE) -> GraphClassificationFold:
    """Fold 0, 1, ... of the set: its test graphs are the fold's, and `val_share` of its training graphs validate.

    The validation graphs are drawn by the number of the fold, round(share n) of the n of each class, at least one.
    Raises `GraphError` for a fold that the set lacks, and for a class that would have no graph left to train with.
    """
    if not 0 <= fold < len(graphs.folds):
        raise GraphError(f"fold (got {fold}), expected 0 to {len(graphs.folds) - 1}, the folds of {graphs.name!r}")
    given, held_out = graphs.folds[fold]
    train, val, test = torch.zeros(3, graphs.num_graphs, dtype=torch.bool)
    val[_stratified(graphs, given, val_share, fold)] = True
    train[given], test[held_out] = True, True
    return GraphClassificationFold(
        graphs.name.lower(), graphs.pairs, graphs.features, graphs.labels, train & ~val, val, test, graphs.num_classes,
        notes=(f"{graphs.num_graphs} graphs; labels and split are of graphs",), graph_of=graphs.graph_of,
    )  # fmt: skip


def _stratified(graphs: GraphDataset, given: Tensor, share: float, seed: int) -> Tensor:
    """Numbers of so many of the `given` graphs of each class."""
    # RandomState for the reason that `seeded_split` gives.
    order = given[torch.from_numpy(np.random.RandomState(seed).permutation(len(given)))]
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
