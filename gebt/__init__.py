"""gebt: sparse graph + model tickets, found early, trained alone, and measured in seconds.

The pruning core is imported here and needs torch alone; the rooms that need more are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gebt._version import __version__ as __version__
from gebt.prune import EarlyBird as EarlyBird
from gebt.prune import Mask as Mask
from gebt.prune import distance as distance
from gebt.prune import hold as hold
from gebt.prune import magnitude as magnitude
from gebt.prune import select as select

if TYPE_CHECKING:  # so that type checkers know the rooms that __getattr__ loads
    from gebt import data as data
    from gebt import graph as graph
    from gebt import models as models
    from gebt import recipes as recipes
    from gebt import scores as scores
    from gebt import sparse as sparse
    from gebt.measure import cost as cost
    from gebt.prune.gem_miner import gem_miner as gem_miner
    from gebt.prune.imp import lottery as lottery
    from gebt.prune.slim.slim import slim as slim
    from gebt.pyg import ApplyTicket as ApplyTicket
    from gebt.pyg import find_ticket as find_ticket
    from gebt.pyg import train_ticket as train_ticket
    from gebt.ticket import Ticket as Ticket

_NAMES = {
    "ApplyTicket": "gebt.pyg",
    "Ticket": "gebt.ticket",
    "find_ticket": "gebt.pyg",
    "gem_miner": "gebt.prune.gem_miner",
    "lottery": "gebt.prune.imp",
    "slim": "gebt.prune.slim.slim",
    "train_ticket": "gebt.pyg",
}
_LATER = ("cost", "data", "graph", "models", "recipes", "scores", "sparse")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _LATER:
        return importlib.import_module(f"gebt.{name}")
    raise AttributeError(f"module 'gebt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if not name.startswith("_")), *_LATER, *_NAMES])
