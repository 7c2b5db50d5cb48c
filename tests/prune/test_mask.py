from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gebt.prune import Mask
from gebt.prune.mask import pack_bits, unpack_bits


def bits(*kept: int) -> torch.Tensor:
    return torch.tensor(kept, dtype=torch.bool)


def test_counts_cover_all_tensors_together() -> None:
    mask = Mask({"a": bits(1, 0, 0, 1), "b": torch.ones(2, 3, dtype=torch.bool)})
    assert (mask.size, mask.kept) == (10, 8)
    assert (mask.density, mask.sparsity) == (0.8, pytest.approx(0.2))
    assert repr(mask) == "Mask(2 tensors, 8 of 10 kept)"


def test_a_mask_of_no_entries_is_dense() -> None:
    assert Mask({"a": bits()}).density == 1.0


def test_a_mask_reads_as_a_mapping_in_its_own_order() -> None:
    mask = Mask({"b": bits(1, 0), "a": bits(0)})
    assert list(mask) == ["b", "a"]
    assert len(mask) == 2
    assert mask.flat().tolist() == [True, False, False]


def test_the_mapping_given_can_change_without_changing_the_mask() -> None:
    given_tensors = {"a": bits(1, 0)}
    mask = Mask(given_tensors)
    given_tensors["b"] = bits(1)
    del given_tensors["a"]
    assert mask == Mask({"a": bits(1, 0)})


def test_ones_keeps_every_entry_of_any_dtype() -> None:
    mask = Mask.ones({"w": torch.zeros(2, 3), "v": torch.zeros(4, dtype=torch.int8)})
    assert mask.density == 1.0
    assert mask["w"].shape == (2, 3)


@pytest.mark.parametrize(
    "other",
    [
        Mask({"a": bits(1, 1)}),
        Mask({"b": bits(1, 0)}),
        Mask({"a": bits(1, 0), "b": bits(1)}),
        Mask({"a": bits(1, 0).view(2, 1)}),
        {"a": bits(1, 0)},
    ],
)
def test_masks_differ_by_entry_name_shape_and_kind(other: object) -> None:
    assert Mask({"a": bits(1, 0)}) == Mask({"a": bits(1, 0)})
    assert Mask({"a": bits(1, 0)}) != other


def test_a_mask_has_no_hash() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(Mask({"a": bits(1)}))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_a_tensor_that_is_not_boolean_is_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"mask tensor 'a' \(got {dtype}\), expected torch.bool"):
        Mask({"a": torch.ones(2, dtype=dtype)})


def test_no_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask \(got no tensor\), expected at least one"):
        Mask({})


def test_apply_zeroes_the_pruned_entries_and_nothing_else() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, float("inf"), 3.0]))
    untouched = torch.ones(2)
    Mask({"w": bits(1, 0, 1)}).apply_({"w": weight, "other": untouched})
    assert weight.tolist() == [1.0, 0.0, 3.0]
    assert untouched.tolist() == [1.0, 1.0]


@given(shape=st.lists(st.integers(0, 6), max_size=3).map(tuple), seed=st.integers(0, 99))
def test_packing_round_trips_and_is_little_endian(shape: tuple[int, ...], seed: int) -> None:
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(kept)
    assert packed.numel() == math.ceil(kept.numel() / 8)
    assert packed.tolist() == np.packbits(kept.numpy().ravel(), bitorder="little").tolist()
    assert torch.equal(unpack_bits(packed, shape), kept)


def test_packing_reads_a_transposed_tensor_in_its_logical_order() -> None:
    kept = torch.rand(5, 3, generator=torch.Generator().manual_seed(0)).t() < 0.5
    assert torch.equal(unpack_bits(pack_bits(kept), (3, 5)), kept)


@pytest.mark.parametrize(
    "packed", [torch.zeros(1, dtype=torch.uint8), torch.zeros(2), torch.zeros(3, dtype=torch.uint8)]
)
def test_a_packed_mask_of_another_length_or_type_is_refused(packed: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"packed mask \(got .*\), expected uint8 \(2,\) for shape \(3, 3\)"):
        unpack_bits(packed, (3, 3))


def packed_mask(kept: dict[str, torch.Tensor]) -> Mask:
    """The same mask as words of bits."""
    flat = torch.cat([tensor.flatten() for tensor in kept.values()])
    bits = torch.zeros((flat.numel() + 63) // 64 * 8, dtype=torch.uint8)
    bits[: (flat.numel() + 7) // 8] = pack_bits(flat)
    shapes = {name: tensor.shape for name, tensor in kept.items()}
    return Mask.of_words(bits.view(torch.int64), shapes, int(flat.sum()))


@given(sizes=st.lists(st.integers(0, 90), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_a_mask_of_words_reads_as_one_of_booleans(sizes: list[int], seed: int) -> None:
    flat = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(seed)) < 0.5
    kept = {str(i): part.view(-1, 1) for i, part in enumerate(flat.split(sizes))}
    plain, packed = Mask(kept), packed_mask(kept)
    assert (packed.size, packed.kept, packed.density, repr(packed)) == (
        (plain.size, plain.kept, plain.density, repr(plain))
    )
    assert list(packed) == list(plain)
    assert packed.shapes == plain.shapes
    assert packed == plain
    assert torch.equal(packed.flat(), flat)
    entries = torch.randint(max(1, sum(sizes)), (20 if sum(sizes) else 0,))
    assert torch.equal(packed.at(entries), flat[entries])
    assert torch.equal(plain.at(entries), flat[entries])


def test_a_mask_of_words_is_unpacked_once_and_only_when_read(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = packed_mask({"a": bits(1, 0, 1), "b": bits(1)})
    unpacked: list[int] = []
    monkeypatch.setattr("gebt.prune.mask.unpack_bits", lambda *a: unpacked.append(1) or unpack_bits(*a))
    assert (len(packed), packed.size, packed.kept, packed.at(torch.tensor([1, 2])).tolist()) == (2, 4, 3, [False, True])
    assert ("a" in packed, "c" in packed, list(packed.keys())) == (True, False, ["a", "b"])
    assert unpacked == []
    assert packed["a"] is packed["a"]
    assert packed["b"].tolist() == [True]
    assert unpacked == [1]
