"""Kernels compiled by numba, where it is installed (extra "compiled"), that run on the threads of torch.

A kernel is a C callback of one argument, an array of int64: sizes, and addresses of tensors. It is run by every thread
of the OpenMP pool that torch uses. The pools of numba would be a second set of threads: torch's keep spinning for a
while after each of its operations, and on a machine without idle cores the two then wait for each other's time slices
(measured: 8 ms instead of 0.7 ms for one product; docs/engines.md).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch

_INSTALL = "pip install 'gebt[compiled]'"


@cache
def missing() -> str | None:
    """Why no kernel can be compiled in this process.

    Returns:
        The reason and what to do about it; None when kernels can be compiled.
    """
    if find_spec("numba") is None:
        return f"numba is not installed; {_INSTALL}"
    try:
        import numba  # noqa: F401 - an installed numba can refuse its numpy, its Python or its llvmlite
    except Exception as error:
        return f"numba cannot be imported ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if _openmp() is None:
        return "torch here has no GNU OpenMP, on whose threads the kernels run; use another backend"
    return None


def available() -> bool:
    """Whether kernels can be compiled.

    Returns:
        True when they can.

    Example:
        >>> available() == (missing() is None)
        True
    """
    return missing() is None


@cache
def _openmp() -> ctypes.CDLL | None:
    # Only the copy that torch has loaded: a second one would bring a second pool of threads.
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=getattr(os, "RTLD_NOLOAD", 0))
    except OSError:
        return None
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


@cache
def toolbox() -> Any:
    """What kernels are written with.

    Returns:
        A namespace: `callback` makes a function of one int64 pointer a kernel, `inlined` one that kernels call;
        `thread()` and `threads()` give the number of the thread and of all threads of the pool in both.
    """
    from types import SimpleNamespace

    import numba
    from llvmlite import binding
    from numba import types

    openmp = _openmp()
    for name in ("omp_get_thread_num", "omp_get_num_threads"):
        binding.add_symbol(name, ctypes.cast(getattr(openmp, name), ctypes.c_void_p).value)
    return SimpleNamespace(
        callback=_cached(partial(numba.cfunc, types.void(types.CPointer(types.int64)))),
        inlined=_cached(partial(numba.njit, nogil=True)),
        thread=types.ExternalFunction("omp_get_thread_num", types.int32()),
        threads=types.ExternalFunction("omp_get_num_threads", types.int32()),
    )


def _cached(decorator: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """The decorator with a cache on disk of what it compiles, wherever numba finds a folder for it."""

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return decorator(cache=True)(function)
        except RuntimeError:
            # Neither the package's folder nor the user's cache may be written to: compiled anew in every process.
            return decorator(cache=False)(function)

    return decorate


def run(kernel: Any, *arguments: int | torch.Tensor) -> None:
    """Runs a kernel on torch's threads.

    Args:
        kernel: made by `toolbox().callback`.
        arguments: what it reads from its array; tensors are passed by address and must stay alive meanwhile.

    Raises:
        ValueError: for a tensor that is not contiguous in the memory of the CPU.
    """
    numbers = [_address(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    packed = (ctypes.c_int64 * len(numbers))(*numbers)
    _openmp().GOMP_parallel(kernel.address, packed, torch.get_num_threads(), 0)  # type: ignore[union-attr]


def _address(tensor: torch.Tensor) -> int:
    if not (tensor.is_cpu and tensor.is_contiguous()):
        got = f"strides {tensor.stride()} on {tensor.device}"
        raise ValueError(f"tensor for a kernel (got {got}), expected a contiguous one on the CPU; call .contiguous()")
    return tensor.data_ptr()
