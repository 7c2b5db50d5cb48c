"""Documents: short lines, links and files that exist, American words of the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("datasets/*.md")))
# Words of our own that the field does not use.
PRIVATE = re.compile(r"\b(by chance|beside chance|rivals?|the clock|in peace|opinions?|voice)\b", re.IGNORECASE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_line_is_longer_than_120_characters(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_and_named_files_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [path.parent / link for link in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", text)]
    files = re.findall(r"`((?:gebt|tests|docs|datasets|benchmarks)/[\w./-]+\.\w+)`", text)
    paths = [*links, *(ROOT / file for file in files)]
    assert [str(one) for one in paths if not one.exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_the_words_are_the_fields(path: Path) -> None:
    assert PRIVATE.findall(path.read_text(encoding="utf-8")) == []


def test_what_makes_a_project_is_there() -> None:
    assert {"README", "CHANGELOG", "CONTRIBUTING", "method", "glossary", "machines"} <= {path.stem for path in PAGES}
    assert (ROOT / "CITATION.cff").read_text(encoding="utf-8").startswith("cff-version: 1.2.0")
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60
