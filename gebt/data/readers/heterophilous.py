"""Reader of graphs in the npz layout of yandex-research/heterophilous-graphs: edges once each, ten splits."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gebt.data.readers.npz import arrays_of
from gebt.data.readers.reading import RawGraph, reading, single
from gebt.sparse.pattern import SparseMatrix

MASKS = ("train_masks", "val_masks", "test_masks")
NEEDED = ("node_features", "node_labels", "edges", *MASKS)


def read_heterophilous(path: Path, split: int) -> RawGraph:
    """The graph in an npz file with one of its splits; every edge in both directions.

    Only the members in `NEEDED` are opened, none as a pickle, and none before its declared size is checked.

    Args:
        path: the file.
        split: number of the split, from 0.

    Returns:
        The graph.

    Raises:
        GraphError: for a file that is no such graph.

    Source:
        Platonov et al. 2023, "A critical look at the evaluation of GNNs under heterophily".
    """
    with (
        reading(path, "a graph as edges, features, labels and splits in an npz file"),
        zipfile.ZipFile(path) as archive,
    ):
        arrays = arrays_of(archive, NEEDED)
        features, labels, edges = (arrays[name] for name in NEEDED[:3])
        nodes = labels.size
        if (
            labels.shape != (nodes,)
            or labels.dtype.kind not in "iu"
            or features.shape != (nodes, features.size // nodes)
        ):
            raise ValueError(
                f"labels {labels.dtype} {labels.shape}, features {features.shape}, expected one row a node"
            )
        if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
            raise ValueError(f"edges {edges.dtype} {edges.shape}, expected two integers each")
        masks: list[Tensor] = []
        for name in MASKS:
            mask = arrays[name]
            if mask.dtype != bool or mask.shape != (len(mask), nodes) or not split < len(mask):
                raise ValueError(
                    f"{name} {mask.dtype} {mask.shape}, expected a bool [splits, {nodes}] with split {split}"
                )
            masks.append(torch.from_numpy(mask[split].copy()))
        pairs = torch.from_numpy(edges.astype(np.int64)).t()
        matrix = SparseMatrix.from_dense(torch.from_numpy(single(features)))
        classes = torch.from_numpy(labels.astype(np.int64))
        return RawGraph(torch.cat((pairs, pairs.flip(0)), 1), matrix, classes, (masks[0], masks[1], masks[2]))
