"""Both engines of drawing: compiled passes, and torch alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gebt import _numba
from gebt.prune import passes

ENGINES = ("compiled", "compiled, in parallel", "torch")


@contextmanager
def drawing_by(engine: str) -> Iterator[pytest.MonkeyPatch]:
    """Draws by that engine inside the block; skips the test where numba is missing."""
    if engine != "torch" and not _numba.available():
        pytest.skip("needs numba")
    with pytest.MonkeyPatch.context() as patch:
        if engine == "torch":
            patch.setattr(_numba, "available", lambda: False)
        elif engine == "compiled, in parallel":
            patch.setattr(passes, "PARALLEL_FROM", 0)
        yield patch


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[pytest.MonkeyPatch]:
    """Runs the test once with each engine."""
    with drawing_by(request.param) as patch:
        yield patch
