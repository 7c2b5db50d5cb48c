"""Surrogate graphs, generated to the statistics of large public data sets.

Degrees are skewed, and classes show in edges and features.

Made from numbers and a seed, in blocks: no file, and hardly more memory than the graph itself. A surrogate is not the
data set whose statistics it has, and no accuracy on it is one of that data set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gebt.data.readers.splits import SEEDS
from gebt.data.surrogate_pairs import Floats, Ints, Stream, WeightedNodes, sample_pairs, stream_random
from gebt.graph.graph import Graph, GraphError

# Feature values in memory at once; the size does not change what comes out.
VALUES_A_BLOCK = 1 << 20
DEFAULT_SPLIT = (0.6, 0.2)


@dataclass(frozen=True)
class SurrogateSpec:
    """What a generated graph has.

    Features are the mean of the class plus noise, scaled to unit variance.

    Args:
        nodes: N, at least 3.
        pairs: P, undirected edges.
        features: F.
        classes: C.
        homophily: share of the pairs that join two nodes of one class.
        degree_skew: a node's share of the pairs follows its weight ((i + 1/2) / N)^-degree_skew, i a random rank: a
            power law with exponent 1 + 1/degree_skew; 0 gives all nodes the same.
        class_skew: class k has a share (k + 1)^-class_skew of the nodes, and at least one.
        feature_noise: standard deviation of the noise, in units of that of the class means.
        label_noise: share of the nodes, those of least weight, that swap labels at random: neither their pairs nor
            their features predict the new ones.
        split_sizes: nodes for training, validation and test, all N together; default 60, 20 and 20 %.

    Raises:
        GraphError: for what no graph can have.

    Example:
        >>> SurrogateSpec(nodes=10, pairs=12, features=4, classes=2).sizes
        (6, 2, 2)
    """

    nodes: int
    pairs: int
    features: int
    classes: int
    homophily: float = 0.7
    degree_skew: float = 0.4
    class_skew: float = 0.8
    feature_noise: float = 8.0
    label_noise: float = 0.0
    split_sizes: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        possible = self.nodes * (self.nodes - 1) // 2
        for what, sound, expected in (
            ("nodes", self.nodes >= 3, "at least 3, one for each part of the split"),
            ("classes", 1 <= self.classes <= self.nodes, f"1 to {self.nodes}, the number of nodes"),
            ("features", self.features >= 1, "at least 1"),
            ("pairs", 0 <= self.pairs <= possible, f"0 to {possible}, all that {self.nodes} nodes can have"),
            ("homophily", 0 <= self.homophily <= 1, "0 to 1"),
            ("degree_skew", 0 <= self.degree_skew < 1, "0 <= skew < 1: from 1 on a few nodes take all pairs"),
            ("class_skew", 0 <= self.class_skew < math.inf, "0 or more"),
            ("feature_noise", 0 <= self.feature_noise < math.inf, "0 or more"),
            ("label_noise", 0 <= self.label_noise <= 1, "0 to 1"),
            ("split_sizes", _fits(self.sizes, self.nodes), f"three counts of at least 1, together {self.nodes}"),
        ):
            if not sound:
                raise GraphError(f"{what} of a surrogate (got {getattr(self, what)}), expected {expected}")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Nodes for training, validation and test."""
        if self.split_sizes is not None:
            return tuple(self.split_sizes)
        train, val = (max(1, int(share * self.nodes)) for share in DEFAULT_SPLIT)
        return train, val, self.nodes - train - val


def generate(spec: SurrogateSpec, seed: int = 0, name: str = "surrogate", split_seed: int = 0) -> Graph:
    """The surrogate graph of a specification, drawn by a seed; in canonical form as it is made.

    P(u, v is a pair) = 1 - exp(-t w_u w_v / W), W the weight of u's class for pairs inside one and of all nodes for
    pairs between two; t is such that a few pairs too many come out, of which a random few are dropped. All counts are
    exact, as is the share of pairs inside a class without `label_noise`. Equal arguments give equal bits.

    Args:
        spec: counts and skews.
        seed: draws the graph.
        name: of the graph.
        split_seed: draws the split.

    Returns:
        The graph.

    Raises:
        GraphError: for a graph so dense, or classes so small, that sampling would not end, and for more label noise
            than the homophily allows.

    Example:
        >>> graph = generate(SurrogateSpec(nodes=50, pairs=100, features=4, classes=3), seed=1)
        >>> graph.num_nodes, graph.num_pairs, tuple(graph.features.shape), graph.num_classes
        (50, 100, (50, 4), 3)
        >>> source, target = graph.pairs
        >>> int((graph.labels[source] == graph.labels[target]).sum())  # homophily 0.7
        70
    """
    for what, value in (("seed", seed), ("split seed", split_seed)):
        if not 0 <= value < SEEDS:
            raise GraphError(f"{what} (got {value}), expected 0 to {SEEDS - 1}")
    true_classes = stream_random(seed, Stream.LABELS).permutation(np.repeat(np.arange(spec.classes), class_sizes(spec)))
    ranks = stream_random(seed, Stream.WEIGHTS).permutation(spec.nodes)
    weights = ((ranks + 0.5) / spec.nodes) ** -spec.degree_skew
    labels, light = true_classes.copy(), ranks >= spec.nodes - round(spec.label_noise * spec.nodes)
    labels[light] = stream_random(seed, Stream.LABEL_NOISE).permutation(true_classes[light])
    same = round(_inside_share(spec, true_classes, labels, weights, name) * spec.pairs)
    pairs = sample_pairs(WeightedNodes(true_classes, weights, spec.classes), (same, spec.pairs - same), seed, name)
    features = _features(spec, true_classes, seed)
    masks = _split(spec, split_seed)
    return Graph(name, pairs, features, torch.from_numpy(labels), *masks, num_classes=spec.classes)


def class_sizes(spec: SurrogateSpec) -> Ints:
    """Nodes of each class: one each, the others shared out by (k + 1)^-class_skew.

    Args:
        spec: counts and skews.

    Returns:
        Counts [C], largest first.

    Example:
        >>> class_sizes(SurrogateSpec(nodes=10, pairs=12, features=4, classes=3)).tolist()
        [5, 3, 2]
    """
    shares = np.arange(1, spec.classes + 1, dtype=np.float64) ** -spec.class_skew
    exact = shares / shares.sum() * (spec.nodes - spec.classes)
    sizes = np.floor(exact).astype(np.int64)
    remainder = spec.nodes - spec.classes - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:remainder]] += 1
    return sizes + 1


def _fits(sizes: tuple[int, ...], nodes: int) -> bool:
    return len(sizes) == 3 and min(sizes) >= 1 and sum(sizes) == nodes


def _inside_share(spec: SurrogateSpec, true_classes: Ints, labels: Ints, weights: Floats, name: str) -> float:
    """The share of pairs inside classes at which the share `spec.homophily` joins equal `labels`."""
    size = spec.classes
    if not spec.label_noise or size == 1:
        return spec.homophily
    shown = np.bincount(true_classes * size + labels, weights, minlength=size * size).reshape(size, size)
    per_class, squares = shown.sum(1), shown**2
    inside = float((squares.sum(1) / per_class).sum() / per_class.sum())
    between = float(((shown.sum(0) ** 2).sum() - squares.sum()) / (per_class.sum() ** 2 - (per_class**2).sum()))
    if not between <= spec.homophily <= inside:
        raise GraphError(
            f"homophily of {name!r} (got {spec.homophily}), expected {between:.3f} to {inside:.3f}, all that a "
            f"label noise of {spec.label_noise} leaves; do ask for less label noise"
        )
    return (spec.homophily - between) / (inside - between)


def _features(spec: SurrogateSpec, labels: Ints, seed: int) -> Tensor:
    means = stream_random(seed, Stream.MEANS).standard_normal((spec.classes, spec.features))
    random = stream_random(seed, Stream.NOISE)
    features = torch.empty(spec.nodes, spec.features)
    rows = max(1, VALUES_A_BLOCK // spec.features)
    scale = math.hypot(1.0, spec.feature_noise)
    for start in range(0, spec.nodes, rows):
        part = labels[start : start + rows]
        values = random.standard_normal((part.size, spec.features))
        values *= spec.feature_noise / scale
        values += (means / scale)[part]
        features.numpy()[start : start + rows] = values
    return features


def _split(spec: SurrogateSpec, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.from_numpy(np.random.RandomState(seed).permutation(spec.nodes))
    masks = torch.zeros(3, spec.nodes, dtype=torch.bool)
    for mask, part in zip(masks, order.split(spec.sizes), strict=True):
        mask[part] = True
    return masks[0], masks[1], masks[2]
