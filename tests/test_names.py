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
# Where the word is the field's own: `fold` of a cross-validation, `plan` of what `gebt.slim` would cut, ...
FINE = {
    "gebt.prune.slim.slim": {"plan"},
    "gebt.data.graph_folds": {"fold"},
}
BRITISH = ("isation", "alise", "marise", "neighbour", "colour", "labelled", "favour", "behaviour")


def public_names(tree: ast.Module) -> Iterator[str]:
    """Functions, classes, methods, parameters and fields that users see."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name
            if isinstance(node, ast.FunctionDef):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                yield from (one.arg for one in arguments if not one.arg.startswith("_"))
            else:
                yield from (
                    m.target.id for m in node.body if isinstance(m, ast.AnnAssign) and isinstance(m.target, ast.Name)
                )


def modules() -> dict[str, Path]:
    paths = {path: ".".join(("gebt", *path.relative_to(ROOT).with_suffix("").parts)) for path in ROOT.rglob("*.py")}
    return {name: path for path, name in sorted(paths.items())}


@pytest.mark.parametrize("module", modules())
def test_no_word_of_our_own_is_left(module: str) -> None:
    names = {*public_names(ast.parse(modules()[module].read_text())), *module.split(".")}
    assert (names & GONE) - FINE.get(module, set()) == set()
    assert [name for name in names if any(part in name.lower() for part in BRITISH)] == []


def test_what_the_package_lists_is_there_and_nothing_else_is_listed() -> None:
    assert sorted(gebt.__all__) == dir(gebt)
    assert all(getattr(gebt, name) is not None for name in gebt.__all__)
