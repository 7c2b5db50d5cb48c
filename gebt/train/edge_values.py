"""Trainable values of pairs that fill a machine's memory, or more: in files, or spread over processes.

Adam holds four numbers for a pair. Whatever is done to all of them is done run by run, so that nothing else grows with
the graph but the bits of a mask.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from gebt.graph.edges import EDGES
from gebt.prune.mask import Mask, pack_bits
from gebt.prune.selection import pruned_count
from gebt.prune.selection_in_parts import Part, find_cut
from gebt.prune.tie_breaking import TieBreaker
from gebt.train.consistency import check_same_on_all_ranks, digest
from gebt.train.shards import Route, Shards

# Runs that stay in a core's cache: twice as fast as those of 2^22.
RUN = 1 << 18
# Arrays are filled up to whole vectors of the processor, of which single numbers may be rounded otherwise.
WHOLE = 64
NAMES = ("value", "gradient", "mean", "square")
Weight = Tensor | Callable[[Tensor], Tensor]


class EdgeValueStore:
    """The value a [P] of every pair, `initial` at first, trained by Adam from gradients that come in parts.

    `read` the values of a batch's pairs, `add_gradient` of its loss, and `step` when the epoch's gradient is complete;
    `draw` gives the mask. `l1` adds l1 * sum |a| to the loss. The four arrays (value, gradient, Adam's two moments)
    lie in memory or, with `folder`, in files there, which have no name and are gone with the process; of those no more
    than a run and the pages last read stay resident.
    `shards`: this process holds its own pairs alone. Every process then makes the same calls in the same order, be it
    with no ids, and results equal those of one process that adds the gradients in the order of ranks.
    Steps equal those of `torch.optim.Adam(fused=True)` on one tensor bit for bit, but for its last P mod 16 entries
    (8 of float64), which torch may round otherwise in the last place.
    Raises `ValueError` for another type than float32 or float64, shards of another number of pairs, runs that are no
    multiple of 64, and processes that differ in owners or settings; `OSError` where the folder has no room.
    """

    def __init__(
        self,
        count: int,
        *,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        l1: float = 0.0,
        initial: float = 1.0,
        dtype: torch.dtype = torch.float32,
        folder: Path | None = None,
        shards: Shards | None = None,
        run: int = RUN,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"type of the values (got {dtype}), expected torch.float32 or torch.float64")
        if shards is not None and shards.owner.numel() != count:
            raise ValueError(f"shards (got {shards.owner.numel()} pairs), expected {count}")
        if run < WHOLE or run % WHOLE:
            raise ValueError(f"run (got {run}), expected a multiple of {WHOLE}")
        self.count, self.steps, self._run = count, 0, run
        self._shards = None if shards is None or shards.world == 1 else shards
        self._own = count if self._shards is None else self._shards.own.numel()
        self._learning_rate, self._betas, self._eps, self._l1 = learning_rate, betas, eps, l1
        self._place = (0, 1) if self._shards is None else (self._shards.rank, self._shards.world)
        if self._shards is not None:
            settings = (count, learning_rate, *betas, eps, l1, initial, str(dtype))
            check_same_on_all_ranks("owners of pairs", digest(self._shards.owner), self._shards.group)
            check_same_on_all_ranks("settings of pair values", digest(settings), self._shards.group)
        self._arrays = {name: MappedArray(self._own, dtype, folder) for name in NAMES}
        for begin, end in self._runs():
            self._arrays["value"].tensor[begin:end] = initial
            self._drop(begin, end)

    def read(self, ids: Tensor) -> Tensor:
        """The values [n] of these pairs [n], on their device; collective.

        Raises `ValueError` for a pair there is not.
        """
        value, numbers = self._arrays["value"].tensor, self._checked(ids)
        found = value[numbers] if self._shards is None else Route(self._shards, numbers).back(value)
        return found.to(ids.device)

    def add_gradient(self, ids: Tensor, gradient: Tensor) -> None:
        """Adds to the gradients of these pairs [n], which must differ; collective, lower ranks first.

        Raises `ValueError` for a pair there is not, and for a gradient [n] of another length or type.
        """
        whole, numbers = self._arrays["gradient"].tensor, self._checked(ids)
        if gradient.shape != ids.shape or gradient.dtype != whole.dtype:
            got = f"{gradient.dtype} {tuple(gradient.shape)}"
            raise ValueError(f"gradient (got {got}), expected {whole.dtype} {tuple(ids.shape)}")
        gradient = gradient.detach().cpu()
        if self._shards is None:
            whole.index_add_(0, numbers, gradient)
            return
        for local, part in Route(self._shards, numbers).arrived(gradient):
            whole.index_add_(0, local, part)

    def release(self) -> None:
        """Lets go of the pages that reads and gradients have touched, where the arrays lie in files."""
        self._drop(0, self._own)

    def step(self, weight: float = 1.0) -> None:
        """One step of Adam for all pairs from `weight` times the gradient there is, which then is zero."""
        for begin, end in self._runs():
            # To the end of the array: the last run with what fills it up.
            runs = {name: array.tensor[begin : begin + self._run] for name, array in self._arrays.items()}
            value, gradient, mean, square = ([run] for run in runs.values())
            gradient[0].mul_(weight)
            if self._l1:
                gradient[0].add_(value[0].sign(), alpha=self._l1)
            steps = [torch.tensor(float(self.steps))]
            adam(
                value, gradient, mean, square, [], steps,
                lr=self._learning_rate, beta1=self._betas[0], beta2=self._betas[1], eps=self._eps,
                fused=True, amsgrad=False, weight_decay=0.0, maximize=False,
            )  # fmt: skip
            gradient[0].zero_()
            self._drop(begin, end)
        self.steps += 1

    def draw(self, ratio: float, tie_break: TieBreaker, weight: Weight | None = None) -> Mask:
        """The mask of all pairs, named "edges": what `make_mask` keeps of |a| * weight; the same in every process.

        `weight`: [P], or a function that gives the weights of pairs by their numbers [n]. Collective.
        Raises `ValueError` for a ratio outside [0, 1) and a score that is NaN.
        """

        def parts() -> Iterator[Part]:
            for begin, end in self._runs():
                score = self._arrays["value"].tensor[begin:end].abs()
                yield score if weight is None else score.mul_(self._weights(weight, begin, end)), self._ids(begin, end)
                self._arrays["value"].drop(begin, end)

        prune = pruned_count(self.count, ratio)
        cut = find_cut(parts, prune, tie_break, None if self._shards is None else self._shards.total)
        words = torch.zeros((self.count + 63) // 64, dtype=torch.int64)
        for score, entries in parts():
            kept = cut.keeps(score, entries)
            if isinstance(entries, int):
                packed = pack_bits(kept)
                words.view(torch.uint8)[entries // 8 : entries // 8 + packed.numel()] = packed
            else:
                numbers = entries[kept].long()
                words.index_add_(0, numbers >> 6, torch.ones_like(numbers) << (numbers & 63))
        # Every bit is set by one process, so that the sum has them all.
        words = words if self._shards is None else self._shards.total(words)
        return Mask.of_words(words, {EDGES: torch.Size([self.count])}, self.count - prune)

    def state_dict(self) -> dict[str, Any]:
        """What is to be saved before the next call: the arrays themselves, of this process's own pairs; no copies."""
        arrays = {name: array.tensor[: self._own] for name, array in self._arrays.items()}
        return {"steps": self.steps, "pairs": self.count, "process": self._place, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken, bit for bit; arrays may be mapped (`torch.load(mmap=True)`).

        Raises `ValueError` for the state of other pairs, another process or another type.
        """
        mine = self._arrays["value"].tensor
        if tuple(state["process"]) != self._place:
            raise ValueError(f"process of the state (got {state['process']}), expected {self._place} (rank, processes)")
        for name in NAMES:
            got, expected = (state["pairs"], *_looks(state[name])), (self.count, mine.dtype, (self._own,))
            if got != expected:
                raise ValueError(f"state of {name!r} (got {got}), expected {expected}")
        self.steps = state["steps"]
        for begin, end in self._runs():
            for name, array in self._arrays.items():
                array.tensor[begin:end] = state[name][begin:end]
            self._drop(begin, end)

    def _runs(self) -> Iterator[tuple[int, int]]:
        """First entry of each run and the one after it; one run at least, as a draw wants."""
        return ((begin, min(begin + self._run, self._own)) for begin in range(0, max(1, self._own), self._run))

    def _ids(self, begin: int, end: int) -> Tensor | int:
        return begin if self._shards is None else self._shards.own[begin:end]

    def _weights(self, weight: Weight, begin: int, end: int) -> Tensor:
        ids = self._ids(begin, end)
        if isinstance(weight, Tensor):
            found = weight[begin:end] if isinstance(ids, int) else weight[ids]
        else:
            found = weight(torch.arange(begin, end) if isinstance(ids, int) else ids.long())
        return found.detach().to(self._arrays["value"].tensor)

    def _drop(self, begin: int, end: int) -> None:
        for array in self._arrays.values():
            array.drop(begin, end)

    def _checked(self, ids: Tensor) -> Tensor:
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < self.count):
            got = f"{int(ids.min())} to {int(ids.max())}"
            raise ValueError(f"numbers of pairs (got {got}), expected 0 to {self.count - 1}")
        return ids.cpu()


class MappedArray:
    """`tensor` [n] of zeros, filled up to whole vectors: in memory, or in a file without a name in `folder`."""

    def __init__(self, size: int, kind: torch.dtype, folder: Path | None) -> None:
        size = size // WHOLE * WHOLE + WHOLE
        self._map: mmap.mmap | None = None
        if folder is None:
            self.tensor = torch.zeros(size, dtype=kind)
            return
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            # Room is taken now: a full disk later would end the process by a signal.
            os.posix_fallocate(file.fileno(), 0, size * kind.itemsize)
            self._map = mmap.mmap(file.fileno(), size * kind.itemsize)
        self.tensor = torch.frombuffer(self._map, dtype=kind)

    def drop(self, begin: int, end: int) -> None:
        """Lets the pages of these entries go from memory; they are in the file."""
        if self._map is not None:
            first = begin * self.tensor.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, first, max(1, end * self.tensor.itemsize - first))


def _looks(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)
