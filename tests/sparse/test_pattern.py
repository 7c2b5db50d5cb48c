from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.sparse as sp
import torch
from torch import Tensor

from gebt.sparse import Pattern, SparseMatrix, memory
from gebt.sparse import pattern as patterns
from gebt.sparse.memory import OutOfRoomError
from gebt.sparse.pattern import INT32_LIMIT, Diagonal, index_dtype

Entries = Callable[..., tuple[Tensor, Tensor]]


def of_scipy(matrix: sp.csr_array) -> tuple[list[int], list[int]]:
    matrix.sort_indices()
    return matrix.indptr.tolist(), matrix.indices.tolist()


def test_entries_in_any_order_give_the_csr_of_scipy(size: tuple[int, int, int], entries: Entries) -> None:
    rows, cols, count = size
    row, col = entries(*size)
    values = torch.arange(1.0, count + 1)
    pattern, order = Pattern.from_entries(row, col, (rows, cols))
    expected = sp.csr_array((values.numpy(), (row.numpy(), col.numpy())), shape=(rows, cols))
    assert (pattern.crow.tolist(), pattern.col.tolist()) == of_scipy(expected)
    assert values[order].tolist() == expected.data.tolist()
    assert pattern.nnz == count
    assert pattern.density == count / max(1, rows * cols)
    assert pattern.row.tolist() == sorted(row.tolist())


def test_the_order_of_the_entries_does_not_matter(entries: Entries) -> None:
    row, col = entries(6, 9, 20)
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    one, _ = Pattern.from_entries(row, col, (6, 9))
    two, _ = Pattern.from_entries(row[shuffled], col[shuffled], (6, 9))
    assert torch.equal(one.crow, two.crow)
    assert torch.equal(one.col, two.col)


def test_the_transpose_and_its_permutation_are_those_of_scipy(
    size: tuple[int, int, int], make_pattern: Callable[..., Pattern]
) -> None:
    pattern = make_pattern(*size)
    values = torch.arange(1.0, pattern.nnz + 1)
    turned = sp.csr_array((values, pattern.col, pattern.crow), shape=pattern.shape).T.tocsr()
    assert (pattern.transposed.crow.tolist(), pattern.transposed.col.tolist()) == of_scipy(turned)
    assert values[pattern.permutation.long()].tolist() == turned.data.tolist()
    assert pattern.transposed.shape == pattern.shape[::-1]
    assert pattern.transposed is pattern.transposed


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_keep_is_the_pattern_of_the_kept_entries(
    size: tuple[int, int, int], share: float, make_pattern: Callable[..., Pattern]
) -> None:
    pattern = make_pattern(*size)
    kept = torch.rand(pattern.nnz, generator=torch.Generator().manual_seed(2)) < share
    less = pattern.keep(kept)
    expected = sp.csr_array((torch.ones(pattern.nnz), pattern.col, pattern.crow), shape=pattern.shape)
    expected.data[~kept.numpy()] = 0
    expected.eliminate_zeros()
    assert (less.crow.tolist(), less.col.tolist()) == of_scipy(expected)
    assert (less.crow.dtype, less.col.dtype) == (torch.int32, torch.int32)


def test_indices_are_int32_while_they_fit(make_pattern: Callable[..., Pattern]) -> None:
    pattern = make_pattern(5, 7, 12)
    parts = (pattern.crow, pattern.col, pattern.row, pattern.permutation, pattern.transposed.col)
    assert {part.dtype for part in parts} == {torch.int32}
    assert index_dtype(INT32_LIMIT) == torch.int32
    assert index_dtype(3, INT32_LIMIT + 1) == torch.int64
    assert index_dtype() == torch.int32


def test_positions_beyond_int32_are_kept_exact() -> None:
    far = 2**40
    pattern, _ = Pattern.from_entries(torch.tensor([1, 0]), torch.tensor([5, far]), (2, far + 1))
    assert pattern.col.tolist() == [far, 5]
    assert pattern.col.dtype == torch.int64


@pytest.mark.parametrize(
    ("row", "col", "message"),
    [
        ([0, 2], [0, 1], r"row index \(got 2\), expected 0 to 1"),
        ([0, -1], [0, 1], r"row index \(got -1\), expected 0 to 1"),
        ([0, 1], [3, 1], r"column index \(got 3\), expected 0 to 2"),
        ([0, 1], [-4, 9], r"column index \(got -4\), expected 0 to 2"),
        ([1, 0, 1], [2, 0, 2], r"the same position twice\), expected each at most once; coalesce"),
        ([0], [0, 1, 2], "got"),
    ],
)
def test_entries_that_make_no_pattern_are_refused(row: list[int], col: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern.from_entries(torch.tensor(row), torch.tensor(col), (2, 3))


def test_a_matrix_without_cells_takes_no_entry() -> None:
    with pytest.raises(ValueError, match=r"column index \(got 0\), expected 0 to -1"):
        Pattern.from_entries(torch.tensor([0]), torch.tensor([0]), (2, 0))


def test_a_dense_matrix_round_trips(size: tuple[int, int, int], make_pattern: Callable[..., Pattern]) -> None:
    pattern = make_pattern(*size)
    dense = SparseMatrix(pattern, torch.arange(1.0, pattern.nnz + 1)).to_dense()
    again = SparseMatrix.from_dense(dense)
    assert torch.equal(again.to_dense(), dense)
    assert again.shape == dense.shape
    assert again.pattern.nnz == pattern.nnz
    turned = SparseMatrix(again.pattern.transposed, again.transposed_values)
    assert torch.equal(turned.to_dense(), dense.t())


def test_a_mirrored_pattern_is_its_own_transpose(make_pattern: Callable[..., Pattern]) -> None:
    pattern = make_pattern(3, 3, 9)
    assert pattern.mirrored().transposed is pattern
    assert torch.equal(pattern.permutation.long(), torch.arange(9).view(3, 3).T.flatten())


def test_a_mirrored_pattern_is_gone_with_its_last_owner(make_pattern: Callable[..., Pattern]) -> None:
    """Patterns of batches must not wait for a garbage collection."""
    pattern = make_pattern(3, 3, 9).mirrored()
    assert pattern.transposed.nnz == 9
    gone = weakref.ref(pattern)
    gc.disable()
    try:
        del pattern
        assert gone() is None
    finally:
        gc.enable()


def test_moving_to_a_device_keeps_the_pattern(make_pattern: Callable[..., Pattern]) -> None:
    matrix = SparseMatrix(make_pattern(3, 4, 5), torch.rand(5))
    assert torch.equal(matrix.to("cpu").to_dense(), matrix.to_dense())
    assert matrix.to("meta").pattern.col.device.type == "meta"


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_chosen_columns_are_those_of_the_dense_matrix(
    size: tuple[int, int, int], share: float, make_pattern: Callable[..., Pattern]
) -> None:
    pattern = make_pattern(*size)
    matrix = SparseMatrix(pattern, torch.arange(1.0, pattern.nnz + 1))
    kept = (torch.rand(size[1], generator=torch.Generator().manual_seed(3)) < share).nonzero().squeeze(1)
    less = matrix.columns(kept)
    assert torch.equal(less.to_dense(), matrix.to_dense()[:, kept])
    assert less.shape == (size[0], len(kept))
    assert (less.pattern.crow.dtype, less.pattern.col.dtype) == (torch.int32, torch.int32)
    # A pattern like any other: its entries are in order, and it can be turned.
    again, order = Pattern.from_entries(less.pattern.row, less.pattern.col, less.shape)
    assert torch.equal(order, torch.arange(less.pattern.nnz))
    assert torch.equal(again.crow, less.pattern.crow)
    turned = SparseMatrix(less.pattern.transposed, less.transposed_values)
    assert torch.equal(turned.to_dense(), less.to_dense().t())


def test_wide_indices_stay_wide(make_pattern: Callable[..., Pattern], monkeypatch: pytest.MonkeyPatch) -> None:
    def parts() -> tuple[Tensor, ...]:
        p = make_pattern(5, 7, 12)
        return p.crow, p.col, p.row, p.permutation, p.transposed.col, p.keep(torch.arange(12) % 2 == 0).crow

    narrow = parts()
    monkeypatch.setattr(patterns, "INT32_LIMIT", 4)
    for one, other in zip(narrow, parts(), strict=True):
        assert (one.dtype, other.dtype) == (torch.int32, torch.int64)
        assert torch.equal(one.long(), other)


def test_entries_that_do_not_fit_are_refused_before_anything_is_allocated(
    entries: Callable[..., tuple[Tensor, Tensor]],
    largest_allocation: Callable[[Callable[[], object]], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 32 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    row, col = entries(100, 100, 1000)
    message = r"pattern of 100 x 100 with 1000 entries \(got a need of .* GiB\), expected at most the .* free on cpu"

    def refused() -> None:
        with pytest.raises(OutOfRoomError, match=message):
            Pattern.from_entries(row, col, (100, 100))

    # The check of the positions makes single numbers.
    assert largest_allocation(refused) <= 64
    Pattern.from_entries(row[:500], col[:500], (100, 100))


@pytest.mark.parametrize("wide", [False, True])
def test_patterns_on_the_diagonal_are_one_with_their_transposes(
    make_pattern: Callable[..., Pattern], monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    blocks = [make_pattern(4, 6, 9, seed=1), make_pattern(3, 2, 0), make_pattern(5, 3, 7, seed=2)]
    blocks.append(blocks[0])
    if wide:
        monkeypatch.setattr(patterns, "INT32_LIMIT", 4)
    whole = Diagonal.of(blocks)
    expected = sp.block_diag([sp.csr_array(SparseMatrix(b, torch.ones(b.nnz)).to_dense().numpy()) for b in blocks])
    assert (whole.shape, whole.col.dtype) == ((16, 17), torch.int64 if wide else torch.int32)
    assert (whole.crow.tolist(), whole.col.tolist()) == of_scipy(sp.csr_array(expected))
    rebuilt, order = Pattern.from_entries(whole.col, whole.row, (17, 16))
    assert torch.equal(whole.transposed.crow, rebuilt.crow)
    assert torch.equal(whole.transposed.col, rebuilt.col)
    assert torch.equal(whole.permutation, order.to(whole.col.dtype))
