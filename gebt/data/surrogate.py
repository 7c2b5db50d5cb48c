"""Graphs made up to the statistics of big public sets: skewed degrees, classes that show in edges and features.

Made from numbers and a seed, in blocks: no file, and hardly more memory than the graph itself. A surrogate is not the
set that lent it the statistics, and no accuracy on it is one of that set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gebt.data.readers.splits import SEEDS
from gebt.graph.graph import Graph, GraphError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Held at once; neither size changes what comes out.
DRAWS_A_BLOCK = 1 << 20
VALUES_A_BLOCK = 1 << 20
# Nodes of nearly the same weight are counted together where the number of different pairs is foretold.
WEIGHT_BINS = 64
# A graph that needs more draws a pair than this is too dense: most draws would repeat one another.
DRAWS_A_PAIR = 20
ATTEMPTS = 8
DEFAULT_SPLIT = (0.6, 0.2)


class _Stream(IntEnum):
    """Every kind of draw has random numbers of its own, so that none depends on how many another took."""

    LABELS = 1
    WEIGHTS = 2
    SAME_COUNTS = 3
    SAME_TARGETS = 4
    CROSS_COUNTS = 5
    CROSS_TARGETS = 6
    SURPLUS = 7
    MEANS = 8
    NOISE = 9
    LABEL_NOISE = 10


@dataclass(frozen=True)
class SurrogateSpec:
    """What a generated graph has; raises `GraphError` for what no graph can have.

    `pairs`: undirected edges, of which the share `homophily` joins two nodes of one class. A node's share of the pairs
    follows its weight ((i + 1/2) / N)^-degree_skew, i a random rank: a power law with exponent 1 + 1/degree_skew; 0
    gives all nodes the same. Class k has a share (k + 1)^-class_skew of the nodes, and at least one. Features are the
    mean of the class plus `feature_noise` times as much noise, scaled to unit variance. The share `label_noise` of the
    nodes, those of least weight, swap labels at random: neither their pairs nor their features tell the new ones.
    `split_sizes`: nodes for training, validation and test, all N together; without them 60, 20 and 20 %.
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
    """The graph of `spec` that `seed` draws, its split drawn by `split_seed`; in canonical form as it is made.

    P(u, v is a pair) = 1 - exp(-t w_u w_v / W), W the weight of u's class for pairs inside one and of all nodes for
    pairs between two; t is such that a few pairs too many come out, of which a random few are dropped. All counts are
    exact, as is the share of pairs inside a class without `label_noise`. Equal arguments give equal bits.
    Raises `GraphError` for a graph so dense, or classes so small, that sampling would not end, and for more label noise
    than the homophily allows.
    """
    for what, value in (("seed", seed), ("split seed", split_seed)):
        if not 0 <= value < SEEDS:
            raise GraphError(f"{what} (got {value}), expected 0 to {SEEDS - 1}")
    homes = _random(seed, _Stream.LABELS).permutation(np.repeat(np.arange(spec.classes), class_sizes(spec)))
    ranks = _random(seed, _Stream.WEIGHTS).permutation(spec.nodes)
    weights = ((ranks + 0.5) / spec.nodes) ** -spec.degree_skew
    labels, light = homes.copy(), ranks >= spec.nodes - round(spec.label_noise * spec.nodes)
    labels[light] = _random(seed, _Stream.LABEL_NOISE).permutation(homes[light])
    same = round(_at_home(spec, homes, labels, weights, name) * spec.pairs)
    pairs = _pairs(_Nodes(homes, weights, spec.classes), (same, spec.pairs - same), seed, name)
    features = _features(spec, homes, seed)
    masks = _split(spec, split_seed)
    return Graph(name, pairs, features, torch.from_numpy(labels), *masks, num_classes=spec.classes)


def class_sizes(spec: SurrogateSpec) -> Ints:
    """Nodes of each class [C], largest first: one each, the others shared out by (k + 1)^-class_skew."""
    shares = np.arange(1, spec.classes + 1, dtype=np.float64) ** -spec.class_skew
    exact = shares / shares.sum() * (spec.nodes - spec.classes)
    sizes = np.floor(exact).astype(np.int64)
    left = spec.nodes - spec.classes - int(sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:left]] += 1
    return sizes + 1


def _fits(sizes: tuple[int, ...], nodes: int) -> bool:
    return len(sizes) == 3 and min(sizes) >= 1 and sum(sizes) == nodes


def _random(seed: int, stream: _Stream, attempt: int = 0) -> np.random.RandomState:
    # RandomState, not Generator: numpy promises that its stream never changes, and fingerprints depend on it.
    return np.random.RandomState((seed, stream, attempt))


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Labels and weights of the nodes [N], and the nodes by class: the members of one in a row, in rising order."""

    labels: Ints
    weights: Floats
    classes: int

    @cached_property
    def by_class(self) -> Ints:
        return np.argsort(self.labels, kind="stable")

    @cached_property
    def place(self) -> Ints:
        """Where each node stands in `by_class`."""
        place = np.empty_like(self.by_class)
        place[self.by_class] = np.arange(place.size)
        return place

    @cached_property
    def ends(self) -> Ints:
        """Where the class of each node ends in `by_class`."""
        return np.cumsum(np.bincount(self.labels, minlength=self.classes))[self.labels]

    @cached_property
    def reach(self) -> Floats:
        """Weight of all nodes up to each [N + 1]."""
        return np.append(0.0, np.cumsum(self.weights))

    @cached_property
    def class_reach(self) -> Floats:
        """The same in the order of `by_class`."""
        return np.append(0.0, np.cumsum(self.weights[self.by_class]))

    @cached_property
    def class_weights(self) -> Floats:
        return np.bincount(self.labels, self.weights, minlength=self.classes).astype(np.float64)


def _at_home(spec: SurrogateSpec, homes: Ints, labels: Ints, weights: Floats, name: str) -> float:
    """The share of pairs inside classes at which the share `spec.homophily` joins equal `labels`."""
    size = spec.classes
    if not spec.label_noise or size == 1:
        return spec.homophily
    shown = np.bincount(homes * size + labels, weights, minlength=size * size).reshape(size, size)
    of_home, squares = shown.sum(1), shown**2
    inside = float((squares.sum(1) / of_home).sum() / of_home.sum())
    between = float(((shown.sum(0) ** 2).sum() - squares.sum()) / (of_home.sum() ** 2 - (of_home**2).sum()))
    if not between <= spec.homophily <= inside:
        raise GraphError(
            f"homophily of {name!r} (got {spec.homophily}), expected {between:.3f} to {inside:.3f}, all that a "
            f"label noise of {spec.label_noise} leaves; do ask for less label noise"
        )
    return (spec.homophily - between) / (inside - between)


def _pairs(nodes: _Nodes, wanted: tuple[int, int], seed: int, name: str) -> Tensor:
    expected = _Expected.of(nodes)
    for attempt in range(ATTEMPTS):
        times = _times(wanted, expected, name, attempt)
        blocks = list(_drawn(nodes, times, seed, attempt))
        same = sum(int((keys & 1).sum()) for keys in blocks)
        found = same, sum(keys.size for keys in blocks) - same
        if found[0] >= wanted[0] and found[1] >= wanted[1]:
            random = _random(seed, _Stream.SURPLUS, attempt)
            dropped = [_choice(random, have, have - want) for have, want in zip(found, wanted, strict=True)]
            return _kept(blocks, dropped, nodes.labels.size, sum(wanted))
    raise _too_dense(name, wanted, f"{ATTEMPTS} samples that all fell short")


@dataclass(frozen=True, eq=False)
class _Expected:
    """Foretells how many different pairs come out after a time t.

    `counts` [C, B]: the nodes of each class and weight; `weights` [B], of nodes that are alike in logarithm.
    """

    counts: Floats
    weights: Floats

    @staticmethod
    def of(nodes: _Nodes) -> _Expected:
        logs = np.log(nodes.weights)
        width = max(float(np.ptp(logs)), 1e-9) / WEIGHT_BINS
        number = np.minimum(((logs - logs.min()) / width).astype(np.int64), WEIGHT_BINS - 1)
        counts = np.zeros((nodes.classes, WEIGHT_BINS))
        np.add.at(counts, (nodes.labels, number), 1.0)
        used = counts.any(0)
        means = np.bincount(number, nodes.weights, minlength=WEIGHT_BINS)[used] / counts.sum(0)[used]
        return _Expected(counts[:, used], means)

    @property
    def room(self) -> tuple[int, int]:
        """All pairs there can be, inside classes and between them."""
        members = self.counts.sum(1)
        inside = int((members * (members - 1)).sum()) // 2
        nodes = int(members.sum())
        return inside, nodes * (nodes - 1) // 2 - inside

    def same(self, time: float) -> float:
        """Pairs inside classes."""
        loads = self.counts @ self.weights
        return sum(self._within(row, time / load) for row, load in zip(self.counts, loads, strict=True))

    def cross(self, time: float) -> float:
        """Pairs between classes: all, less those inside, at the rate of those between."""
        time /= float(self.counts.sum(0) @ self.weights)
        return self._within(self.counts.sum(0), time) - sum(self._within(row, time) for row in self.counts)

    def _within(self, members: Floats, time: float) -> float:
        """Sum of 1 - exp(-time w_u w_v) over all pairs among `members` [B]."""
        found = -np.expm1(-time * np.outer(self.weights, self.weights))
        return float(members @ found @ members - members @ np.diag(found)) / 2


def _times(wanted: tuple[int, int], expected: _Expected, name: str, attempt: int) -> tuple[float, float]:
    """t of `generate`, inside classes and between them, after which a little more than is `wanted` is expected."""
    times = [0.0, 0.0]
    for kind, find in enumerate((expected.same, expected.cross)):
        want, room = wanted[kind], expected.room[kind]
        if not want:
            continue
        # Six standard deviations, and what the bins of weights may be wrong by.
        surplus = min((6 * math.sqrt(want) + 0.002 * want + 10) * 2**attempt, (room - want) / 2)
        if surplus <= 0:
            raise _too_dense(name, wanted, f"room for {expected.room[0]} and {expected.room[1]}")
        times[kind] = _solved(find, want + surplus)
        if math.isinf(times[kind]):
            raise _too_dense(name, wanted, f"more than {DRAWS_A_PAIR} draws a pair")
    return times[0], times[1]


def _solved(expected: Callable[[float], float], goal: float) -> float:
    """The time after which `goal` different pairs are expected, by bisection; infinite if that takes too many draws."""
    instant = 1e-15  # so short that no draw repeats another
    low = instant * goal / expected(instant)
    high = low * DRAWS_A_PAIR
    if expected(high) < goal:
        return math.inf
    while high > low * (1 + 1e-6):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if expected(middle) < goal else (low, middle)
    return high


def _too_dense(name: str, wanted: tuple[int, int], got: str) -> GraphError:
    return GraphError(
        f"pairs of {name!r} (got {got} for {wanted[0]} inside classes and {wanted[1]} between them), expected "
        "a graph sparse enough to sample; do ask for fewer pairs, less skew, or another homophily"
    )


def _drawn(nodes: _Nodes, times: tuple[float, float], seed: int, attempt: int) -> Iterator[Ints]:
    """Different pairs, block after block of first nodes: 2 (u N + v) + [one class], u < v, rising all through."""
    reach, class_reach = nodes.reach, nodes.class_reach
    after = class_reach[nodes.ends] - class_reach[nodes.place + 1]
    same_rates = times[0] * nodes.weights * after / nodes.class_weights[nodes.labels]
    cross_rates = times[1] * nodes.weights * (reach[-1] - reach[1:]) / reach[-1]
    same = _random(seed, _Stream.SAME_COUNTS, attempt).poisson(same_rates).astype(np.int64)
    cross = _random(seed, _Stream.CROSS_COUNTS, attempt).poisson(cross_rates).astype(np.int64)
    random = _random(seed, _Stream.SAME_TARGETS, attempt), _random(seed, _Stream.CROSS_TARGETS, attempt)
    for block in _blocks(same + cross):
        keys = np.concatenate((_same(nodes, block, same, random[0]), _cross(nodes, block, cross, random[1])))
        keys.sort()
        fresh = np.ones(keys.size, dtype=np.bool_)
        np.not_equal(keys[1:], keys[:-1], out=fresh[1:])
        yield keys[fresh]


def _blocks(draws: Ints) -> Iterator[slice]:
    """Ranges of nodes with about `DRAWS_A_BLOCK` draws each."""
    total = np.cumsum(draws)
    cuts = np.searchsorted(total, np.arange(DRAWS_A_BLOCK, int(total[-1]), DRAWS_A_BLOCK))
    for start, stop in pairwise(np.unique(np.concatenate(([0], cuts, [draws.size])))):
        yield slice(int(start), int(stop))


def _same(nodes: _Nodes, block: slice, draws: Ints, random: np.random.RandomState) -> Ints:
    """Keys of pairs of the nodes in `block` with later nodes of their class, a node of weight w as likely as w."""
    source = np.repeat(np.arange(block.start, block.stop), draws[block])
    first, end = nodes.place[source] + 1, nodes.ends[source]
    place = _inverted(nodes.class_reach, first, end, random)
    return (source * nodes.labels.size + nodes.by_class[place]) * 2 + 1


def _cross(nodes: _Nodes, block: slice, draws: Ints, random: np.random.RandomState) -> Ints:
    """The same with later nodes of other classes: drawn among all, and those of the class thrown away."""
    source = np.repeat(np.arange(block.start, block.stop), draws[block])
    target = _inverted(nodes.reach, source + 1, np.int64(nodes.labels.size), random)
    other = nodes.labels[source] != nodes.labels[target]
    return (source[other] * nodes.labels.size + target[other]) * 2


def _inverted(reach: Floats, first: Ints, end: Ints | np.int64, random: np.random.RandomState) -> Ints:
    """One place from `first` to before `end` a draw [n]: the inverse of the cumulative weights `reach`."""
    low = reach[first]
    drawn = random.random_sample(low.size)
    drawn *= reach[end] - low
    drawn += low
    # Rounding can carry a draw onto the very end.
    return np.minimum(np.searchsorted(reach, drawn, side="right") - 1, end - 1)


def _choice(random: np.random.RandomState, total: int, count: int) -> Ints:
    """`count` different numbers below `total`, in rising order, without a permutation of all."""
    chosen = np.empty(0, dtype=np.int64)
    while chosen.size < count:
        chosen = np.union1d(chosen, random.randint(total, size=count - chosen.size, dtype=np.int64))
    return chosen


def _kept(blocks: list[Ints], dropped: list[Ints], nodes: int, pairs: int) -> Tensor:
    """Pairs [2, P] of all keys but the `dropped` ones, counted apart inside classes and between; empties `blocks`."""
    found = torch.empty(2, pairs, dtype=torch.long)
    out, filled = found.numpy(), 0
    seen = [0, 0]
    blocks.reverse()
    while blocks:
        keys = blocks.pop()
        kept = np.ones(keys.size, dtype=np.bool_)
        for kind, wanted in enumerate((1, 0)):
            places = np.flatnonzero((keys & 1) == wanted)
            start, stop = np.searchsorted(dropped[kind], (seen[kind], seen[kind] + places.size))
            kept[places[dropped[kind][start:stop] - seen[kind]]] = False
            seen[kind] += places.size
        keys = keys[kept] >> 1
        row, col = out[:, filled : filled + keys.size]
        np.floor_divide(keys, nodes, out=row)
        np.subtract(keys, row * nodes, out=col)
        filled += keys.size
    return found


def _features(spec: SurrogateSpec, labels: Ints, seed: int) -> Tensor:
    means = _random(seed, _Stream.MEANS).standard_normal((spec.classes, spec.features))
    random = _random(seed, _Stream.NOISE)
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
