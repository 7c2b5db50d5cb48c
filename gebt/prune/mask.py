"""Masks: which entries are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor


class Mask(Mapping[str, Tensor]):
    """Named boolean tensors, True = kept; never changed after they are made.

    Over weights the names are parameter names; over undirected edges there is one tensor named "edges".
    Raises `ValueError` for a tensor that is not boolean or for no tensor at all.
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        if not kept:
            raise ValueError("mask (got no tensor), expected at least one named boolean tensor")
        for name, tensor in kept.items():
            if tensor.dtype != torch.bool:
                raise ValueError(f"mask tensor {name!r} (got {tensor.dtype}), expected torch.bool")
        self._kept = dict(kept)

    @staticmethod
    def ones(tensors: Mapping[str, Tensor]) -> Mask:
        """The mask that keeps every entry of the given tensors."""
        return Mask({name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mask)
            and self.keys() == other.keys()
            and all(torch.equal(tensor, other[name]) for name, tensor in self.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.kept} of {self.size} kept)"

    @property
    def size(self) -> int:
        """Number of entries n."""
        return sum(tensor.numel() for tensor in self.values())

    @cached_property
    def kept(self) -> int:
        """Number of kept entries k."""
        return sum(int(torch.count_nonzero(tensor)) for tensor in self.values())

    @property
    def density(self) -> float:
        """k / n, measured over all tensors together; 1 for an empty mask."""
        return self.kept / self.size if self.size else 1.0

    @property
    def sparsity(self) -> float:
        """1 - density: the measured share removed."""
        return 1.0 - self.density

    def flat(self) -> Tensor:
        """All entries in one [n] boolean vector, tensors in the mask's own order."""
        tensors = list(self.values())
        return tensors[0].flatten() if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])

    def apply_(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the pruned entries of the named tensors to zero, in place."""
        with torch.no_grad():
            for name, kept in self.items():
                tensors[name].masked_fill_(~kept.to(tensors[name].device), 0)


def pack_bits(kept: Tensor) -> Tensor:
    """A boolean tensor as bytes: [ceil(n / 8)] uint8, entry i in bit i % 8 of byte i // 8."""
    flat = kept.flatten()
    padded = torch.zeros((flat.numel() + 7) // 8 * 8, dtype=torch.uint8, device=kept.device)
    padded[: flat.numel()] = flat
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=kept.device)
    return (padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor of the given shape that `pack_bits` packed; raises `ValueError` for a wrong length."""
    count = 1
    for size in shape:
        count *= size
    if packed.dtype != torch.uint8 or packed.shape != ((count + 7) // 8,):
        got = f"{packed.dtype} {tuple(packed.shape)}"
        raise ValueError(f"packed mask (got {got}), expected uint8 ({(count + 7) // 8},) for shape {shape}")
    bits = packed.unsqueeze(1).bitwise_right_shift(torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[:count].bool().view(shape)
