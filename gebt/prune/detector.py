"""The early-bird detector: fires when the masks drawn epoch after epoch have stopped changing."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gebt.prune.mask import Mask, read_at_once
from gebt.prune.passes import differing, usable

Normalization = Literal["hamming", "exchanged", "relative_to_first"]
Criterion = Literal["sum", "weights", "edges"]
Compare = Literal["previous", "window"]


def mask_distance(a: Mask, b: Mask, normalization: Normalization = "hamming") -> float:
    """Hamming distance h of two masks of n entries, normalized.

    Args:
        a: a mask; k is the number of entries it keeps.
        b: a mask of the same names and shapes.
        normalization: "hamming": h / n, the share of all entries that differ, in [0, 1].
            "exchanged": h / (2 min(k, n - k)), the share of the kept (or, when more than half is kept, of the pruned)
            set that was exchanged. Two masks of equal count span all of [0, 1], so one threshold means the same at
            every prune ratio. 0 when nothing, or everything, is pruned in both.
            "relative_to_first" normalizes a sequence: see `EarlyBird`; of two masks it equals "hamming".

    Returns:
        The distance.

    Raises:
        ValueError: when names or shapes differ.

    Example:
        >>> a = Mask({"w": torch.tensor([True, False, False, False])})
        >>> b = Mask({"w": torch.tensor([False, True, False, False])})
        >>> mask_distance(a, b), mask_distance(a, b, "exchanged")
        (0.5, 1.0)
    """
    return _normalized(_moves({"": a}, [{"": b}])[0][""], a, normalization)


def _normalized(moved: int, mask: Mask, normalization: Normalization) -> float:
    if normalization != "exchanged":
        return moved / mask.size if mask.size else 0.0
    reachable = 2 * min(mask.kept, mask.size - mask.kept)
    return moved / reachable if reachable else float(moved > 0)


def _moves(drawn: Mapping[str, Mask], before: Sequence[Mapping[str, Mask]]) -> list[dict[str, int]]:
    """How many entries of each kind differ from each draw before; waits for a device once, for these and all counts."""
    moved = [{kind: _moved(mask, old[kind]) for kind, mask in drawn.items()} for old in before]
    unread = [number for row in moved for number in row.values() if isinstance(number, Tensor)]
    read = iter(read_at_once([mask for draw in (drawn, *before) for mask in draw.values()], unread))
    return [
        {kind: next(read) if isinstance(number, Tensor) else number for kind, number in row.items()} for row in moved
    ]


def _moved(a: Mask, b: Mask) -> int | Tensor:
    """As a number where it costs no wait, else as [] on the device."""
    if a.words is not None and b.words is not None and _laid_out_alike(a, b) and usable(a.words):
        return differing(a.words, b.words)
    if a.shapes.keys() != b.shapes.keys():
        raise ValueError(f"masks of different tensors (got {sorted(a)} and {sorted(b)}), expected the same names")
    for name, shape in a.shapes.items():
        if shape != b.shapes[name]:
            raise ValueError(f"mask {name!r} (got {tuple(shape)} and {tuple(b.shapes[name])}), expected one shape")
    counts = [torch.count_nonzero(kept ^ b[name]) for name, kept in a.items() if kept is not b[name]]
    if all(count.is_cpu for count in counts):
        return sum(int(count) for count in counts)
    return torch.stack([count.to(counts[0].device) for count in counts]).sum()


def _laid_out_alike(a: Mask, b: Mask) -> bool:
    return a.shapes is b.shapes or list(a.shapes.items()) == list(b.shapes.items())


class EarlyBird:
    """Watches masks drawn once an epoch and fires when the last `window` distances are all under `threshold`.

    `update(mask)` watches one mask, `update(weights, edges)` two: d_w and d_g are their distances.

    Args:
        threshold: the distance that counts as small, above 0.
        window: how many distances in a row must be small, at least 1.
        normalization: as in `mask_distance`; "relative_to_first" divides every distance by the first non-zero
            one of its kind (weights or edges).
        criterion: what must be small: "sum" (d_w + d_g), "weights" (d_w) or "edges" (d_g).
        warmup: the first draws are recorded but do not count, so the earliest possible firing is draw
            warmup + window + 1.
        compare: "previous": distances of draws one after the other, as the papers say. "window": of the newest draw
            to each of the `window` before it, the largest of which must be small, as in EB-Train's code (slow drift
            does not pass).

    Raises:
        ValueError: for an option outside these.

    Source:
        You et al., "Early-Bird Tickets" (ICLR 2020); GEBT (AAAI 2022), Algorithms 1 and 2.

    Example:
        >>> bird = EarlyBird(threshold=0.1, window=2)
        >>> same = Mask({"w": torch.tensor([True, False])})
        >>> [bird.update(same) for _ in range(3)]
        [False, False, True]
    """

    def __init__(
        self,
        threshold: float = 0.1,
        window: int = 3,
        normalization: Normalization = "hamming",
        criterion: Criterion = "sum",
        warmup: int = 0,
        compare: Compare = "previous",
    ) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold (got {threshold}), expected a positive number")
        if window < 1 or warmup < 0:
            raise ValueError(f"window, warmup (got {window}, {warmup}), expected window >= 1 and warmup >= 0")
        if normalization not in get_args(Normalization):
            raise ValueError(f"normalization (got {normalization!r}), expected one of {get_args(Normalization)}")
        if criterion not in get_args(Criterion):
            raise ValueError(f"criterion (got {criterion!r}), expected one of {get_args(Criterion)}")
        if compare not in get_args(Compare):
            raise ValueError(f"compare (got {compare!r}), expected one of {get_args(Compare)}")
        self.threshold, self.window, self.warmup = threshold, window, warmup
        self.normalization, self.criterion, self.compare = normalization, criterion, compare
        self.fired = False
        self.draws = 0
        self.trajectory: list[dict[str, float]] = []
        self._queue: deque[float] = deque(maxlen=window)
        self._before: deque[dict[str, Mask]] = deque(maxlen=1 if compare == "previous" else window)
        self._first: dict[str, float] = {}

    def update(self, mask: Mask, edges: Mask | None = None) -> bool:
        """Takes the masks drawn this epoch.

        Args:
            mask: the mask of the weights, or the only one.
            edges: the mask of the edges, in every draw or in none.

        Returns:
            True from the epoch on at which the search may stop.

        Raises:
            ValueError: for other masks than in the draw before, or none of the kind that `criterion` names.
        """
        drawn = {"weights": mask} if edges is None else {"weights": mask, "edges": edges}
        if self._before and drawn.keys() != self._before[-1].keys():
            expected = sorted(self._before[-1])
            raise ValueError(f"masks drawn (got {sorted(drawn)}), expected {expected} as in the draw before")
        moves = _moves(drawn, self._before)
        self.draws += 1
        if moves:
            moved = [{kind: self._distance(kind, row[kind], drawn[kind]) for kind in drawn} for row in moves]
            now = {kind: max(distances[kind] for distances in moved) for kind in drawn}
            now["criterion"] = max(self._criterion_of(distances) for distances in moved)
            self.trajectory.append(now)
            if self.draws > self.warmup + 1:
                self._note(now["criterion"])
        self._before.append(drawn)
        if len(self._queue) == self.window and max(self._queue) < self.threshold:
            self.fired = True
        return self.fired

    def _note(self, distance: float) -> None:
        if self.compare == "previous":
            self._queue.append(distance)
        elif self.draws > self.warmup + self.window:
            # One number stands for the distances to all draws of the window.
            self._queue.extend([distance] * self.window)

    def _distance(self, kind: str, entries: int, drawn: Mask) -> float:
        moved = _normalized(entries, drawn, self.normalization)
        if self.normalization != "relative_to_first":
            return moved
        if moved > 0:
            self._first.setdefault(kind, moved)
        return moved / self._first.get(kind, 1.0)

    def _criterion_of(self, distances: dict[str, float]) -> float:
        if self.criterion == "sum":
            return sum(distances.values())
        if self.criterion not in distances:
            raise ValueError(f"criterion (got {self.criterion!r}), expected masks of that kind in update()")
        return distances[self.criterion]

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed search needs to go on as if it had never stopped.

        Returns:
            Tensors, numbers and strings, by name.
        """
        before = [{kind: mask.state() for kind, mask in drawn.items()} for drawn in self._before]
        return {
            "fired": self.fired,
            "draws": self.draws,
            "trajectory": [dict(row) for row in self.trajectory],
            "queue": list(self._queue),
            "first": dict(self._first),
            "before": before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Args:
            state: the state, of a detector of the same options.
        """
        self.fired, self.draws = state["fired"], state["draws"]
        self.trajectory = [dict(row) for row in state["trajectory"]]
        self._queue = deque(state["queue"], maxlen=self.window)
        self._first = dict(state["first"])
        draws = [{kind: Mask.of_state(packed) for kind, packed in drawn.items()} for drawn in state["before"]]
        self._before = deque(draws, maxlen=self._before.maxlen)


def pairwise_distances(masks: Tensor) -> Tensor:
    """Share of entries that differ between every two of T draws.

    Args:
        masks: [T, n] boolean, one draw a row.

    Returns:
        [T, T].

    Example:
        >>> pairwise_distances(torch.tensor([[True, False], [False, True], [True, True]])).tolist()
        [[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [0.5, 0.5, 0.0]]
    """
    bits = masks.float()
    kept = bits.sum(1)
    # |a xor b| = |a| + |b| - 2 |a and b|: one matrix product instead of T^2 comparisons.
    return (kept[:, None] + kept[None, :] - 2 * bits @ bits.T) / max(1, masks.shape[1])
