"""BERT tickets: exact rounds, an encoder rewound bit for bit, heads kept or reset, resuming, transfer, controls."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from gebt.data.text import load_texts  # noqa: E402
from gebt.data.word_pieces import Pieces, in_pieces, unlabeled, word_pieces  # noqa: E402
from gebt.models.bert import encoder_of, fresh, prunable, reinitialize, reset_head, with_head  # noqa: E402
from gebt.prune.imp import ImpResult  # noqa: E402
from gebt.prune.mask import Mask  # noqa: E402
from gebt.recipes import bert  # noqa: E402
from gebt.recipes.bert import BertSettings, Variant  # noqa: E402
from gebt.train.texts import Classify, FillIn, TextSettings, fit  # noqa: E402

SENTENCES = ["the good cat", "a bad cat sat", "good good mat", "the bad bad mat", "a good one sat", "one bad cat"] * 8
SHORT = TextSettings(epochs=1, batch=16, learning_rate=1e-3)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return word_pieces(SENTENCES, 60)


@pytest.fixture(scope="module")
def task(tokenizer: Any) -> Classify:
    pieces = unlabeled(SENTENCES, tokenizer, 16)
    labels = torch.tensor([int("good" in own) for own in SENTENCES])
    texts = Pieces(pieces.ids, pieces.kinds, pieces.lengths, labels)
    return Classify(texts, texts.take(torch.arange(6)))


@pytest.fixture(scope="module")
def words(task: Classify, tokenizer: Any) -> FillIn:
    return FillIn(task.texts, task.dev, tokenizer)


def config(tokenizer: Any) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, **sizes)


class Watched:
    """A task that notes the state that every training starts from, and can break off."""

    def __init__(self, task: Classify, last: int = 99) -> None:
        self.task, self.texts, self.last = task, task.texts, last
        self.starts: list[State] = []
        self.begun = False

    def loss(self, model: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        if not self.begun:
            if len(self.starts) == self.last:
                raise KeyboardInterrupt
            self.starts.append({name: own.clone() for name, own in model.state_dict().items()})
        self.begun = True
        return self.task.loss(model, chosen, generator)

    def score(self, model: nn.Module) -> dict[str, float]:
        self.begun = False
        return self.task.score(model)


def searched(model: nn.Module, task: Any, folder: Path | None = None, **more: Any) -> ImpResult:
    settings = BertSettings(**{"rounds": 3, "rate": 0.2, "training": SHORT, **more})
    return bert.search(model, task, settings=settings, seed=1, folder=folder)


def test_ratios_are_of_the_original_or_of_the_rest() -> None:
    assert BertSettings().ratios() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert BertSettings(rounds=3, schedule="of the rest").ratios() == [0.0, 0.1, 0.19, 0.271]
    assert BertSettings(rounds=3, prune_first=True).ratios() == [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match=r"prune ratio \(got 1\.0\), expected 0 <= ratio < 1"):
        BertSettings(rounds=10)
    with pytest.raises(ValueError, match=r"schedule, head \(got 'of the rest', 'forget'\)"):
        BertSettings(schedule="of the rest", head="forget")  # type: ignore[arg-type]


def test_rounds_prune_exactly_what_they_say(task: Classify, tokenizer: Any) -> None:
    model = fresh(config(tokenizer))
    once = TextSettings(steps=1, batch=16, learning_rate=1e-3)
    found = searched(model, task, rounds=9, rate=0.1, training=once)
    total = sum(weight.numel() for weight in prunable(model).values())
    assert [total - level.mask.kept for level in found.levels] == [total * tenth // 10 for tenth in range(10)]
    for before, after in zip(found.levels, found.levels[1:], strict=False):
        assert not bool((after.mask.flat() & ~before.mask.flat()).any())
    rest = searched(fresh(config(tokenizer)), task, rounds=2, rate=0.1, schedule="of the rest", training=once)
    assert [total - level.mask.kept for level in rest.levels] == [0, total // 10, total * 19 // 100]


@pytest.mark.parametrize("head", ["keep", "reset"])
def test_every_round_starts_from_the_pretrained_encoder(task: Classify, tokenizer: Any, head: Any) -> None:
    model = fresh(config(tokenizer), seed=4)
    given, watched = copy.deepcopy(model.state_dict()), Watched(task)
    found = searched(model, watched, head=head)
    assert len(watched.starts) == len(found.levels) == 4
    for start, level in zip(watched.starts, found.levels, strict=True):
        for name, own in start.items():
            if name.startswith("bert."):
                kept = level.mask.get(name, torch.ones_like(own, dtype=torch.bool))
                assert torch.equal(own, given[name] * kept), name
    heads = [start["classifier.weight"] for start in watched.starts]
    assert all(torch.equal(heads[0], own) for own in heads) == (head == "reset")
    alone = fresh(config(tokenizer), seed=4)
    fit(alone, task, SHORT, seed=1)
    assert torch.equal(heads[1], alone.classifier.weight) == (head == "keep")


def test_the_smallest_trained_weights_of_all_matrices_go(task: Classify, tokenizer: Any) -> None:
    found = searched(fresh(config(tokenizer), seed=4), task, rounds=1)
    dense = fresh(config(tokenizer), seed=4)
    fit(dense, task, SHORT, seed=1)
    flat = torch.cat([own.detach().abs().flatten() for own in prunable(dense).values()])
    kept = found.levels[1].mask.flat()
    assert float(flat[kept].min()) >= float(flat[~kept].max())
    first = searched(fresh(config(tokenizer), seed=4), task, rounds=1, prune_first=True).levels[0].mask.flat()
    given = torch.cat([own.detach().abs().flatten() for own in prunable(fresh(config(tokenizer), seed=4)).values()])
    assert float(given[first].min()) >= float(given[~first].max())


@pytest.mark.parametrize("kind", ["classes", "words"])
def test_a_search_goes_on_where_it_stopped(
    task: Classify, words: FillIn, tokenizer: Any, kind: Any, tmp_path: Path
) -> None:
    own: Any = task if kind == "classes" else words
    whole = searched(model := fresh(config(tokenizer), kind), own)
    with pytest.raises(KeyboardInterrupt):
        searched(fresh(config(tokenizer), kind), Watched(own, last=2), tmp_path)
    watched = Watched(own)
    again = searched(other := fresh(config(tokenizer), kind), watched, tmp_path)
    assert len(watched.starts) == 2
    assert [level.mask for level in again.levels] == [level.mask for level in whole.levels]
    assert [level.result for level in again.levels] == [level.result for level in whole.levels]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_language_models_rounds_rewind_what_is_tied_to_the_encoder(words: FillIn, tokenizer: Any) -> None:
    model = fresh(config(tokenizer), "words", seed=2)
    given, watched = copy.deepcopy(model.state_dict()), Watched(words)  # type: ignore[arg-type]
    searched(model, watched, rounds=1)
    later = watched.starts[1]
    assert torch.equal(later["cls.predictions.decoder.weight"], given["bert.embeddings.word_embeddings.weight"])
    assert not torch.equal(later["cls.predictions.bias"], given["cls.predictions.bias"])


def test_a_language_models_ticket_serves_another_task(
    task: Classify, words: FillIn, tokenizer: Any, tmp_path: Path
) -> None:
    model, history = bert.pretrain(config(tokenizer), words, TextSettings(epochs=3, batch=16, learning_rate=2e-3))
    assert history.score["word_loss"] < history.losses[0]
    mask = searched(with_head(model, "words"), words, prune_first=True).levels[-1].mask
    save_file(dict(mask), tmp_path / "mask.safetensors")
    loaded = Mask(load_file(tmp_path / "mask.safetensors"))
    network, found = bert.evaluate(with_head(model, classes=3), task, loaded, settings=SHORT)
    parameters = dict(network.named_parameters())
    assert all(not bool(parameters[name][~kept].any()) for name, kept in mask.items())
    assert "accuracy" in found.score
    assert bool(network.bert.pooler.dense.weight.all())


@pytest.mark.parametrize("variant", ["ticket", "random mask", "random init", "shuffled layers", "one shot"])
def test_arms_start_from_what_they_say(task: Classify, tokenizer: Any, variant: Variant) -> None:
    model = fresh(config(tokenizer), seed=6)
    mask = searched(copy.deepcopy(model), task).levels[-1].mask
    before, watched = copy.deepcopy(model.state_dict()), Watched(task)
    network, found = bert.evaluate(model, watched, mask, variant=variant, settings=SHORT, seed=3)
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())
    start = watched.starts[0]
    kept = Mask({name: start[name] != 0 for name in mask})
    assert (kept == mask) == (variant in ("ticket", "random init", "shuffled layers"))
    assert kept.kept == mask.kept
    counts = [[int(own.sum()) for own in of.values()] for of in (kept, mask)]
    assert (counts[0] == counts[1]) == (variant in ("ticket", "random init", "shuffled layers"))
    expected = copy.deepcopy(model)
    reset_head(expected, 3)
    if variant == "random init":
        reinitialize(expected, 3)
    if variant == "shuffled layers":
        layers = encoder_of(expected)[1].encoder.layer
        states = [copy.deepcopy(layer.state_dict()) for layer in layers]
        for layer, own in zip(layers, reversed(states), strict=True):
            layer.load_state_dict(own)
    kept.apply_(dict(expected.named_parameters()))
    assert all(torch.equal(own, start[name]) for name, own in expected.state_dict().items())
    if variant == "one shot":
        flat = torch.cat([before[name].abs().flatten() for name in mask])
        assert float(flat[kept.flat()].min()) >= float(flat[~kept.flat()].max())
    ends = dict(network.named_parameters())
    assert all(torch.equal(ends[name] != 0, kept[name]) for name in mask)
    assert found.score["accuracy"] >= 0


def test_the_dense_arm_and_what_is_refused(task: Classify, tokenizer: Any) -> None:
    model = fresh(config(tokenizer))
    network, _ = bert.evaluate(model, task, None, settings=SHORT)
    assert all(bool(own.all()) for own in prunable(network).values())
    with pytest.raises(ValueError, match=r"variant \(got 'luck'\), expected one of \('ticket', "):
        bert.evaluate(model, task, None, variant="luck")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model Linear \(got no BERT encoder\)"):
        bert.search(nn.Linear(2, 2), task)


@pytest.mark.skipif("GEBT_DATA" not in os.environ, reason="GEBT_DATA is not set")
def test_real_sentences_go_through() -> None:
    texts = load_texts("rte", "dev").take(torch.arange(24))
    vocabulary = word_pieces(texts.sentences(), 200)
    pieces = in_pieces(texts, vocabulary, 12)
    _, found = bert.evaluate(fresh(config(vocabulary)), Classify(pieces, pieces, "matthews"), None, settings=SHORT)
    assert found.score.keys() == {"accuracy", "matthews"}
