"""Masks: which entries are kept."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Mask(Mapping[str, Tensor]):
    """Named boolean tensors, True = kept; never changed after they are made.

    Args:
        kept: the tensors. Over weights the names are parameter names; over undirected edges there is one tensor named
            "edges".

    Attributes:
        shapes: the shape of every tensor.

    Raises:
        ValueError: for a tensor that is not boolean or for no tensor at all.

    Example:
        >>> mask = Mask({"w": torch.tensor([True, False, False, True])})
        >>> mask, mask.density
        (Mask(1 tensors, 2 of 4 kept), 0.5)
        >>> mask["w"].tolist()
        [True, False, False, True]
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        if not kept:
            raise ValueError("mask (got no tensor), expected at least one named boolean tensor")
        for name, tensor in kept.items():
            if tensor.dtype != torch.bool:
                raise ValueError(f"mask tensor {name!r} (got {tensor.dtype}), expected torch.bool")
        self._tensors: dict[str, Tensor] | None = dict(kept)
        self._words: Tensor | None = None
        self._nan: Tensor | None = None
        self.shapes: Mapping[str, torch.Size] = {name: tensor.shape for name, tensor in kept.items()}

    @staticmethod
    def ones(tensors: Mapping[str, Tensor]) -> Mask:
        """The mask that keeps every entry.

        Args:
            tensors: their names and shapes are taken.

        Returns:
            The mask, on the tensors' devices.
        """
        return Mask({name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()})

    @staticmethod
    def of_words(words: Tensor, shapes: Mapping[str, torch.Size], kept: int) -> Mask:
        """A mask stored as bits; boolean tensors are made of them when one is first asked for.

        Args:
            words: [ceil(n / 64)] int64: all tensors one after the other, laid out as `pack_bits` does, the last bits 0.
            shapes: shape of every tensor.
            kept: number of kept entries.

        Returns:
            The mask.
        """
        mask = Mask.__new__(Mask)
        mask._tensors, mask._words, mask._nan, mask.shapes = None, words, None, shapes
        mask.__dict__["kept"] = kept
        return mask

    @staticmethod
    def of_unread(kept: Mapping[str, Tensor], nan: Tensor | None) -> Mask:
        """A mask on a device whose scores nobody has looked at yet, since to look is to wait for the device.

        Args:
            kept: the tensors.
            nan: whether the scores of each tensor held a NaN, [tensors] boolean; None: none did.

        Returns:
            The mask. Its counts raise `ValueError` where a score was NaN.
        """
        mask = Mask(kept)
        mask._nan = nan
        return mask

    def unread(self) -> Tensor | None:
        """What is on a device yet: the count of every tensor, and for each whether a score was NaN.

        Returns:
            [tensors] or [2 * tensors] int64 on the device of the first tensor; None when it is read, and on the CPU.
        """
        if self._words is not None or "counts" in self.__dict__ or all(tensor.is_cpu for tensor in self.values()):
            return None
        counts = [torch.count_nonzero(tensor) for tensor in self.values()]
        numbers = torch.stack([count.to(counts[0].device) for count in counts])
        return numbers if self._nan is None else torch.cat((numbers, self._nan.to(numbers)))

    def take(self, numbers: Sequence[int]) -> None:
        """Notes what `unread` gave, once it is read.

        Args:
            numbers: the numbers.

        Raises:
            ValueError: naming the first tensor whose scores held a NaN.
        """
        refuse_nan_of(name for name, nan in zip(self, numbers[len(self) :], strict=False) if nan)
        self.__dict__["counts"] = dict(zip(self, numbers, strict=False))

    @property
    def words(self) -> Tensor | None:
        """The bits of a mask made by `of_words`; None for a mask made of boolean tensors."""
        return self._words

    @staticmethod
    def of_state(state: Mapping[str, Mapping[str, Any]]) -> Mask:
        """The mask that `state` packed.

        Args:
            state: what `state` returned.

        Returns:
            The mask.
        """
        return Mask({name: unpack_bits(packed["bits"], tuple(packed["shape"])) for name, packed in state.items()})

    def state(self) -> dict[str, dict[str, Any]]:
        """Packed bits and shape of every tensor, for state dicts.

        Returns:
            {name: {"bits": uint8, "shape": list}}.

        Example:
            >>> mask = Mask({"w": torch.tensor([True, False, True])})
            >>> mask.state()
            {'w': {'bits': tensor([5], dtype=torch.uint8), 'shape': [3]}}
            >>> Mask.of_state(mask.state()) == mask
            True
        """
        return {name: {"bits": pack_bits(kept), "shape": list(kept.shape)} for name, kept in self.items()}

    def __getitem__(self, name: str) -> Tensor:
        if self._tensors is None:
            self._tensors = self._unpacked()
        return self._tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # not by __getitem__, which unpacks

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Mask)
            and self.keys() == other.keys()
            and all(torch.equal(tensor, other[name]) for name, tensor in self.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.kept} of {self.size} kept)"

    @cached_property
    def size(self) -> int:
        """Number of entries n."""
        return sum(shape.numel() for shape in self.shapes.values())

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of kept entries of every tensor.

        Raises:
            ValueError: naming a tensor whose scores held a NaN, where these were on a device (see `of_unread`).
        """
        unread = self.unread()
        if unread is None:
            return {name: int(torch.count_nonzero(tensor)) for name, tensor in self.items()}
        self.take(unread.tolist())
        return self.__dict__["counts"]

    @cached_property
    def kept(self) -> int:
        """Number of kept entries k; raises as `counts`."""
        return sum(self.counts.values())

    @property
    def density(self) -> float:
        """k / n, measured over all tensors together; 1 for an empty mask."""
        return self.kept / self.size if self.size else 1.0

    @property
    def sparsity(self) -> float:
        """1 - density: the measured share pruned."""
        return 1.0 - self.density

    def flat(self) -> Tensor:
        """All entries in one vector, tensors in the order of their names in the mask.

        Returns:
            [n] boolean.
        """
        tensors = list(self.values())
        return tensors[0].flatten() if len(tensors) == 1 else torch.cat([tensor.flatten() for tensor in tensors])

    def at(self, entries: Tensor) -> Tensor:
        """Some entries, without unpacking the others.

        Args:
            entries: their numbers in `flat()`, int64.

        Returns:
            Boolean, of the shape of `entries`.

        Example:
            >>> Mask({"a": torch.tensor([True]), "b": torch.tensor([False, True])}).at(torch.tensor([2, 1]))
            tensor([ True, False])
        """
        if self._words is None:
            return self.flat()[entries]
        return (self._words[entries >> 6] >> (entries & 63) & 1).bool()

    def apply_(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the pruned entries to zero, in place.

        Args:
            tensors: at least those that the mask names; may be on other devices.

        Example:
            >>> w = torch.tensor([1.0, 2.0])
            >>> Mask({"w": torch.tensor([False, True])}).apply_({"w": w})
            >>> w
            tensor([0., 2.])
        """
        with torch.no_grad():
            for name, kept in self.items():
                tensors[name].masked_fill_(~kept.to(tensors[name].device), 0)

    def _unpacked(self) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        assert self._words is not None
        flat = unpack_bits(self._words.view(torch.uint8)[: (sum(sizes) + 7) // 8], (sum(sizes),)).split(sizes)
        return {name: kept.view(shape) for (name, shape), kept in zip(self.shapes.items(), flat, strict=True)}


def joined(masks: Sequence[Mask]) -> Mask:
    """One mask of several over different tensors, read or not.

    Args:
        masks: at least one, on the same device if on any but the CPU.

    Returns:
        The mask.
    """
    kept = {name: tensor for mask in masks for name, tensor in mask.items()}
    nan = [mask._nan for mask in masks if mask._nan is not None]
    return Mask.of_unread(kept, torch.cat(nan) if nan else None)


def read_at_once(masks: Iterable[Mask], numbers: Sequence[Tensor] = ()) -> list[int]:
    """Waits once for a device: for the counts of masks and for further numbers.

    Args:
        masks: any; those that are read, or on the CPU, cost nothing.
        numbers: whole numbers, [] each.

    Returns:
        The further numbers.

    Raises:
        ValueError: naming a tensor whose scores held a NaN.
    """
    unread = [(mask, part) for mask in masks if (part := mask.unread()) is not None]
    parts = [part for _, part in unread] + [number.view(1) for number in numbers]
    read = torch.cat([part.to(parts[0].device) for part in parts]).tolist() if parts else []
    for mask, part in unread:
        mask.take(read[: part.numel()])
        read = read[part.numel() :]
    return read


def refuse_nan_of(names: Iterable[str]) -> None:
    """Refuses scores that are not numbers.

    Args:
        names: of tensors whose scores hold a NaN.

    Raises:
        ValueError: naming the first of them.
    """
    for name in names:
        raise ValueError(f"scores of {name!r} (got NaN), expected numbers; did the training diverge?")


def pack_bits(kept: Tensor) -> Tensor:
    """A boolean tensor as bits: entry i in bit i % 8 of byte i // 8.

    Args:
        kept: boolean, n entries of any shape.

    Returns:
        [ceil(n / 8)] uint8.

    Example:
        >>> packed = pack_bits(torch.tensor([[True, False], [True, True]]))
        >>> packed
        tensor([13], dtype=torch.uint8)
        >>> unpack_bits(packed, (2, 2)).tolist()
        [[True, False], [True, True]]
    """
    flat = kept.flatten()
    padded = torch.zeros((flat.numel() + 7) // 8 * 8, dtype=torch.uint8, device=kept.device)
    padded[: flat.numel()] = flat
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=kept.device)
    return (padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor that `pack_bits` packed.

    Args:
        packed: [ceil(n / 8)] uint8.
        shape: of n entries.

    Returns:
        Boolean, of that shape.

    Raises:
        ValueError: for another length or type.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != ((count + 7) // 8,):
        got = f"{packed.dtype} {tuple(packed.shape)}"
        raise ValueError(f"packed mask (got {got}), expected uint8 ({(count + 7) // 8},) for shape {shape}")
    bits = packed.unsqueeze(1).bitwise_right_shift(torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[:count].bool().view(shape)


def deflated(kept: Tensor) -> Tensor:
    """A mask as bits, compressed: nine pruned of ten is 0.55 bits an entry, a mask of full rows next to nothing.

    Args:
        kept: boolean, any shape.

    Returns:
        A zlib stream, [bytes] uint8, on the CPU.

    Example:
        >>> kept = torch.arange(64) % 8 == 0
        >>> torch.equal(inflated(deflated(kept), (64,)), kept)
        True
    """
    return torch.frombuffer(bytearray(zlib.compress(pack_bits(kept).cpu().numpy().tobytes(), 9)), dtype=torch.uint8)


def inflated(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean tensor that `deflated` packed.

    Args:
        packed: the zlib stream, [bytes] uint8.
        shape: of the tensor.

    Returns:
        Boolean, of that shape.

    Raises:
        ValueError: for bytes of another mask (`zlib.error` for any other bytes).
    """
    length = (math.prod(shape) + 7) // 8
    inflating = zlib.decompressobj()
    # One byte more than there may be, so that a longer stream shows without being unpacked in full.
    content = inflating.decompress(packed.numpy().tobytes(), length + 1)
    if len(content) != length or not inflating.eof:
        raise ValueError(f"mask (got {len(content)} bytes or more), expected {length} for shape {shape}")
    if inflating.unused_data:
        raise ValueError(f"mask (got {len(inflating.unused_data)} bytes after its end), expected none")
    return unpack_bits(torch.frombuffer(bytearray(content), dtype=torch.uint8), shape)
