"""Which options of a run go together: what tasks, and runs in batches, do not do is refused before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Chosen(Protocol):
    """What is read here of the options of a run (`gebt.experiments.options.RunOptions`)."""

    @property
    def task(self) -> str | None: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def batching(self) -> str | None: ...
    @property
    def other_methods(self) -> tuple[str, ...]: ...


# Ways to a ticket that need no opinions on classes.
OF_LINKS = ("ugs", "imp", "one-shot", "dropedge")
# What there is alone for a set of graphs, and in batches.
OF_GRAPHS = {"model": "gin", "edge_score": "learned", "edge_weights": "one", "label_propagation": 0.0}
IN_BATCHES = {"algorithm": "joint", "weight_structure": "entry"}
# Cuts into batches whose pairs are all that there are among their nodes: the links to find.
OF_LINKS_IN_BATCHES = ("random", "cluster", "random-walk")


def check_together(options: Chosen) -> None:
    """Raises `ValueError` naming the option of resolved `options` that does not go with another."""
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
