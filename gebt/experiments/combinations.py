"""Which options of a run go together: combinations that do not are refused before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from gebt.sparse.backends import AUTO, find
from gebt.sparse.precision import check_precision


class Chosen(Protocol):
    """The options of a run that are checked here (`gebt.experiments.options.RunOptions`)."""

    @property
    def task(self) -> str | None: ...
    @property
    def backend(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
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


def check_machine(options: Chosen) -> None:
    """Refuses what this machine cannot do: a device that is not here, an engine, a precision.

    Args:
        options: of the run.

    Raises:
        ValueError: naming the option.
    """
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device (got 'cuda', but torch sees no CUDA device), expected 'cpu' here")
    check_precision(options.precision, options.device)
    if options.backend == AUTO:
        return
    engine = find(options.backend)
    # On the CPU 16 bits are multiplied as float32, by any engine (`sparse.ops.mixed_spmm`).
    bf16 = options.precision == "bf16" and options.device == "cuda"
    if bf16 and not engine.supports(torch.device(options.device), torch.bfloat16):
        raise ValueError(
            f"--backend (got {options.backend!r} with --precision bf16), expected one that multiplies bfloat16: "
            "torch-csr, triton or auto"
        )


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
