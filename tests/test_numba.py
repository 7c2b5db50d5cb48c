"""Kernels on torch's threads: who runs them, what they may be given, where they are kept."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from torch import Tensor

from gebt import _numba
from gebt.sparse import Pattern, spmm
from gebt.sparse.backends import using

needs_kernels = pytest.mark.skipif(not _numba.available(), reason=str(_numba.missing()))


@pytest.fixture
def _asked_anew() -> Iterator[None]:
    _numba.missing.cache_clear()
    yield
    _numba.missing.cache_clear()


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def counting() -> Any:
    """A kernel that says of every thread how many there are."""
    from numba import carray, types

    from gebt.sparse.backends.kernels import callback, pointer, thread, threads

    @callback
    def count(p: Any) -> None:
        carray(pointer(p[0]), p[1], types.int64)[thread()] += threads()

    return count


@pytest.mark.usefixtures("_asked_anew")
def test_without_numba_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebt._numba.find_spec", lambda _: None)
    assert _numba.missing() == "numba is not installed; pip install 'gebt[compiled]'"
    assert not _numba.available()


@pytest.mark.usefixtures("_asked_anew")
def test_without_the_threads_of_torch_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gebt._numba.find_spec", lambda _: object())
    monkeypatch.setattr("gebt._numba._openmp", lambda: None)
    assert _numba.missing() == "torch here has no GNU OpenMP, on whose threads the kernels run; use another backend"


def test_an_openmp_that_torch_has_not_loaded_is_not_loaded_for_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    class Absent(ctypes.CDLL):
        def __init__(self, name: str, mode: int = 0) -> None:
            modes.append(mode)
            # No process has loaded it, though there is one.
            super().__init__("libanl.so.1", mode=mode)

    monkeypatch.setattr("ctypes.CDLL", Absent)
    assert _numba._openmp.__wrapped__() is None
    assert modes == [os.RTLD_NOLOAD]


@needs_kernels
@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_kernel_runs_once_on_every_thread_that_torch_may_use(count: int) -> None:
    torch.set_num_threads(count)
    found = torch.zeros(6, dtype=torch.int64)
    _numba.run(counting(), found, 6)
    assert found.tolist() == [count] * count + [0] * (6 - count)


@needs_kernels
@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (torch.zeros(4, 6, dtype=torch.int64).t(), r"strides \(1, 6\) on cpu"),
        (torch.zeros(12, dtype=torch.int64)[::2], r"strides \(2,\) on cpu"),
        (torch.zeros(6, dtype=torch.int64, device="meta"), r"strides \(1,\) on meta"),
    ],
    ids=["transposed", "strided", "elsewhere"],
)
def test_a_tensor_that_is_no_array_of_this_machine_is_refused(tensor: Tensor, got: str) -> None:
    with pytest.raises(ValueError, match=rf"tensor for a kernel \(got {got}\), expected a contiguous one on the CPU"):
        _numba.run(counting(), tensor, 6)
    assert tensor.device.type == "meta" or not tensor.any()


@needs_kernels
@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("count", [1, 2])
def test_two_python_threads_may_run_kernels_at_once(count: int) -> None:
    torch.set_num_threads(count)
    position = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:2000]
    pattern, _ = Pattern.from_entries(position // 50, position % 50, (60, 50))

    def work(number: int) -> Tensor:
        torch.set_num_threads(count)  # a number of its own for every Python thread
        values, x = torch.full((2000,), float(number)), torch.ones(50, 33)
        return torch.stack([spmm(pattern, values, x) for _ in range(20)])

    expected = (pattern.crow.diff().float()[:, None] * torch.ones(33)).expand(20, 60, 33)
    with using("compiled"), ThreadPoolExecutor(2) as pool:
        for number, found in enumerate(pool.map(work, range(8))):
            assert torch.equal(found, number * expected)


@needs_kernels
def test_a_second_process_finds_the_kernels_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba import types

    from gebt.sparse.backends.kernels import product

    monkeypatch.setattr("numba.config.CACHE_DIR", str(tmp_path))
    assert product.__wrapped__("sums", types.int32, types.float32).cache_hits == 0
    kept = set(tmp_path.rglob("*.nbc"))
    assert kept
    program = (
        "from numba import types\n"
        "from gebt.sparse.backends.kernels import product\n"
        "print(product('sums', types.int32, types.float32).cache_hits)\n"
    )
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True)
    assert int(done.stdout) == 1
    assert set(tmp_path.rglob("*.nbc")) == kept


@pytest.fixture
def _read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Makes every folder but one read-only for numba, which tries a folder with a temporary file."""

    def only_there(*, dir: str) -> IO[bytes]:
        if not Path(dir).is_relative_to(tmp_path / "writable"):
            raise OSError("read-only file system")
        return temporary_file(dir=dir)

    temporary_file = tempfile.TemporaryFile
    monkeypatch.setattr("tempfile.TemporaryFile", only_there)
    monkeypatch.setattr("numba.config.CACHE_DIR", "")


@needs_kernels
@pytest.mark.usefixtures("_read_only")
def test_kernels_are_kept_in_the_users_folder_where_the_package_is_read_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "writable"))
    counting()
    assert list(tmp_path.rglob("*.nbc"))


@needs_kernels
@pytest.mark.usefixtures("_read_only")
def test_kernels_run_where_they_cannot_be_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not writable"))
    found = torch.zeros(64, dtype=torch.int64)
    _numba.run(counting(), found, 64)
    assert found[0] == torch.get_num_threads()
