"""Drawing: the same selection epoch after epoch, in one pass over the values.

From epoch to epoch the score at which pruning ends hardly moves. So a draw guesses a narrow bracket around it, and one
pass keeps what lies above, counts what lies below and collects the few entries inside. If the counts prove that the
threshold is inside, ranking those few completes the mask; if not, histograms of all scores say where it is. Either
way the mask equals that of `make_mask`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from gebt.prune.device_selection import kept_by_order, tie_order
from gebt.prune.mask import Mask
from gebt.prune.passes import LOWER, Passes, Span, threads_for, usable
from gebt.prune.selection import EntryScope, keep_highest, make_mask, pruned_count, refuse_nan, refuse_nan_or_flag
from gebt.prune.tie_breaking import ALL, TieBreaker

INFINITY = 0x7F800000
FIRST_HALF = 1 << 14
FEW = 64


class Drawing:
    """Draws masks of the same tensors again and again: `make_mask` on |values| * weight, and as exact.

    A tensor may lose every entry: see `check_no_layer_empty`.

    Args:
        tensors: their names and shapes are taken; n entries together.
        ratio: as in `make_mask`.
        scope: as in `make_mask`.
        tie_break: settles ties; default: `TieBreaker(0)`.
        weight: [n] >= 0, finite, multiplies the entries of all tensors, one after the other.

    Raises:
        ValueError: for a ratio outside [0, 1) or another weight.

    Example:
        >>> drawing = Drawing({"w": torch.zeros(4)}, ratio=0.5)
        >>> drawing.draw({"w": torch.tensor([3.0, -1.0, 2.0, -4.0])})["w"]
        tensor([ True, False, False,  True])
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        ratio: float,
        scope: EntryScope = "global",
        tie_break: TieBreaker | None = None,
        weight: Tensor | None = None,
    ) -> None:
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._size = sum(shape.numel() for shape in self._shapes.values())
        self._ratio, self._scope, self._prune = ratio, scope, pruned_count(self._size, ratio)
        self._tie_break, self._bracket = tie_break or TieBreaker(0), Bracket(self._size)
        self._weight = None if weight is None else self._checked(weight.detach())
        self._all_kept: Mask | None = None
        self._passes: Passes | None = None
        self._orders: list[Tensor] = []

    def _checked(self, weight: Tensor) -> Tensor:
        if weight.shape != (self._size,):
            raise ValueError(f"weight (got shape {tuple(weight.shape)}), expected ({self._size},)")
        if not bool(((weight >= 0) & weight.isfinite()).all()):
            raise ValueError("weight (got a negative number, infinity or NaN), expected finite numbers >= 0")
        return weight.float().contiguous()

    def draw(self, tensors: Mapping[str, Tensor]) -> Mask:
        """The mask of the present values. It does not wait for a device: see `Mask.of_unread`.

        Args:
            tensors: the values by name.

        Returns:
            The mask.

        Raises:
            ValueError: naming a tensor that holds a NaN (on a device not before counts of the mask are read), and for
                other tensors than the drawing was made for.
        """
        if not self._prune:
            nan = refuse_nan_or_flag(tensors)
            self._all_kept = self._all_kept or Mask.ones(tensors)
            return self._all_kept if nan is None else Mask.of_unread(self._all_kept, nan)
        if tensors.keys() != self._shapes.keys():
            raise ValueError(f"tensors (got {sorted(tensors)}), expected {sorted(self._shapes)}")
        values = [tensors[name].detach().flatten() for name in self._shapes]
        flat = values[0].contiguous() if len(values) == 1 else torch.cat(values)
        if flat.numel() != self._size:
            raise ValueError(f"tensors (got {flat.numel()} entries), expected {self._size} as the drawing was made for")
        if not flat.is_cpu:
            return self._on_device(flat)
        if flat.dtype != torch.float32 or (self._scope == "layer" and len(values) > 1):
            return self._selected(flat)
        return self._by_kernels(flat) if usable(flat) else self._by_torch(flat)

    def _scores(self, flat: Tensor) -> Tensor:
        return flat.abs() if self._weight is None else flat.abs().mul_(self._weight)

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _selected(self, flat: Tensor) -> Mask:
        scores = self._named(self._scores(flat))
        return make_mask(scores, ratio=self._ratio, scope=self._scope, tie_break=self._tie_break, allow_empty=True)

    def _on_device(self, flat: Tensor) -> Mask:
        """Of the same scores as elsewhere, each tensor by itself or all together, in orders of ties made once."""
        scores = self._scores(flat)
        named = self._named(scores)
        sizes = [score.numel() for score in named.values()] if self._scope == "layer" else [self._size]
        if not self._orders:
            numbers = torch.arange(self._size, device=flat.device)
            self._orders = [tie_order(self._tie_break.of(entries)) for entries in numbers.split(sizes)]
        runs = zip(scores.split(sizes), sizes, self._orders, strict=True)
        kept = [kept_by_order(run, pruned_count(size, self._ratio), order)[0] for run, size, order in runs]
        return Mask.of_unread(self._named(torch.cat(kept)), refuse_nan_or_flag(named))

    def _by_torch(self, flat: Tensor) -> Mask:
        score = self._scores(flat)
        refuse_nan(self._named(score))
        if self._bracket.known:
            low, high = (_float(key) for key in self._bracket.guess())
            kept = score > high
            entries = ((score >= low) ^ kept).nonzero().squeeze(1)
            prune = self._prune - (self._size - int(torch.count_nonzero(kept)) - entries.numel())
            if 0 < prune <= entries.numel():
                kept[entries], threshold = keep_highest(
                    score[entries], prune, lambda tied: self._tie_break.of(entries[tied])
                )
                self._bracket.learn(_key(float(threshold)), entries.numel())
                return Mask(self._named(kept))
        kept, threshold = keep_highest(score, self._prune, self._tie_break.of)
        self._bracket.learn(_key(float(threshold)))
        return Mask(self._named(kept))

    def _by_kernels(self, flat: Tensor) -> Mask:
        threads = threads_for(self._size)
        if self._passes is None or self._passes.threads != threads:
            self._passes = Passes(self._size, self._weight, self._tie_break.start, threads)
        passes = self._passes.over(flat)
        for span, guessed in self._spans(passes):
            above, inside = passes.scan(span)
            if passes.nan:
                refuse_nan(self._named(self._scores(flat)))
            prune = self._prune - (self._size - above - inside)
            if passes.complete and 0 < prune <= inside:
                self._bracket.learn(passes.settle(prune), inside if guessed else None)
                return Mask.of_words(passes.words, self._shapes, self._size - self._prune)
        return self._selected(flat)

    def _spans(self, passes: Passes) -> Iterator[tuple[Span, bool]]:
        if self._bracket.known:
            yield Span(*self._bracket.guess()), True
        upper, before, there = passes.bin_of(self._prune, -1)
        if there <= passes.room:
            yield Span(upper << 16, upper << 16 | LOWER), False
        prune = self._prune - before
        lower, before, tied = passes.bin_of(prune, upper)
        key, prune = upper << 16 | lower, prune - before
        # Ranks of ties are evenly spread: the one at which pruned ones end is a quantile, give or take some deviations.
        for deviations in (8, 64):
            share, spread = prune / tied, deviations * (1 + math.sqrt(prune * (tied - prune) / tied)) / tied
            yield Span(key, key, _cut(share - spread), _cut(share + spread)), False


class Bracket:
    """Where the threshold is expected: a span of the integers that the bits of non-negative floats are.

    It goes on as it went from the last draw but one to the last, give or take a few times the error of that guess. It
    is widened while next to nothing is inside, since a miss costs more, and narrowed when ranking what is would cost.

    Args:
        size: number of entries.
    """

    def __init__(self, size: int) -> None:
        self.known = False
        self._few, self._many = FEW + size // 8192, FEW + size // 1024
        self._last = self._drift = self._error = 0
        self._half = FIRST_HALF

    def guess(self) -> tuple[int, int]:
        """Where the next threshold is expected.

        Returns:
            Both ends of the span.
        """
        center = self._last + self._drift
        return min(max(center - self._half, 0), INFINITY), min(max(center + self._half, 0), INFINITY)

    def learn(self, key: int, inside: int | None = None) -> None:
        """Takes the threshold of a draw.

        Args:
            key: its bits.
            inside: how many entries were inside the guess; None when the guess missed it.
        """
        if self.known:
            self._error = max(abs(key - self._last - self._drift), self._error * 3 // 4)
            self._drift = key - self._last
            if inside is not None and inside < self._few:
                self._half *= 2
            elif inside is not None and inside > self._many:
                self._half //= 2
            self._half = min(max(self._half, 4 * self._error), INFINITY)
        self._last, self.known = key, True


def _cut(share: float) -> int:
    return min(max(int(share * (ALL + 1)), 0), ALL)


def _key(number: float) -> int:
    return int(struct.unpack("<i", struct.pack("<f", number))[0])


def _float(key: int) -> float:
    return float(struct.unpack("<f", struct.pack("<i", key))[0])
