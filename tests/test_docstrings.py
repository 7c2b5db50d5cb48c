"""Public docstrings say what a function does, with Args, Returns and Raises, and many have an example that is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gebt

ROOT = Path(gebt.__file__).parent
# Where every public function, method and class is documented in full.
FULL = ("prune", "graph", "models", "recipes", "pyg.py", "ticket", "scores.py")
MODULES = [
    path for part in FULL for path in ([ROOT / part] if part.endswith(".py") else sorted((ROOT / part).rglob("*.py")))
]
EXAMPLES = 60

Definition = ast.FunctionDef | ast.ClassDef


def is_public(name: str) -> bool:
    return not name.startswith("_")


def definitions(body: list[ast.stmt], outer: str = "") -> Iterator[tuple[str, Definition]]:
    """Every public function, class, and method of a public class, by dotted name."""
    for node in body:
        if isinstance(node, Definition) and is_public(node.name):
            yield outer + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{outer}{node.name}.")


def parameters_of(node: Definition) -> list[str]:
    """Names to be found under Args (of a class: of its constructor, or its fields under Attributes)."""
    if isinstance(node, ast.ClassDef):
        made = [member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == "__init__"]
        fields = [m.target.id for m in node.body if isinstance(m, ast.AnnAssign) and isinstance(m.target, ast.Name)]
        is_dataclass = any("dataclass" in ast.unparse(one) for one in node.decorator_list)
        is_tuple = any(ast.unparse(base) == "NamedTuple" for base in node.bases)
        if is_dataclass or is_tuple:
            return [name for name in fields if is_public(name)]
        return parameters_of(made[0]) if made else []
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if is_public(name) and name not in ("self", "cls")]


def decorators_of(node: Definition) -> set[str]:
    return {ast.unparse(one).split("(")[0].split(".")[-1] for one in node.decorator_list}


def faults(node: Definition) -> list[str]:
    """What the docstring of a definition lacks."""
    text = ast.get_docstring(node)
    if not text:
        return ["no docstring"]
    first = text.splitlines()[0]
    lacks = [] if first.rstrip().endswith((".", ":", "?")) else ["a first line that is a sentence"]
    lacks += [
        f"parameter {name!r} under Args or Attributes"
        for name in parameters_of(node)
        if not re.search(rf"^\s+\**{re.escape(name)}(,| and |:| \()", text, re.MULTILINE)
    ]
    if isinstance(node, ast.ClassDef):
        return lacks
    returns = ast.unparse(node.returns) if node.returns is not None else "None"
    if returns not in ("None", "NoReturn") and not decorators_of(node) & {"property", "cached_property"}:
        lacks += [] if re.search(r"^(Returns|Yields):", text, re.MULTILINE) else ["Returns"]
    raises = any(isinstance(one, ast.Raise) and one.exc is not None for one in ast.walk(node))
    if raises and not re.search(r"^Raises:", text, re.MULTILINE):
        lacks.append("Raises")
    return lacks


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_public_definitions_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is for"
    assert {name: lacks for name, node in definitions(tree.body) if (lacks := faults(node))} == {}


def test_many_docstrings_have_an_example() -> None:
    examples = [
        name
        for path in sorted(ROOT.rglob("*.py"))
        for name, node in definitions(ast.parse(path.read_text()).body)
        if ">>> " in (ast.get_docstring(node) or "")
    ]
    assert len(examples) >= EXAMPLES


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(x: int) -> int:\n    return x", ["no docstring"]),
        (
            'def f(x: int) -> int:\n    """Doubles."""\n    raise ValueError("x")',
            ["parameter 'x' under Args or Attributes", "Returns", "Raises"],
        ),
        ('def f(x: int) -> None:\n    """Prints.\n\n    Args:\n        x: a number.\n    """', []),
        ('@dataclass\nclass C:\n    """A pair."""\n    a: int', ["parameter 'a' under Args or Attributes"]),
    ],
)
def test_what_a_docstring_lacks_is_said(source: str, expected: list[str]) -> None:
    node = ast.parse(source).body[0]
    assert isinstance(node, Definition)
    assert faults(node) == expected
