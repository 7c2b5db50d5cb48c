"""The engine that runs the jobs of a sweep (a protocol), and the one loop that feeds it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from gebt.experiments.sweep.jobs import Cell


@dataclass(frozen=True)
class End:
    """How the work on a cell ended: `fault` "" is well; `died`: not by a fault of the cell's options or data."""

    cell: Cell
    fault: str = ""
    died: bool = False


class Engine(Protocol):
    """Runs `workers` cells at a time; as a context it ends all of its processes with it."""

    workers: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def submit(self, cell: Cell) -> None:
        """Starts the work on a cell; called while fewer than `workers` are at work."""
        ...

    def wait(self) -> End:
        """Returns as soon as the work on a cell has ended."""
        ...


def run_cells(cells: Sequence[Cell], engine: Engine, told: Callable[[End, bool], object]) -> dict[str, str]:
    """Runs all cells; returns why each one that is missing afterwards is, by name.

    A cell whose worker died is tried once more, after all others. `told(end, again)` hears of every end, and whether
    the cell will be tried again.
    """
    waiting, running = deque(cells), 0
    retried, missing = set[str](), dict[str, str]()
    while waiting or running:
        while waiting and running < engine.workers:
            engine.submit(waiting.popleft())
            running += 1
        end = engine.wait()
        running -= 1
        if end.cell.finished:  # whatever became of its worker then
            end = End(end.cell)
        elif not end.fault:
            end = End(end.cell, f"its worker wrote no record into {end.cell.folder}")
        again = end.died and end.cell.name not in retried
        if again:
            retried.add(end.cell.name)
            waiting.append(end.cell)
        elif end.fault:
            missing[end.cell.name] = end.fault
        told(end, again)
    return missing
