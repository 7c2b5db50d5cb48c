"""Public names are the field's words: none of those that were only this library's is left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gebt

ROOT = Path(gebt.__file__).parent
# One word, one thing: what these used to mean has the name of the field now (docs/glossary.md).
GONE = {
    "agreement", "allotment", "anymodel", "arm", "arms", "around", "chance", "cell", "cells", "compact", "drawn",
    "fold", "hold", "holding", "least", "lottery", "many", "mined", "need", "opinions", "parts_together", "pays",
    "per_step", "plan", "rival", "rivals", "road", "rule", "share", "smoothing", "spread", "stored", "surroundings",
    "symmetrise", "told", "together", "trained", "voice", "watched",
}  # fmt: skip
# Where the word is the field's own: the command `gebt lottery`, the module and folder of compacted models, folds of a
# cross-validation and of constants, the plan of what `gebt.slim` would cut.
FINE = {
    "gebt.cli.images": {"lottery"},
    "gebt.models.compact": {"compact"},
    "gebt.data.graph_folds": {"fold"},
    "gebt.prune.slim.slim": {"plan"},
}
BRITISH = ("isation", "alise", "marise", "neighbour", "colour", "labelled", "favour", "behaviour")


def public_names(body: list[ast.stmt]) -> Iterator[str]:
    """Functions, classes, methods, parameters and fields that users see."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
            yield from public_names(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            yield from (node.name, *(one.arg for one in arguments if not one.arg.startswith("_")))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def modules() -> dict[str, Path]:
    paths = {path: ".".join(("gebt", *path.relative_to(ROOT).with_suffix("").parts)) for path in ROOT.rglob("*.py")}
    return {name: path for path, name in sorted(paths.items())}


@pytest.mark.parametrize("module", modules())
def test_no_word_of_our_own_is_left(module: str) -> None:
    names = {*public_names(ast.parse(modules()[module].read_text()).body), *module.split(".")}
    assert (names & GONE) - FINE.get(module, set()) == set()
    assert [name for name in names if any(part in name.lower() for part in BRITISH)] == []


def test_what_the_package_lists_is_there_and_nothing_else_is_listed() -> None:
    assert sorted(gebt.__all__) == dir(gebt)
    assert all(getattr(gebt, name) is not None for name in gebt.__all__)
