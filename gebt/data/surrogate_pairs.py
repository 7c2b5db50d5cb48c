"""Sampling of the pairs of a surrogate graph: random graphs with given weights, in blocks of nodes."""

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

from gebt.graph.graph import GraphError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# In memory at once; the size does not change what comes out.
DRAWS_A_BLOCK = 1 << 20
# Nodes of nearly the same weight are counted together where the number of different pairs is predicted.
WEIGHT_BINS = 64
# A graph that needs more draws a pair than this is too dense: most draws would repeat one another.
DRAWS_A_PAIR = 20
ATTEMPTS = 8


class Stream(IntEnum):
    """The kinds of random draws: each has a stream of its own, so that none depends on how many another took."""

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


def stream_random(seed: int, stream: Stream, attempt: int = 0) -> np.random.RandomState:
    """The random numbers of one kind of draw.

    Args:
        seed: of the graph.
        stream: kind of draw.
        attempt: number of the attempt, from 0.

    Returns:
        A generator whose stream numpy promises never to change.
    """
    # RandomState, not Generator: numpy promises that its stream never changes, and fingerprints depend on it.
    return np.random.RandomState((seed, stream, attempt))


@dataclass(frozen=True, eq=False)
class WeightedNodes:
    """Classes and weights of the nodes [N], and the nodes sorted by class.

    Args:
        labels: class of each node [N].
        weights: weight of each node [N].
        classes: C.
    """

    labels: Ints
    weights: Floats
    classes: int

    @cached_property
    def by_class(self) -> Ints:
        """Nodes [N]: the members of a class in a row, in rising order."""
        return np.argsort(self.labels, kind="stable")

    @cached_property
    def place(self) -> Ints:
        """Position of each node in `by_class` [N]."""
        place = np.empty_like(self.by_class)
        place[self.by_class] = np.arange(place.size)
        return place

    @cached_property
    def ends(self) -> Ints:
        """Position in `by_class` after the last node of each node's class [N]."""
        return np.cumsum(np.bincount(self.labels, minlength=self.classes))[self.labels]

    @cached_property
    def reach(self) -> Floats:
        """Cumulative weight of all nodes [N + 1]."""
        return np.append(0.0, np.cumsum(self.weights))

    @cached_property
    def class_reach(self) -> Floats:
        """Cumulative weight in the order of `by_class` [N + 1]."""
        return np.append(0.0, np.cumsum(self.weights[self.by_class]))

    @cached_property
    def class_weights(self) -> Floats:
        """Weight of each class [C]."""
        return np.bincount(self.labels, self.weights, minlength=self.classes).astype(np.float64)


def sample_pairs(nodes: WeightedNodes, wanted: tuple[int, int], seed: int, name: str) -> Tensor:
    """Different pairs of nodes, so many inside classes and so many between them.

    Args:
        nodes: classes and weights.
        wanted: number of pairs inside classes, and between them.
        seed: of the graph.
        name: of the graph, for errors.

    Returns:
        Pairs [2, P] in lexicographic order.

    Raises:
        GraphError: for a graph too dense to sample.
    """
    expected = _Expected.of(nodes)
    for attempt in range(ATTEMPTS):
        times = _times(wanted, expected, name, attempt)
        blocks = list(_drawn(nodes, times, seed, attempt))
        same = sum(int((keys & 1).sum()) for keys in blocks)
        drawn = same, sum(keys.size for keys in blocks) - same
        if drawn[0] >= wanted[0] and drawn[1] >= wanted[1]:
            random = stream_random(seed, Stream.SURPLUS, attempt)
            dropped = [_choice(random, have, have - want) for have, want in zip(drawn, wanted, strict=True)]
            return _without(blocks, dropped, nodes.labels.size, sum(wanted))
    raise _too_dense(name, wanted, f"{ATTEMPTS} samples that all fell short")


@dataclass(frozen=True, eq=False)
class _Expected:
    """Predicts how many different pairs come out after a time t.

    Args:
        counts: nodes of each class and weight bin [C, B].
        weights: mean weight of each bin [B], bins of equal width in the logarithm.
    """

    counts: Floats
    weights: Floats

    @staticmethod
    def of(nodes: WeightedNodes) -> _Expected:
        logs = np.log(nodes.weights)
        width = max(float(np.ptp(logs)), 1e-9) / WEIGHT_BINS
        number = np.minimum(((logs - logs.min()) / width).astype(np.int64), WEIGHT_BINS - 1)
        counts = np.zeros((nodes.classes, WEIGHT_BINS))
        np.add.at(counts, (nodes.labels, number), 1.0)
        used = counts.any(0)
        means = np.bincount(number, nodes.weights, minlength=WEIGHT_BINS)[used] / counts.sum(0)[used]
        return _Expected(counts[:, used], means)

    @property
    def possible(self) -> tuple[int, int]:
        """All possible pairs, inside classes and between them."""
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
        rate = -np.expm1(-time * np.outer(self.weights, self.weights))
        return float(members @ rate @ members - members @ np.diag(rate)) / 2


def _times(wanted: tuple[int, int], expected: _Expected, name: str, attempt: int) -> tuple[float, float]:
    """t of `generate`, inside classes and between them, after which a little more than is `wanted` is expected."""
    times = [0.0, 0.0]
    for kind, find in enumerate((expected.same, expected.cross)):
        want, possible = wanted[kind], expected.possible[kind]
        if not want:
            continue
        # Six standard deviations, and what the bins of weights may be wrong by.
        surplus = min((6 * math.sqrt(want) + 0.002 * want + 10) * 2**attempt, (possible - want) / 2)
        if surplus <= 0:
            raise _too_dense(name, wanted, f"room for {expected.possible[0]} and {expected.possible[1]}")
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


def _drawn(nodes: WeightedNodes, times: tuple[float, float], seed: int, attempt: int) -> Iterator[Ints]:
    """Different pairs, block after block of first nodes: 2 (u N + v) + [one class], u < v, rising all through."""
    reach, class_reach = nodes.reach, nodes.class_reach
    after = class_reach[nodes.ends] - class_reach[nodes.place + 1]
    same_rates = times[0] * nodes.weights * after / nodes.class_weights[nodes.labels]
    cross_rates = times[1] * nodes.weights * (reach[-1] - reach[1:]) / reach[-1]
    same = stream_random(seed, Stream.SAME_COUNTS, attempt).poisson(same_rates).astype(np.int64)
    cross = stream_random(seed, Stream.CROSS_COUNTS, attempt).poisson(cross_rates).astype(np.int64)
    random = stream_random(seed, Stream.SAME_TARGETS, attempt), stream_random(seed, Stream.CROSS_TARGETS, attempt)
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


def _same(nodes: WeightedNodes, block: slice, draws: Ints, random: np.random.RandomState) -> Ints:
    """Keys of pairs of the nodes in `block` with later nodes of their class, a node of weight w as likely as w."""
    source = np.repeat(np.arange(block.start, block.stop), draws[block])
    first, end = nodes.place[source] + 1, nodes.ends[source]
    place = _inverted(nodes.class_reach, first, end, random)
    return (source * nodes.labels.size + nodes.by_class[place]) * 2 + 1


def _cross(nodes: WeightedNodes, block: slice, draws: Ints, random: np.random.RandomState) -> Ints:
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


def _without(blocks: list[Ints], dropped: list[Ints], nodes: int, pairs: int) -> Tensor:
    """Pairs [2, P] of all keys but the `dropped` ones, counted apart inside classes and between; empties `blocks`."""
    result = torch.empty(2, pairs, dtype=torch.long)
    out, filled = result.numpy(), 0
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
    return result
