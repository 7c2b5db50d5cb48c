"""Word pieces: a vocabulary trained from text, texts as its numbers, batches of texts of like length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

from gebt.data.text import Texts  # noqa: E402
from gebt.data.word_pieces import SPECIAL, Pieces, in_pieces, library, unlabeled, word_pieces  # noqa: E402

SENTENCES = ["The cat sat.", "the cats sat on the mat", "A mat sat", "cats, cats!"] * 3


def test_the_vocabulary_is_of_the_text_and_the_same_at_every_call(tmp_path: Path) -> None:
    tokenizer = word_pieces(SENTENCES, 40)
    vocabulary = tokenizer.get_vocab()
    assert len(tokenizer) <= 40
    assert {*SPECIAL, "the", "cats", "c", "##a"} <= vocabulary.keys()
    assert word_pieces(iter(SENTENCES), 40).get_vocab() == vocabulary
    assert tokenizer.tokenize("THE cats") == ["the", "cats"]
    assert word_pieces(SENTENCES, 60, lowercase=False).tokenize("The") != ["the"]
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert again("the cats sat.")["input_ids"] == tokenizer("the cats sat.")["input_ids"]
    with pytest.raises(ValueError, match=r"vocabulary of 8 pieces \(got \d+ of this text"):
        word_pieces(SENTENCES, 8)
    with pytest.raises(ValueError, match=r"vocabulary of 40 pieces \(got 5 of this text"):
        word_pieces([], 40)


def test_texts_and_pairs_are_numbered_as_bert_reads_them() -> None:
    tokenizer = word_pieces(SENTENCES, 60)
    number = tokenizer.convert_tokens_to_ids
    texts = Texts("toy", ("the cat", "sat"), ("a mat", "on the mat sat"), torch.tensor([1, 0]), ("0", "1"))
    pieces = in_pieces(texts, tokenizer, 16)
    first, second = (
        ["[CLS]", "the", "cat", "[SEP]", "a", "mat", "[SEP]"],
        ["[CLS]", "sat", "[SEP]", "on", "the", "mat", "sat", "[SEP]"],
    )
    assert pieces.ids.tolist() == [[*number(first), 0], number(second)]
    assert pieces.kinds.tolist() == [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1, 1]]
    assert (pieces.lengths.tolist(), pieces.labels.tolist()) == ([7, 8], [1, 0])
    assert pieces.inputs(torch.device("cpu"))["attention_mask"].tolist() == [[1] * 7 + [0], [1] * 8]
    short = pieces.take(torch.tensor([0]))
    assert short.ids.shape == (1, 7)
    cut = unlabeled(["the cats sat on the mat"], tokenizer, 5)
    assert cut.ids.tolist() == [number(["[CLS]", "the", "cats", "sat", "[SEP]"])]
    with pytest.raises(ValueError, match=r"length, texts \(got 3, 1\), expected at least 4 pieces"):
        unlabeled(["a"], tokenizer, 3)
    with pytest.raises(ValueError, match=r"length, texts \(got 8, 0\)"):
        unlabeled([], tokenizer, 8)


def test_batches_are_all_texts_once_with_like_lengths_together() -> None:
    lengths = torch.randint(3, 40, (1000,), generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(1000, 40, dtype=torch.long)
    pieces = Pieces(ids, ids, lengths, torch.zeros(1000, dtype=torch.long))
    batches = list(pieces.batches(8, seed=1))
    assert len(batches) == 125
    assert torch.cat(batches).sort().values.equal(torch.arange(1000))
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    assert padded < 1.1 * int(lengths.sum())
    assert all(torch.equal(a, b) for a, b in zip(batches, pieces.batches(8, seed=1), strict=True))
    assert not torch.equal(batches[0], next(pieces.batches(8, seed=2)))
    heads = torch.tensor([float(lengths[batch].float().mean()) for batch in batches])
    assert bool((heads.diff() < 0).any())
    assert torch.cat(list(pieces.batches(300))).equal(torch.arange(1000))


ALONE = """
import sys
import gebt.data.word_pieces, gebt.recipes.bert, gebt.recipes.bert_early_bird
print({"transformers", "tokenizers"} & {*sys.modules})
"""


def test_the_optional_library_is_loaded_when_needed_and_named_when_missing() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
    with pytest.raises(ImportError, match=r"no_such_library is not installed; pip install 'gebt\[transformers\]'"):
        library("no_such_library")
