"""How the Triton kernels share out the work: rows cut into runs, and what one program takes at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gebt.sparse.backends.base import BackendError, Csr

# Entries of a run. A multiple of MOST_ENTRIES, so that no turn of a full run is partly idle; with FEWEST_ENTRIES a turn
# a run takes 24 turns, and the parts of a row of 12,188 entries are added in 4 more.
LONGEST_RUN = 96
# Columns that a program of sums holds; wider rows are shared by several programs.
WIDEST_BLOCK = 256
# A program that also takes dot products needs whole rows: above this width both gradients take two passes.
WIDEST_FUSED = 2048
# Bytes that a warp sums at once, in 32 or 64 bits: 32 registers a thread, eight 128-bit loads of float32.
WARP_BYTES = 4096
MOST_ENTRIES, FEWEST_ENTRIES, MOST_ROWS = 32, 4, 16
# What one load instruction of a thread fetches at most, and the number of parts and columns added up at once.
VECTOR_BYTES, PARTS, PART_COLUMNS = 16, 32, 64
# A copy with padded rows costs a launch and reads and writes every row once: it pays where each is read more often
# than that, and where the product moves so many bytes that the launch does not count.
PADDED_READS, PADDED_BYTES = 4, 1 << 24


class Runs(NamedTuple):
    """Rows of a pattern, those of more than `LONGEST_RUN` entries cut into parts.

    Run k has the entries `begin[k]` to `begin[k + 1]` of row `owner[k]`. It is the whole row where `part[k]` is -1;
    else its sum is part number `part[k]`, and row `cut[i]` is the sum of parts `first[i]` to `first[i + 1]`. When no
    row is cut, runs are rows and `begin` is the pattern's `crow`.
    """

    total: int
    begin: Tensor
    owner: Tensor
    part: Tensor
    parts: int
    cut: Tensor
    first: Tensor


class Tile(NamedTuple):
    """What one program takes at once: `entries` of each of `rows` runs, `columns` of each of their rows of x."""

    rows: int
    entries: int
    columns: int
    warps: int


# Patterns never change, so the runs of a tensor of row offsets are found once, and forgotten with it. None where runs
# are rows: what is kept must not hold the tensor itself.
_runs: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def runs_of(crow: Tensor) -> Runs:
    """The runs of a pattern, found at its first product: that one waits for the device once, later ones never.

    Args:
        crow: where each row begins, [R + 1].

    Returns:
        The runs.

    Raises:
        BackendError: for a new pattern while a CUDA graph is being recorded, which must not wait.
    """
    if crow not in _runs:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise BackendError(
                "runs of a pattern (got a first product while a CUDA graph is recorded), expected one before; "
                "run the step once, then record it"
            )
        _runs[crow] = _cut(crow, LONGEST_RUN)
    return _runs[crow] or Runs(crow.numel() - 1, crow, crow, crow, 0, crow, crow)


def _cut(crow: Tensor, longest: int) -> Runs | None:
    """Runs of at most `longest` entries; None when no row has more."""
    pieces = ((crow[1:] - crow[:-1] + longest - 1) // longest).clamp(min=1)
    several = pieces > 1
    # One wait for all three.
    sizes = torch.stack((pieces.sum(), (pieces * several).sum(), several.sum()))
    count, parts, cut = (int(size) for size in sizes.tolist())
    if not parts:
        return None
    owner = torch.repeat_interleave(pieces, output_size=count)
    numbers = torch.arange(count, device=crow.device)
    number_in_row = numbers - (torch.cumsum(pieces, 0) - pieces)[owner]
    begin = torch.cat((crow[:-1][owner] + number_in_row * longest, crow[-1:]))
    of_cut = several[owner]
    part = torch.where(of_cut, torch.cumsum(of_cut, 0) - 1, -1)
    # `nonzero` would wait once more.
    order = torch.argsort(several, descending=True, stable=True)[:cut]
    first = torch.cat((numbers[:1], torch.cumsum(pieces[order], 0)))
    owner, part, order, first = (index.to(crow.dtype) for index in (owner, part, order, first))
    return Runs(count, begin.to(crow.dtype), owner, part, parts, order, first)


def tile_of(runs: int, entries: int, width: int, dtype: torch.dtype, widest: int) -> Tile:
    """As many entries of a run as runs have on average, then several runs, and one warp unless rows are wide.

    Args:
        runs: number of runs.
        entries: number of entries.
        width: of the rows of x.
        dtype: of x.
        widest: most columns of a program.

    Returns:
        The tile.
    """
    numbers = WARP_BYTES // (8 if dtype == torch.float64 else 4)
    columns = min(widest, power_of_two(width))
    taken = max(FEWEST_ENTRIES, min(MOST_ENTRIES, numbers // columns, power_of_two(entries // runs)))
    rows = max(1, min(MOST_ROWS, numbers // (columns * taken)))
    return Tile(rows, taken, columns, max(1, rows * taken * columns // numbers))


def vector_of(width: int, itemsize: int) -> int:
    """Numbers that one load of a row may fetch when rows of this width follow each other: a power of two."""
    return min(VECTOR_BYTES // itemsize, width & -width)


class Rows(NamedTuple):
    """Where the numbers of dense rows are: `width` of them each; those gathered from are `stride` numbers apart.

    Rows are addressed in units of `own_vector` and, in what is gathered from, of `vector` numbers.
    """

    width: int
    stride: int
    own_vector: int
    vector: int

    @property
    def padded(self) -> bool:
        """Whether gathered rows have something behind their numbers."""
        return self.stride != self.width

    @property
    def units(self) -> tuple[int, int]:
        """Stride and width in these units."""
        return self.stride // self.vector, self.width // self.own_vector


def rows_of(width: int, stride: int, itemsize: int) -> Rows:
    """Rows of `width` numbers that are gathered at `stride`."""
    return Rows(width, stride, vector_of(width, itemsize), vector_of(stride, itemsize))


def stride_of(a: Csr, x: Tensor) -> int:
    """Numbers from one row of x to the next in what the kernel reads: more than the width where padding pays.

    A row whose bytes are no multiple of 16 lets no 128-bit load at its address. Every kernel takes any width in units
    of `vector_of` it, so none is compiled for one width alone; but at an odd width that unit is a single number. Then
    a copy with padded rows is gathered from, if it is read `PADDED_READS` times and moves `PADDED_BYTES`: it costs 2
    of the E / N reads of each row, less than the loads it saves, and no memory that a message tensor would not dwarf.
    """
    width, itemsize = x.shape[-1], x.element_size()
    vector = min(VECTOR_BYTES // itemsize, power_of_two(width))
    stride = -(-width // vector) * vector
    read = a.col.numel() * (x.numel() // x.shape[0])
    pays = width * itemsize >= VECTOR_BYTES // 2 and a.col.numel() >= PADDED_READS * x.shape[0]
    return stride if pays and read * itemsize >= PADDED_BYTES else width


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()
