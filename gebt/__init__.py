"""gebt: sparse graph + model tickets, found early, trained alone, and measured in seconds.

The pruning core is imported here and needs torch alone; packages that need more are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gebt._version import __version__ as __version__
from gebt.prune import EarlyBird as EarlyBird
from gebt.prune import Mask as Mask
from gebt.prune import enforce_mask as enforce_mask
from gebt.prune import magnitude as magnitude
from gebt.prune import make_mask as make_mask
from gebt.prune import mask_distance as mask_distance

if TYPE_CHECKING:  # so that type checkers know what __getattr__ loads
    from gebt import data as data
    from gebt import graph as graph
    from gebt import measure as measure
    from gebt import models as models
    from gebt import prune as prune
    from gebt import pyg as pyg
    from gebt import recipes as recipes
    from gebt import scores as scores
    from gebt import sparse as sparse
    from gebt.data.graphs import load_graph as load_graph
    from gebt.prune.gem_miner import gem_miner as gem_miner
    from gebt.prune.imp import iterative_magnitude_pruning as iterative_magnitude_pruning
    from gebt.prune.slim.slim import slim as slim
    from gebt.pyg import ApplyTicket as ApplyTicket
    from gebt.pyg import find_ticket as find_ticket
    from gebt.pyg import retrain as retrain
    from gebt.ticket import Ticket as Ticket

_LATER = {
    "ApplyTicket": "gebt.pyg",
    "Ticket": "gebt.ticket",
    "find_ticket": "gebt.pyg",
    "gem_miner": "gebt.prune.gem_miner",
    "iterative_magnitude_pruning": "gebt.prune.imp",
    "load_graph": "gebt.data.graphs",
    "retrain": "gebt.pyg",
    "slim": "gebt.prune.slim.slim",
}
_PACKAGES = ("data", "graph", "measure", "models", "prune", "pyg", "recipes", "scores", "sparse")

__all__ = [
    "ApplyTicket",
    "EarlyBird",
    "Mask",
    "Ticket",
    "__version__",
    "data",
    "enforce_mask",
    "find_ticket",
    "gem_miner",
    "graph",
    "iterative_magnitude_pruning",
    "load_graph",
    "magnitude",
    "make_mask",
    "mask_distance",
    "measure",
    "models",
    "prune",
    "pyg",
    "recipes",
    "retrain",
    "scores",
    "slim",
    "sparse",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"gebt.{name}")
    raise AttributeError(f"module 'gebt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
