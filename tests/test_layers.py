"""Imports point down, without a circle, over at most eleven floors; function bodies and type hints count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gebt

ROOT = Path(gebt.__file__).parent
LEVELS = (
    "__main__", "cli", "experiments", "pyg callbacks", "recipes", "train", "models", "data ticket", "graph",
    "sparse scores", "prune", "measure _files _numba _version",
)  # fmt: skip
LEVEL = {package: number for number, packages in enumerate(LEVELS) for package in packages.split()}
FLOORS, MODULES_AT_THE_TOP, LINES = 11, 8, 400


def dotted(path: Path) -> str:
    """gebt/prune/mask.py -> gebt.prune.mask; gebt/prune/__init__.py -> gebt.prune."""
    parts = ("gebt", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {dotted(path): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
SOURCES = {name: source for name, source in FILES.items() if name != "gebt"}


def imports_of(source: str) -> Iterator[str]:
    """Every module of gebt that the source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here"
            # `from gebt.recipes import search` imports a module too, `from gebt.prune import Mask` only a name.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else str(node.module) for name in names]
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            names = [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
        yield from (name for name in names if name.split(".")[0] == "gebt")


def package(module: str) -> str:
    """gebt.prune.mask -> prune."""
    return f"{module}.gebt".split(".")[1]


def violations(importer: str, source: str) -> list[str]:
    """What the module of that dotted name may not import."""
    upward = []
    for target in imports_of(source):
        above = LEVEL.get(package(target), -1) < LEVEL[package(importer)]
        sibling = package(importer) == package(target) == "recipes" and importer not in (target, "gebt.recipes")
        # What recipes share, or what one is too long without, is in a private module.
        private = target.rsplit(".", 1)[-1].startswith("_")
        if above or (sibling and not private):
            upward.append(f"{importer} imports {target}")
    return upward


def floors(graph: dict[str, set[str]]) -> int:
    """Modules or packages on the longest chain of imports; raises `CycleError` where imports form a circle."""
    height: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        height[name] = 1 + max((height[below] for below in graph.get(name, ())), default=0)
    return max(height.values())


def of_packages(sources: dict[str, str]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for importer, source in sources.items():
        below = {package(target) for target in imports_of(source)} - {package(importer)}
        graph.setdefault(package(importer), set()).update(below)
    return graph


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module: str) -> None:
    assert violations(module, SOURCES[module]) == []


def test_there_is_no_circle_and_there_are_few_floors() -> None:
    floors({name: set(imports_of(source)) - {name} for name, source in SOURCES.items()})
    assert floors(of_packages(SOURCES)) <= FLOORS
    with pytest.raises(CycleError):
        floors(of_packages({"gebt.ticket": "import gebt.cost", "gebt.cost": "from gebt.ticket import Ticket"}))


def test_the_top_is_small_and_so_is_every_file() -> None:
    assert len(list(ROOT.glob("*.py"))) <= MODULES_AT_THE_TOP
    assert {name: n for name, source in FILES.items() if (n := len(source.splitlines())) > LINES} == {}


def test_the_package_itself_loads_the_pruning_core_alone() -> None:
    statements = [node for node in ast.parse(FILES["gebt"]).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {package(name) for name in imports_of("\n".join(map(ast.unparse, statements)))} == {"prune", "_version"}


@pytest.mark.parametrize(
    ("importer", "source", "count"),
    [
        ("gebt.prune.mask", "from gebt.sparse.pattern import Pattern", 1),
        ("gebt.prune.mask", "def f():\n    import gebt.graph.edges", 1),
        ("gebt.sparse.ops", "if TYPE_CHECKING:\n    from gebt.graph import Edges", 1),
        ("gebt.sparse.ops", "importlib.import_module('gebt.data')", 1),
        ("gebt.graph.edges", "from gebt import models", 1),
        ("gebt.graph.edges", "import gebt", 1),
        ("gebt._files", "from gebt.prune import Mask", 1),
        ("gebt.recipes.retrain", "from gebt.recipes import search", 1),
        ("gebt.recipes.retrain", "from gebt.unheard_of import x", 1),
        ("gebt.prune.mask", "import torch\nfrom gebtools import x", 0),
        ("gebt.recipes", "from gebt.recipes import search", 0),
        ("gebt.recipes.search", "from gebt.recipes._search import DrawObserver", 0),
        ("gebt.ticket", "from gebt.graph.graph import Graph", 0),
    ],
)
def test_an_import_that_points_up_is_caught(importer: str, source: str, count: int) -> None:
    assert len(violations(importer, source)) == count
