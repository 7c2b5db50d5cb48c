from __future__ import annotations

import subprocess
import sys

import pytest

import gebt

FRESH = """
import random, sys
state = random.getstate()
import gebt, gebt.prune
heavy = ("torch_geometric", "matplotlib", "scipy", "sklearn", "safetensors", "cyclopts", "lightning", "transformers")
print([name for name in heavy if name in sys.modules])
light = ("gebt.prune", "gebt._version")
print(sorted(name for name in sys.modules if name.startswith("gebt.") and not name.startswith(light)))
import torch
print(random.getstate() == state, torch.initial_seed() == torch.default_generator.initial_seed())
print(gebt.Ticket.__name__, gebt.sparse.__name__, "gebt.graph" in sys.modules)
import gebt.callbacks.core
print([name for name in ("lightning", "transformers") if name in sys.modules])
"""


def test_importing_gebt_needs_torch_alone_and_loads_the_rest_when_asked() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[]", "[]", "True True", "Ticket gebt.sparse True", "[]"]


def test_the_core_nouns_are_there_by_name() -> None:
    nouns = ("EarlyBird", "Mask", "Ticket", "enforce_mask", "load_graph", "magnitude", "make_mask", "mask_distance")
    rooms = ("data", "graph", "models", "recipes", "sparse")
    assert {*nouns, *rooms} <= set(dir(gebt))
    assert all(callable(getattr(gebt, noun)) for noun in nouns)
    assert all(getattr(gebt, room).__name__ == f"gebt.{room}" for room in rooms)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'gebt' has no attribute 'prune_everything'"):
        gebt.prune_everything  # noqa: B018


def test_the_version_reads_as_one() -> None:
    assert gebt.__version__.count(".") == 2
