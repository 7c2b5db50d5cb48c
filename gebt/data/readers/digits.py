"""The default data set: handwritten digits as a nearest-neighbor graph, ready without any download."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gebt.data.readers.reading import RawGraph
from gebt.graph.graph import GraphError

NEIGHBORS = 8
BRIGHTEST = 16


def read_digits() -> RawGraph:
    """1,797 images of 8 x 8 pixels, each linked to the 8 with the smallest squared distance; features pixel / 16.

    Distances are exact integers and ties go to the lower node, so the graph is the same on every machine.

    Returns:
        The graph, both directions of each link in it, without a split.

    Raises:
        GraphError: where scikit-learn, which has the images, is not installed.

    Example:
        >>> graph = read_digits()
        >>> tuple(graph.features.shape), int(graph.labels.max())
        ((1797, 64), 9)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise GraphError(
            "data set 'digits' (got no scikit-learn), expected it installed: the images are inside that package; "
            "do pip install scikit-learn, or load another data set"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    source, target = _nearest(pixels.astype(np.int64))
    both = np.stack((np.append(source, target), np.append(target, source)))
    edge_index = torch.from_numpy(np.unique(both, axis=1))
    features = torch.from_numpy((pixels / BRIGHTEST).astype(np.float32))
    return RawGraph(edge_index, features, torch.from_numpy(labels.astype(np.int64)))


def _nearest(points: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    squares = (points**2).sum(1)
    distances = squares[:, None] + squares - 2 * points @ points.T
    np.fill_diagonal(distances, np.iinfo(np.int64).max)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBORS]
    return np.repeat(np.arange(len(points)), NEIGHBORS), nearest.ravel()
