"""Imports point down: cli, report -> comparison -> experiment -> recipes -> ... -> prune, and files under all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gebt

ROOT = Path(gebt.__file__).parent
LEVELS = (
    ("__main__",),
    ("cli",),
    ("run_commands", "image_runs", "sweep"),
    ("report",),
    ("batched_run",),
    ("bench", "comparison", "callbacks"),
    ("experiment", "rivals", "anymodel"),
    ("config", "record"),
    ("combinations",),
    ("recipes",),
    ("train", "models", "data"),
    ("ticket", "cost", "energy", "graph"),
    ("sparse",),
    ("scores",),
    ("prune",),
    ("files", "compiled", "voice", "flags"),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
MODULES = sorted(ROOT.rglob("*.py"))


def dotted(path: Path) -> str:
    """gebt/prune/mask.py -> gebt.prune.mask; gebt/prune/__init__.py -> gebt.prune."""
    parts = ("gebt", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str) -> Iterator[str]:
    """Every module of gebt that the source imports, wherever the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "gebt")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here"
            if (node.module or "").split(".")[0] == "gebt":
                # `from gebt.recipes import search` imports a module too, `from gebt.prune import Mask` only a name.
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import_module" in ast.dump(node.func):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and "gebt" in str(arg.value))


def violations(importer: str, source: str) -> list[str]:
    """What the module of that dotted name may not import."""
    room = importer.split(".")[1]
    found = []
    for target in imports_of(source):
        parts = target.split(".")
        if parts[1:2] == ["__version__"]:
            continue
        other = parts[1] if len(parts) > 1 else "gebt"
        sibling_recipe = (
            room == other == "recipes" and importer != "gebt.recipes" and parts[2] != importer.split(".")[2]
        )
        if other not in LEVEL or LEVEL[other] < LEVEL[room] or sibling_recipe:
            found.append(f"{importer} imports {target}")
    return found


def test_every_room_has_its_place_in_the_order() -> None:
    rooms = {dotted(path).split(".")[1] for path in MODULES if path != ROOT / "__init__.py"}
    assert rooms <= LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_down(path: Path) -> None:
    if path != ROOT / "__init__.py":
        assert violations(dotted(path), path.read_text()) == []


def room_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for importer, source in sources.items():
        room = importer.split(".")[1]
        graph.setdefault(room, set()).update(t.split(".")[1] for t in imports_of(source) if len(t.split(".")) > 1)
        graph[room].discard(room)
    return graph


def test_no_rooms_import_each_other_in_a_circle() -> None:
    sources = {dotted(path): path.read_text() for path in MODULES if path != ROOT / "__init__.py"}
    TopologicalSorter(room_graph(sources)).prepare()
    circle = {"gebt.ticket": "import gebt.measure.cost", "gebt.measure.cost": "from gebt.ticket import Ticket"}
    with pytest.raises(CycleError):
        TopologicalSorter(room_graph(circle)).prepare()


def test_the_package_itself_loads_the_pruning_core_alone() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = set(imports_of("\n".join(ast.unparse(node) for node in at_import)))
    assert {name.split(".")[1] for name in names} == {"prune"}


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("gebt.prune.mask", "from gebt.sparse.pattern import Pattern"),
        ("gebt.prune.mask", "def f():\n    import gebt.graph.edges"),
        ("gebt.sparse.ops", "if TYPE_CHECKING:\n    from gebt.graph import Edges"),
        ("gebt.sparse.ops", "importlib.import_module('gebt.data')"),
        ("gebt.graph.edges", "from gebt import models"),
        ("gebt.graph.edges", "import gebt"),
        ("gebt._files", "from gebt.prune import Mask"),
        ("gebt.ticket", "from gebt.recipes.search import joint"),
        ("gebt.recipes.retrain", "from gebt.recipes.search import joint"),
        ("gebt.recipes.retrain", "from gebt.recipes import search"),
        ("gebt.recipes.retrain", "from gebt.unheard_of import x"),
    ],
)
def test_an_import_that_points_up_is_caught(importer: str, source: str) -> None:
    assert len(violations(importer, source)) == 1


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("gebt.prune.mask", "import torch\nfrom gebtools import x"),
        ("gebt.recipes", "from gebt.recipes import search"),
        ("gebt.prune.detector", "from gebt.prune.mask import Mask"),
        ("gebt.ticket", "from gebt.graph.graph import Graph"),
        ("gebt.cli.main", "from gebt import __version__, experiment"),
    ],
)
def test_an_import_that_points_down_passes(importer: str, source: str) -> None:
    assert violations(importer, source) == []


def test_no_file_exceeds_400_lines() -> None:
    assert {dotted(p): n for p in MODULES if (n := len(p.read_text().splitlines())) > 400} == {}
