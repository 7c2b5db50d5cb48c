"""Word pieces: a vocabulary trained from any text, and texts as numbers of its pieces.

Needs the extra "transformers".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gebt.data.text import Texts

INSTALL = "pip install 'gebt[transformers]'"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
POOL = 32  # batches that are cut from texts sorted by length together


@dataclass(frozen=True, eq=False)
class Pieces:
    """Texts as numbers of word pieces, all int64.

    Attributes:
        ids: pieces [N, L].
        kinds: [N, L], 1 in the second sentence.
        lengths: pieces of each text [N].
        labels: [N].
    """

    ids: Tensor
    kinds: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.numel()

    def take(self, chosen: Tensor) -> Pieces:
        """Some of the texts, no wider than the longest of them.

        Args:
            chosen: numbers [n], or a boolean mask [N].

        Returns:
            Those texts alone.
        """
        lengths = self.lengths[chosen]
        width = int(lengths.max()) if lengths.numel() else 0
        ids, kinds = self.ids[chosen, :width], self.kinds[chosen, :width]
        return replace(self, ids=ids, kinds=kinds, lengths=lengths, labels=self.labels[chosen])

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        """The inputs of a BERT, without the labels.

        Args:
            device: where they go.

        Returns:
            Tensors [N, L] by name of the argument.
        """
        attended = torch.arange(self.ids.shape[1]) < self.lengths.unsqueeze(1)
        inputs = {"input_ids": self.ids, "token_type_ids": self.kinds, "attention_mask": attended.long()}
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    def batches(self, size: int, seed: int | None = None) -> Iterator[Tensor]:
        """Batches in order, or at random with texts of like length together.

        At random: every 32 batches of a random order are sorted by length before they are cut, and then the batches
        are put in a random order, so that little is computed on padding.

        Args:
            size: texts of a batch.
            seed: of the random order; default in order.

        Yields:
            Numbers of the texts of a batch.
        """
        if seed is None:
            yield from torch.arange(len(self)).split(size)
            return
        generator = torch.Generator().manual_seed(seed)
        pools = torch.randperm(len(self), generator=generator).split(POOL * size)
        cut = [part for pool in pools for part in pool[self.lengths[pool].argsort(stable=True)].split(size)]
        for place in torch.randperm(len(cut), generator=generator).tolist():
            yield cut[place]


def word_pieces(sentences: Iterable[str], size: int, *, lowercase: bool = True) -> Any:
    """A BERT tokenizer whose vocabulary is trained from sentences.

    The same sentences give the same vocabulary; `.save_pretrained(folder)` stores it.

    Args:
        sentences: the text.
        size: most pieces.
        lowercase: whether text is lowercased.

    Returns:
        A `transformers.BertTokenizer`.

    Raises:
        ValueError: for a size too small for the special pieces and the characters of the text.

    Source:
        Schuster et al. 2012, "Japanese and Korean voice search".
    """
    tokenizers, transformers = library("tokenizers"), library("transformers")
    blank = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    blank.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    blank.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words = Counter(word for sentence in sentences for word in _words(blank, sentence))
    # The trainer numbers these in the order of a hash map, a new one at every call, and settles ties by number.
    inner = sorted({f"##{character}" for word in words for character in word[1:]})
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *inner], show_progress=False, limit_alphabet=size
    )
    blank.train_from_iterator((" ".join([word] * count) for word, count in words.items()), trainer)
    vocabulary = blank.get_vocab()
    if len(vocabulary) > size or len(vocabulary) <= len(SPECIAL):
        raise ValueError(
            f"vocabulary of {size} pieces (got {len(vocabulary)} of this text: special pieces and characters), "
            "expected room for those, and some text; raise its size"
        )
    return transformers.BertTokenizer(vocab=vocabulary, do_lower_case=lowercase)


def _words(blank: Any, sentence: str) -> list[str]:
    return [word for word, _ in blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(sentence))]


def in_pieces(texts: Texts, tokenizer: Any, length: int) -> Pieces:
    """Texts as a BERT reads them; of pairs the longer sentence is cut first.

    Args:
        texts: labeled texts.
        tokenizer: from `word_pieces`.
        length: most pieces of a text.

    Returns:
        The pieces.
    """
    return _in_pieces(tokenizer, length, texts.first, texts.second, texts.labels)


def unlabeled(sentences: Iterable[str], tokenizer: Any, length: int) -> Pieces:
    """Sentences as a BERT reads them, all with label 0: for language modeling.

    Args:
        sentences: the sentences.
        tokenizer: from `word_pieces`.
        length: most pieces of a sentence.

    Returns:
        The pieces.
    """
    texts = tuple(sentences)
    return _in_pieces(tokenizer, length, texts, None, torch.zeros(len(texts), dtype=torch.long))


def _in_pieces(
    tokenizer: Any, length: int, first: tuple[str, ...], second: tuple[str, ...] | None, labels: Tensor
) -> Pieces:
    if length < 4 or not first:
        raise ValueError(f"length, texts (got {length}, {len(first)}), expected at least 4 pieces and one text")
    pairs = {} if second is None else {"text_pair": list(second)}
    encoded = tokenizer(list(first), **pairs, truncation=True, max_length=length, return_token_type_ids=True)
    lengths = torch.tensor([len(row) for row in encoded["input_ids"]])
    ids = torch.full((len(first), int(lengths.max())), int(tokenizer.pad_token_id))
    kinds = torch.zeros_like(ids)
    is_piece = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
    ids[is_piece] = torch.tensor([piece for row in encoded["input_ids"] for piece in row])
    kinds[is_piece] = torch.tensor([kind for row in encoded["token_type_ids"] for kind in row])
    return Pieces(ids, kinds, lengths, labels)


def library(name: str) -> Any:
    """An optional library.

    Args:
        name: of the module.

    Returns:
        The module.

    Raises:
        ImportError: with the command that installs it.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed; {INSTALL}") from error
