"""Texts: GLUE's formats against lines written by hand, real files where there are some, broken ones named by line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from gebt.data import text
from gebt.data.text import load_texts, text_table
from gebt.graph.graph import GraphError

REAL = pytest.mark.skipif("GEBT_DATA" not in os.environ, reason="GEBT_DATA is not set")

COLA = 'gj04\t1\t\tThey drank.\ngj04\t0\t*\tThey "drank the pub.\n'
SST = "sentence\tlabel\na charming journey . \t1\nno wit\t0\n\u2028 odd\t1\n"
MRPC = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t6\tOne.\t"One\n0\t7\t8\tTwo.\tThree.\n'
RTE = "index\tsentence1\tsentence2\tlabel\n0\tA b.\tC.\tnot_entailment\n1\tD.\tE.\tentailment\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, content in {"CoLA": COLA, "SST-2": SST, "MRPC": MRPC, "RTE": RTE}.items():
        (tmp_path / "glue_data" / folder).mkdir(parents=True)
        for part in ("train", "dev"):
            (tmp_path / "glue_data" / folder / f"{part}.tsv").write_text(content, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "first", "second", "labels", "classes"),
    [
        ("cola", ("They drank.", 'They "drank the pub.'), None, [1, 0], ("0", "1")),
        ("sst-2", ("a charming journey .", "no wit", "odd"), None, [1, 0, 1], ("0", "1")),
        ("mrpc", ("One.", "Two."), ('"One', "Three."), [1, 0], ("0", "1")),
        ("rte", ("A b.", "D."), ("C.", "E."), [1, 0], ("entailment", "not_entailment")),
    ],
)
def test_each_task_is_read_as_its_format_says(
    root: Path, name: str, first: Any, second: Any, labels: Any, classes: Any
) -> None:
    texts = load_texts(name, "dev", root)
    assert (texts.name, texts.first, texts.second, texts.classes) == (name, first, second, classes)
    assert texts.labels.tolist() == labels
    assert texts.sentences() == first + (second or ())


def test_mrpc_trains_on_the_release_without_the_held_out_pairs(root: Path) -> None:
    folder = root / "glue_data" / "MRPC"
    (folder / "msr_paraphrase_train.txt").write_text(MRPC + "1\t9\t8\tFour.\tFive.\n", encoding="utf-8")
    assert len(load_texts("mrpc", root=root)) == 2
    (folder / "dev_ids.tsv").write_text("7\t8\n")
    texts = load_texts("mrpc", root=root)
    assert texts.first == ("One.", "Four.")
    assert texts.labels.tolist() == [1, 1]


@REAL
def test_the_real_files_have_the_published_sizes() -> None:
    sizes = {"cola": (8551, 1043), "sst-2": (67349, 872), "mrpc": (3668, 408), "rte": (2490, 277)}
    shares = {"cola": 0.704, "sst-2": 0.558, "mrpc": 0.674, "rte": 0.498}
    for name, (train, dev) in sizes.items():
        texts = load_texts(name)
        assert (len(texts), len(load_texts(name, "dev"))) == (train, dev)
        assert float(texts.labels.float().mean()) == pytest.approx(shares[name], abs=1e-3)
    assert load_texts("cola").first[0] == "Our friends won't buy this analysis, let alone the next one we propose."
    assert load_texts("sst-2", "dev").first[0] == "it 's a charming and often affecting journey ."


def test_any_table_is_read_by_the_names_of_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text("mood\tid\tone\ttwo\nsad\t1\ta\tb\ncalm\t2\tc\td\n")
    texts = text_table(path, first="two", second="one", label="mood")
    assert (texts.first, texts.second, texts.classes, texts.name) == (("b", "d"), ("a", "c"), ("calm", "sad"), "table")
    assert texts.labels.tolist() == [1, 0]
    alone = text_table(path, first="one", label="mood", classes=("sad", "calm"))
    assert (alone.second, alone.labels.tolist()) == (None, [0, 1])
    with pytest.raises(GraphError, match=r"table\.tsv \(got columns mood, id, one, two\), expected .* named 'three'"):
        text_table(path, first="three", label="mood")


def test_take_and_split_choose_alike_in_all_columns(root: Path) -> None:
    texts = load_texts("mrpc", root=root)
    for chosen in (torch.tensor([1]), torch.tensor([False, True])):
        one = texts.take(chosen)
        assert (one.first, one.second, one.labels.tolist(), len(one)) == (("Two.",), ("Three.",), [0], 1)
    one, other = texts.split(0.5, seed=3)
    assert sorted(one.first + other.first) == ["One.", "Two."]
    assert load_texts("cola", root=root).take(torch.tensor([1])).second is None
    with pytest.raises(ValueError, match=r"fraction \(got 1\.0 of 2 texts\)"):
        texts.split(1.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"sentence\tlabel\na\t1\nb\n", r"dev\.tsv, line 3 \(got 1 columns\), expected 2 with tabs"),
        (b"sentence\tlabel\na\t1\nb\tc\t0\n", r"dev\.tsv, line 3 \(got 3 columns\), expected 2"),
        (b"sentence\tlabel\na\t1\n\nb\t1\n", r"dev\.tsv, line 3 \(got 0 columns\)"),
        (b"sentence\tlabel\na\t2\n", r"dev\.tsv, line 2 \(got label '2'\), expected one of 0, 1"),
        (b"sentence\tlabel\n  \t1\n", r"dev\.tsv, line 2 \(got an empty text\)"),
        (b"sentence\tlabel\n", r"dev\.tsv \(got no text\)"),
        (b"", r"dev\.tsv \(got no text\)"),
        (b"sentence\tlabel\na\t1\n\xff\t1\n", r"dev\.tsv, line 3 \(got bytes that are no UTF-8\)"),
        (b"sentence\tlabel\n" + b"a" * 200_000 + b"\t1\n", r"dev\.tsv, line \d \(got: field larger than field limit"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_by_its_line(root: Path, content: bytes, message: str) -> None:
    (root / "glue_data" / "SST-2" / "dev.tsv").write_bytes(content)
    with pytest.raises(GraphError, match=message):
        load_texts("sst-2", "dev", root)


def test_wrong_names_missing_and_too_large_files_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GraphError, match=r"texts \(got 'imdb'\), expected one of cola, sst-2, mrpc, rte"):
        load_texts("imdb", root=root)
    with pytest.raises(GraphError, match=r"part \(got 'test'\)"):
        load_texts("cola", "test", root)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"file .*none\.tsv \(got none\)"):
        text_table(root / "none.tsv", first="a", label="b")
    (root / "empty.tsv").write_bytes(b"")
    with pytest.raises(GraphError, match=r"file .*empty\.tsv \(got no line\)"):
        text_table(root / "empty.tsv", first="a", label="b")
    monkeypatch.setattr(text, "LARGEST_FILE", 20)
    with pytest.raises(GraphError, match=r"file .*train\.tsv \(got: more than 20 bytes\)"):
        load_texts("sst-2", root=root)
