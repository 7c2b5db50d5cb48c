"""Kernels compiled by numba, where it is installed (extra "compiled"), that run on torch's own threads.

A kernel is a C callback of one argument, an array of int64: sizes, and addresses of tensors. It is run by every thread
of the OpenMP pool that torch itself uses. numba's own pools would be a second set of threads: torch's keep spinning for a
while after each of its operations, and on a machine without idle cores the two then wait for each other's time slices
(measured: 8 ms instead of 0.7 ms for one product; docs/method.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

INSTALL = "pip install 'gebt[compiled]'"


@cache
def missing() -> str | None:
    """Why no kernel can be compiled in this process and what to do about it; None when one can."""
    if find_spec("numba") is None:
        return f"numba is not installed; {INSTALL}"
    if _openmp() is None:
        return "torch here has no GNU OpenMP, on whose threads the kernels run; use another backend"
    return None


def available() -> bool:
    """True when kernels can be compiled."""
    return missing() is None


@cache
def _openmp() -> ctypes.CDLL | None:
    # The name under which torch has already loaded its own copy, so this is that copy.
    try:
        library = ctypes.CDLL("libgomp.so.1")
    except OSError:
        return None
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


@cache
def toolbox() -> Any:
    """What kernels are written with: `callback`, `inlined`, `thread`, `threads`, `array`.

    `callback` makes a function of one int64 pointer `p` a kernel; in it `thread()` and `threads()` number the threads of
    the pool and `array(p[i], shape, dtype)` is the array that starts at address p[i].
    """
    from types import SimpleNamespace

    import numba
    from llvmlite import binding
    from numba import types

    openmp = _openmp()
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        binding.add_symbol(name, ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value)
    return SimpleNamespace(
        callback=numba.cfunc(types.void(types.CPointer(types.int64)), cache=True),
        inlined=numba.njit(nogil=True, cache=True),
        thread=types.ExternalFunction("omp_get_thread_num", types.int32()),
        threads=types.ExternalFunction("omp_get_num_threads", types.int32()),
    )


def run(kernel: Any, *arguments: int | torch.Tensor) -> None:
    """Runs a kernel on torch's threads. Tensors are passed by address: they must be contiguous and stay alive."""
    numbers = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments]
    packed = (ctypes.c_int64 * len(numbers))(*numbers)
    _openmp().GOMP_parallel(kernel.address, packed, torch.get_num_threads(), 0)  # type: ignore[union-attr]
