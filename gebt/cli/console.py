"""How the command speaks: answers on standard output, everything else on standard error."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def print_result(text: str) -> None:
    """Says what was asked for."""
    print(text)  # noqa: T201 - the command's answer


def log(line: str) -> None:
    """Says what happens meanwhile."""
    print(line, file=sys.stderr)  # noqa: T201 - the command's own voice


def progress_bar(total: int, what: str, unit: str = "epoch") -> tqdm[Any]:
    """A progress bar."""
    # In a log file every refresh is a line.
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, mininterval=interval)


def tick(shown: tqdm[Any], where: str) -> bool:
    """One unit more; never asks to stop."""
    shown.set_postfix_str(where, refresh=False)
    shown.update()
    return False
