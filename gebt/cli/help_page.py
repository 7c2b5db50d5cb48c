"""How help is laid out: a paragraph for every option, and a line for every value that it may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cyclopts.help import ColumnSpec, DefaultFormatter, HelpEntry, NameRenderer
from cyclopts.help.specs import get_default_command_columns
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.text import Text

# Of the width of a page: the most that names of options take.
_NAMES = 0.31
_INDENT = 2


def lines_of(text: str, values: Sequence[str] = ()) -> list[str]:
    """The lines of a help text: its paragraph first, then one for every value.

    Args:
        text: what a docstring says of an option, wrapped at any place.
        values: what the option may be; a line "VALUE: ..." of the text explains it.

    Returns:
        The lines, unwrapped.

    Example:
        >>> lines_of("What ranks the\\nedges.\\nmagnitude: |a|,\\n  the value.", ["magnitude", "learned"])
        ['What ranks the edges.', 'magnitude: |a|, the value.']
    """
    lines = [""]
    for line in text.splitlines():
        if line.startswith(tuple(f"{value}: " for value in values)):
            lines.append(line)
        else:
            lines[-1] = f"{lines[-1]} {line.strip()}".strip()
    return lines


class _Lines:
    """Lines that are wrapped each by itself; those of values are indented."""

    def __init__(self, first: Text, others: Sequence[Text]) -> None:
        self.first, self.others = first, others

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.first.wrap(console, options.max_width)
        for line in self.others:
            for number, part in enumerate(line.wrap(console, options.max_width - 2 * _INDENT)):
                part.pad_left(_INDENT if number == 0 else 2 * _INDENT)
                yield part

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(line.cell_len for line in (self.first, *self.others))
        return Measurement(min(20, options.max_width), min(longest + 2 * _INDENT, options.max_width))


class _Names(NameRenderer):
    """The names of an option and what it takes, also where it may be given by its position."""

    def __call__(self, entry: HelpEntry) -> RenderableType:
        return super().__call__(entry.copy(positional_label=None) if entry.all_options else entry)


def _description(entry: HelpEntry) -> _Lines:
    choices = entry.choices or ()
    first, *others = lines_of(getattr(entry.description, "primary_renderable", Text()).plain, choices)
    notes = []
    if len(others) < len(choices):
        notes.append(f"[choices: {', '.join(choices)}]")
    if entry.default is not None:
        notes.append(f"[default: {entry.default}]")
    if entry.required:
        notes.append("[required]")
    text = Text.assemble(first, *((f" {note}", "cyclopts.default") for note in notes))
    text.rstrip()
    return _Lines(text, [Text(line) for line in others])


def _columns(console: Console, options: ConsoleOptions, entries: Any) -> tuple[ColumnSpec, ...]:
    if any(not name.startswith("-") for entry in entries for name in entry.positive_names):
        return get_default_command_columns(console, options, entries)
    width = math.ceil(_NAMES * console.width)
    return (
        ColumnSpec(renderer=_Names(max_width=width), style="cyclopts.name", max_width=width),
        ColumnSpec(renderer=_description, overflow="fold"),
    )


FORMATTER = DefaultFormatter(column_specs=_columns)
