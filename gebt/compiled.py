"""Kernels compiled at first use and cached on disk: numba, where it is installed (extra "compiled")."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

INSTALL = "pip install 'gebt[compiled]'"


@cache
def available() -> bool:
    """True when numba can be imported."""
    return find_spec("numba") is not None


@cache
def _numba() -> Any:
    import numba

    # OpenMP first: its layer may be entered from several Python threads at once, numba's own may not.
    numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    return numba


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles `function` at its first call, for the types it is called with; `prange` loops run in parallel."""
    return _numba().njit(parallel=True, nogil=True, cache=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compiles a serial helper of kernels."""
    return _numba().njit(nogil=True, cache=True)(function)


def match_threads() -> None:
    """Lets kernels use as many threads as torch does."""
    numba = _numba()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
