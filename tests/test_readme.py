"""What the README shows works as shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gebt.cli.main import app
from gebt.data import dataset_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_three_snippets():
    assert len(SNIPPETS) == 3


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["joint", "any network", "own loop"])
def test_snippets_run_as_they_stand(snippet, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore:`torch.jit:DeprecationWarning", "-c", snippet],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_python_twin_has_at_most_eight_lines():
    assert len([line for line in SNIPPETS[0].splitlines() if line.strip()]) <= 8


def test_every_command_and_option_it_names_exists():
    commands = re.findall(r"^(?:\$ )?gebt ([a-z-]+)(.*)$", README, re.MULTILINE)
    assert {name for name, _ in commands} >= {
        "run",
        "search",
        "retrain",
        "inspect",
        "data",
        "early-bird",
        "lottery",
        "init-prune",
    }
    for name, rest in commands:
        arguments = () if name == "data" else app[name].assemble_argument_collection()
        known = {flag for argument in arguments for flag in argument.names}
        used = set(re.findall(r"--[a-z-]+", rest))
        assert used <= known, (name, used - known)
        assert set(re.findall(r"--dataset (\S+)", rest)) <= set(dataset_names())


def test_every_file_it_names_exists():
    for name in re.findall(r"\]\(([^)#]+)\)|`((?:docs|datasets|benchmarks)/[^`]+)`", README):
        path = name[0] or name[1]
        assert (ROOT / path).is_file(), path


def test_every_make_target_it_names_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make ([a-z]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
