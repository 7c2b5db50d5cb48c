"""What commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def print_result(text: str) -> None:
    """Prints a result to standard output."""
    print(text)  # noqa: T201 - the result of a command


def log(line: str) -> None:
    """Prints a line about the progress of a command to standard error."""
    print(line, file=sys.stderr)  # noqa: T201 - no part of the result


def progress_bar(total: int, what: str, unit: str = "epoch") -> tqdm[Any]:
    """A progress bar on standard error.

    Args:
        total: number of units until it is full.
        what: the text before it.
        unit: what is counted.

    Returns:
        The bar, a context.
    """
    # In a log file every refresh is a line.
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, mininterval=interval)


def tick(shown: tqdm[Any], where: str) -> bool:
    """Advances a progress bar by one unit.

    Args:
        shown: the bar.
        where: the text after it.

    Returns:
        False: as a callback after an epoch it never asks to stop.
    """
    shown.set_postfix_str(where, refresh=False)
    shown.update()
    return False
