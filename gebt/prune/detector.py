"""The early-bird detector: fires when the masks drawn epoch after epoch have stopped moving."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gebt.prune.mask import Mask
from gebt.prune.passes import differing, usable

Normalization = Literal["hamming", "exchanged", "relative_to_first"]
Criterion = Literal["sum", "weights", "edges"]
Compare = Literal["previous", "window"]


def mask_distance(a: Mask, b: Mask, per: Normalization = "hamming") -> float:
    """Hamming distance h of two masks of n entries, normalized.

    "entry": h / n, the share of all entries that differ, in [0, 1].
    "swap": h / (2 min(k, n - k)), k the kept entries of `a`: the share of the kept (or, when more than half is
    kept, of the pruned) set that was exchanged. Two masks of equal count span all of [0, 1], so one threshold
    means the same at every prune ratio. 0 when nothing, or everything, is pruned in both.
    "first" is a normalization of a sequence: see `EarlyBird`; as a distance of two masks it equals "hamming".
    Raises `ValueError` when names or shapes differ.
    """
    moved = _moved(a, b)
    if per != "exchanged":
        return moved / a.size if a.size else 0.0
    reachable = 2 * min(a.kept, a.size - a.kept)
    return moved / reachable if reachable else float(moved > 0)


def _moved(a: Mask, b: Mask) -> int:
    if a.words is not None and b.words is not None and _laid_out_alike(a, b) and usable(a.words):
        return differing(a.words, b.words)
    if a.shapes.keys() != b.shapes.keys():
        raise ValueError(f"masks of different tensors (got {sorted(a)} and {sorted(b)}), expected the same names")
    for name, shape in a.shapes.items():
        if shape != b.shapes[name]:
            raise ValueError(f"mask {name!r} (got {tuple(shape)} and {tuple(b.shapes[name])}), expected one shape")
    return 0 if a is b else sum(int(torch.count_nonzero(kept ^ b[name])) for name, kept in a.items())


def _laid_out_alike(a: Mask, b: Mask) -> bool:
    return a.shapes is b.shapes or list(a.shapes.items()) == list(b.shapes.items())


class EarlyBird:
    """Watches masks drawn once an epoch and fires when the last `window` distances are all under `threshold`.

    `update(mask)` watches one mask; `update(weights, edges)` watches two, and `criterion` says what must be
    small: "sum" (d_w + d_g), "weights" (d_w) or "edges" (d_g). `normalization` as in `mask_distance`; "relative_to_first" divides
    every distance by the first non-zero one of its kind. The first `warmup` draws are recorded but do not
    count, so the earliest possible firing is draw `warmup + window + 1`. `compare`: distances are those of draws one after
    the other ("previous", as the papers say), or of the newest draw to each of the `window` before it, the largest
    of which is watched ("window", as EB-Train's code has it: slow drift does not pass it).
    Source: You et al., "Early-Bird Tickets" (ICLR 2020) and GEBT (AAAI 2022), Algorithms 1 and 2.

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
        """Takes the masks drawn this epoch; returns True from the epoch on at which the search may stop."""
        drawn = {"weights": mask} if edges is None else {"weights": mask, "edges": edges}
        if self._before and drawn.keys() != self._before[-1].keys():
            expected = sorted(self._before[-1])
            raise ValueError(f"masks drawn (got {sorted(drawn)}), expected {expected} as in the draw before")
        self.draws += 1
        if self._before:
            moved = [{kind: self._normalized(kind, old[kind], drawn[kind]) for kind in drawn} for old in self._before]
            now = {kind: max(own[kind] for own in moved) for kind in drawn}
            now["criterion"] = max(self._watched(own) for own in moved)
            self.trajectory.append(now)
            if self.draws > self.warmup + 1:
                self._note(now["criterion"])
        self._before.append(drawn)
        if len(self._queue) == self.window and max(self._queue) < self.threshold:
            self.fired = True
        return self.fired

    def _note(self, watched: float) -> None:
        if self.compare == "previous":
            self._queue.append(watched)
        elif self.draws > self.warmup + self.window:
            # One number stands for the distances to all draws of the window.
            self._queue.extend([watched] * self.window)

    def _normalized(self, kind: str, before: Mask, after: Mask) -> float:
        moved = mask_distance(after, before, self.normalization)
        if self.normalization != "relative_to_first":
            return moved
        if moved > 0:
            self._first.setdefault(kind, moved)
        return moved / self._first.get(kind, 1.0)

    def _watched(self, now: dict[str, float]) -> float:
        if self.criterion == "sum":
            return sum(now.values())
        if self.criterion not in now:
            raise ValueError(f"criterion (got {self.criterion!r}), expected masks of that kind in update()")
        return now[self.criterion]

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed search needs to go on as if it had never stopped (tensors, numbers, strings)."""
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
        """Restores what `state_dict` returned."""
        self.fired, self.draws = state["fired"], state["draws"]
        self.trajectory = [dict(row) for row in state["trajectory"]]
        self._queue = deque(state["queue"], maxlen=self.window)
        self._first = dict(state["first"])
        draws = [{kind: Mask.of_state(packed) for kind, packed in drawn.items()} for drawn in state["before"]]
        self._before = deque(draws, maxlen=self._before.maxlen)


def pairwise_distances(masks: Tensor) -> Tensor:
    """Share of entries that differ between every two draws, from `masks` [T, n] boolean. Returns [T, T]."""
    bits = masks.float()
    kept = bits.sum(1)
    # |a xor b| = |a| + |b| - 2 |a and b|: one matrix product instead of T^2 comparisons.
    return (kept[:, None] + kept[None, :] - 2 * bits @ bits.T) / max(1, masks.shape[1])
