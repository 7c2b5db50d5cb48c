"""Help reads like a page: options in groups, and every value that has a name explained in a line of its own."""

from __future__ import annotations

import dataclasses
import re
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from rich.console import Console

from gebt.cli.help_page import lines_of
from gebt.cli.main import app
from gebt.experiments.images.options import ImageOptions
from gebt.experiments.images.runs import AtInit, Levels, Watch
from gebt.experiments.option_groups import GROUPS
from gebt.experiments.options import RunOptions
from gebt.experiments.sweep.jobs import SweepOptions

NAMES = ("Data", "Network", "Search", "Retraining", "Batches", "Run")
WIDTH = 100
HIDDEN_IN_A_SWEEP = {"dataset", "model", "edge_ratio", "weight_ratio"}
COMMANDS = {
    "run": (RunOptions,),
    "search": (RunOptions,),
    "retrain": (RunOptions,),
    "bench": (RunOptions,),
    "sweep": (SweepOptions,),
    "early-bird": (ImageOptions, Watch),
    "lottery": (ImageOptions, Levels),
    "init-prune": (ImageOptions, AtInit),
}


def help_of(*command: str) -> str:
    console = Console(width=WIDTH, force_terminal=False, color_system=None)
    with console.capture() as capture:
        app.help_print(command, console=console)
    return capture.get()


def panels(text: str) -> dict[str, list[str]]:
    """The lines of every panel, without its frame, by its title."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+?) ─", line):
            lines = found.setdefault(title[1], [])
        elif line.startswith("│"):
            lines.append(line[2:-1].rstrip())
    return found


def paragraphs(lines: list[str]) -> dict[str, list[str]]:
    """The lines of every option in a panel, by its name."""
    found: dict[str, list[str]] = {}
    for line in lines:
        if name := re.match(r"--([a-z0-9-]+)", line):
            found[name[1]] = []
        if found:
            found[list(found)[-1]].append(line)
    return found


def flag(name: str) -> str:
    return name.replace("_", "-")


def values_of(hint: Any) -> tuple[str, ...]:
    """The values of a Literal, also where it may be None or is in a tuple."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((values_of(part) for part in get_args(hint) if part is not NoneType and values_of(part)), ())


def options_of(command: str) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for options in COMMANDS[command]:
        own = get_type_hints(options)
        hints |= {field.name: own[field.name] for field in dataclasses.fields(options)}
    hidden = HIDDEN_IN_A_SWEEP if command == "sweep" else set()
    return {name: hint for name, hint in hints.items() if name not in hidden}


@pytest.fixture(scope="module")
def shown() -> dict[str, dict[str, list[str]]]:
    return {command: panels(help_of(command)) for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_one_of_the_six_groups(command: str, shown: dict[str, dict[str, list[str]]]) -> None:
    assert tuple(parameter.group[0].name for parameter in GROUPS) == NAMES
    page = shown[command]
    places = [option for name in NAMES for option in paragraphs(page.get(name, []))]
    assert len(places) == len(set(places))
    assert {flag(name) for name in options_of(command)} <= set(places)
    assert set(page) <= {"Arguments", *NAMES}
    assert [name for name in page if name in NAMES] == [name for name in NAMES if name in page]


def test_a_run_has_all_six(shown: dict[str, dict[str, list[str]]]) -> None:
    assert tuple(shown["run"]) == NAMES


@pytest.mark.parametrize("command", COMMANDS)
def test_every_value_with_a_name_has_a_line_of_its_own(command: str, shown: dict[str, dict[str, list[str]]]) -> None:
    found = {option: lines for name in NAMES for option, lines in paragraphs(shown[command].get(name, [])).items()}
    lacking = {}
    for name, hint in options_of(command).items():
        if name == "models":  # those of --model of `gebt run`
            continue
        starts = [line.strip().removeprefix("--empty-" + flag(name)).strip() for line in found[flag(name)]]
        if lacks := [value for value in values_of(hint) if sum(line.startswith(f"{value}: ") for line in starts) != 1]:
            lacking[name] = lacks
    assert lacking == {}
    assert sum(bool(values_of(hint)) for hint in options_of("run").values()) >= 16


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_text(command: str, shown: dict[str, dict[str, list[str]]]) -> None:
    for name in NAMES:
        for option, lines in paragraphs(shown[command].get(name, [])).items():
            text = re.sub(r"--[a-z0-9-]+|[A-Z]+(\.\.\.)?(?= |$)|\[default.*", "", " ".join(lines), count=3)
            assert re.search(r"[a-z]{2}", text), option


def test_formulas_and_defaults_are_shown(shown: dict[str, dict[str, list[str]]]) -> None:
    lines = paragraphs(shown["run"]["Search"])
    assert "exchanged: d = |m xor m'| / (2 min(k, n - k))." in "\n".join(lines["normalization"])
    assert "magnitude: |a|." in "\n".join(lines["edge-score"])
    assert "[default: 0.2]" in " ".join(lines["edge-ratio"])
    assert "[default: early-bird]" in " ".join(lines["preset"])
    assert "[default: torch-csr]" in " ".join(paragraphs(shown["run"]["Run"])["backend"])
    assert "[default: 0.0001]" in " ".join(paragraphs(shown["early-bird"]["Search"])["scale-l1"])


def test_every_command_is_one_line() -> None:
    lines = panels(help_of())["Commands"]
    names = [name for name in app if not name.startswith("-")]
    assert sorted(line.split()[0] for line in lines if not line.startswith("-")) == sorted(names)
    assert all(line.endswith(".") for line in lines)


def test_lines_of_values_stay_and_others_are_joined() -> None:
    text = "Says what\nis up.\n2:4: two\n  of four.\nother: no value."
    assert lines_of(text, ("2:4", "4:8")) == ["Says what is up.", "2:4: two of four. other: no value."]
    assert lines_of("") == [""]
