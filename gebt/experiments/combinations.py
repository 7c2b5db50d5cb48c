"""Which options of a run go together: combinations that do not are refused before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Chosen(Protocol):
    """The options of a run that are checked here (`gebt.experiments.options.RunOptions`)."""

    @property
    def task(self) -> str | None: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def batching(self) -> str | None: ...
    @property
    def other_methods(self) -> tuple[str, ...]: ...


# Methods that need no predictions of classes.
OF_LINKS = ("ugs", "imp", "one-shot", "dropedge")
# The only values for a set of graphs, and in batches.
OF_GRAPHS = {"model": "gin", "edge_score": "learned", "edge_weights": "one", "label_propagation": 0.0}
IN_BATCHES = {"algorithm": "joint", "weight_structure": "entry"}
# Batches with all pairs among their nodes, as links need.
OF_LINKS_IN_BATCHES = ("random", "cluster", "random-walk")


def check_together(options: Chosen) -> None:
    """Refuses options that do not go together.

    Args:
        options: resolved.

    Raises:
        ValueError: naming the option that does not go with another.
    """
    if options.task == "links" and (unfit := [name for name in options.other_methods if name not in OF_LINKS]):
        raise ValueError(f"--method (got {', '.join(map(repr, unfit))}), expected some of {OF_LINKS} for links")
    if options.task == "graphs":
        _check_only(options, OF_GRAPHS, "for a set of graphs")
        if options.other_methods or options.algorithm == "graph":
            got = (*options.other_methods, options.algorithm)
            raise ValueError(
                f"--method, --algorithm (got {got}), expected 'gebt', 'random', 'dense' and 'joint' or 'weights' for a "
                "set of graphs"
            )
    if options.batching is not None:
        _check_only(options, IN_BATCHES, "with --batching")
        if options.task == "graphs":
            raise ValueError(
                "--batching (got it for a set of graphs), expected none: its training is in batches of graphs"
            )
        if options.task == "links" and options.batching not in OF_LINKS_IN_BATCHES:
            raise ValueError(f"--batching (got {options.batching!r}), expected one of {OF_LINKS_IN_BATCHES} for links")
        if options.other_methods:
            raise ValueError(
                f"--method (got {', '.join(options.other_methods)}), expected 'gebt' alone with --batching"
            )


def _check_only(options: Chosen, only: Mapping[str, object], where: str) -> None:
    for name, value in only.items():
        if getattr(options, name) != value:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} (got {getattr(options, name)!r}), expected {value!r} {where}")
