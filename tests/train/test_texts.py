"""Training on texts: rates and decay by hand, masking by its shares, batches by seed and step, stops and refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from gebt.data.word_pieces import Pieces  # noqa: E402
from gebt.models.bert import encoder_of, fresh  # noqa: E402
from gebt.train.texts import Classify, FillIn, TextSettings, fit, masked  # noqa: E402

TOKENS: Any = type("Tokens", (SimpleNamespace,), {"__len__": lambda self: 30})(
    all_special_ids=[0, 1, 2, 3, 4], mask_token_id=4
)
FEW = TextSettings(epochs=2, learning_rate=1e-3, batch=8, weight_decay=0.1)


def config(**more: Any) -> Any:
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    return transformers.BertConfig(num_hidden_layers=2, max_position_embeddings=16, **{**sizes, **more})


def pieces(count: int = 36, seed: int = 0) -> Pieces:
    """Label 1 where piece 7 occurs."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 11, (count,), generator=generator)
    ids = torch.randint(8, 30, (count, 10), generator=generator)
    labels = torch.arange(count) % 2
    ids[labels == 1, 2] = 7
    ids[:, 0] = 2
    ids[torch.arange(10) >= lengths.unsqueeze(1)] = 0
    return Pieces(ids, torch.zeros_like(ids), lengths, labels)


def test_the_rate_rises_and_falls_linearly_over_one_training_or_all() -> None:
    one = TextSettings(learning_rate=1.0)
    assert [one.rate(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    ten = TextSettings(learning_rate=1.0, rounds=10)
    assert [ten.rate(step, 4) for step in (0, 3)] == [1.0, 37 / 40]
    warm = TextSettings(learning_rate=1.0, warmup=0.5)
    assert [warm.rate(step, 8) for step in range(8)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.75, 0.5, 0.25])
    assert (one.total(65), TextSettings(steps=7).total(65)) == (9, 7)


def test_biases_and_layer_norms_do_not_decay() -> None:
    model, gate = fresh(config()), nn.Parameter(torch.ones(3))
    groups = FEW.optimizer_of(model, [gate]).param_groups
    names = {id(own): name for name, own in model.named_parameters()}
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    decayed, free = ({names.get(id(own), "gate") for own in group["params"]} for group in groups)
    assert decayed | free == {*names.values(), "gate"}
    assert free == {name for name in names.values() if name.endswith("bias") or "LayerNorm" in name} | {"gate"}


def test_masking_draws_15_percent_and_shows_80_10_10() -> None:
    ids = torch.randint(0, 30, (400, 100), generator=torch.Generator().manual_seed(1))
    shown, drawn = masked(ids, TOKENS, torch.Generator().manual_seed(2))
    assert not bool(drawn[ids < 5].any())
    assert float(drawn[ids >= 5].float().mean()) == pytest.approx(0.15, abs=0.005)
    assert torch.equal(shown[~drawn], ids[~drawn])
    hidden = shown[drawn] == 4
    # One random piece in thirty is the mask itself, another what stood there.
    assert float(hidden.float().mean()) == pytest.approx(0.8 + 0.1 / 30, abs=0.01)
    assert float((shown[drawn] == ids[drawn]).float().mean()) == pytest.approx(0.1 + 0.1 / 30, abs=0.01)
    again = masked(ids, TOKENS, torch.Generator().manual_seed(2))
    assert torch.equal(again[0], shown)
    assert not torch.equal(masked(ids, TOKENS, torch.Generator().manual_seed(3))[1], drawn)


def test_the_loss_of_masked_words_is_that_of_the_whole_model() -> None:
    model, texts = fresh(config(), "words").eval(), pieces()
    task = FillIn(texts, texts, TOKENS, fraction=0.5)
    chosen = torch.arange(12)
    loss = task.loss(model, chosen, torch.Generator().manual_seed(5))
    batch = texts.take(chosen)
    shown, drawn = masked(batch.ids, TOKENS, torch.Generator().manual_seed(5), 0.5)
    wanted = torch.where(drawn, batch.ids, -100)
    given = {**batch.inputs(torch.device("cpu")), "input_ids": shown, "labels": wanted}
    torch.testing.assert_close(loss, model(**given).loss)
    none = FillIn(texts, texts, TOKENS, fraction=0.0)
    assert float(none.loss(model, chosen, torch.Generator()).detach()) == 0.0
    with pytest.raises(ValueError, match=r"BertForSequenceClassification \(got no head of language modelling\)"):
        task.loss(fresh(config()), chosen, torch.Generator())


@pytest.mark.parametrize("kind", ["classes", "words"])
def test_training_learns_and_depends_on_its_seed_alone(kind: Any) -> None:
    texts = pieces(96)
    task: Any = Classify(texts, pieces(40, 9), "matthews") if kind == "classes" else FillIn(texts, texts, TOKENS)
    settings = TextSettings(epochs=8, learning_rate=5e-3, batch=16)
    found = []
    for seed, noise in ((1, 3), (1, 4), (2, 3)):
        torch.manual_seed(noise)
        found.append(fit(fresh(config(), kind), task, settings, seed=seed))
    assert found[0] == found[1]
    assert found[0].losses != found[2].losses
    assert len(found[0].losses) == 48
    assert sum(found[0].losses[-6:]) < 0.95 * sum(found[0].losses[:6])
    names = {"accuracy", "matthews"} if kind == "classes" else {"word_loss", "word_accuracy"}
    assert found[0].score.keys() == names


def test_accuracy_and_matthews_are_those_of_the_confusion_matrix() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=nn.functional.one_hot(input_ids[:, 1] % 2, 2).float())

    dev = pieces(10)
    dev.ids[:, 1] = torch.tensor([1, 1, 1, 0, 0, 0, 0, 1, 1, 1])
    dev.labels[:] = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 1])
    # 4 true and 2 false positives, 3 true and 1 false negatives.
    score = Classify(dev, dev, "matthews").score(Fixed())
    assert score == pytest.approx({"accuracy": 0.7, "matthews": (4 * 3 - 2 * 1) / (6 * 5 * 5 * 4) ** 0.5})


def test_steps_start_stop_and_go_round_the_texts() -> None:
    class Noting(Classify):
        def loss(self, model: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
            seen.append((chosen.tolist(), generator.initial_seed()))
            return super().loss(model, chosen, generator)

    seen: list[tuple[list[int], int]] = []
    task, model = Noting(pieces(), pieces()), fresh(config())
    settings = TextSettings(steps=12, batch=8, learning_rate=1e-3)
    assert len(fit(model, task, settings).losses) == 12
    whole, seen = seen, []
    assert sorted(number for chosen, _ in whole[:5] for number in chosen) == list(range(36))
    fit(model, task, settings, start=4, stop=9)
    assert seen == whole[4:9]
    made: list[int] = []
    history = fit(model, task, settings, on_step=lambda step: made.append(step) or step == 3)  # type: ignore[func-returns-value]
    assert (made, len(history.losses)) == ([0, 1, 2, 3], 3)


def test_a_penalty_reaches_parameters_beside_the_model() -> None:
    gate = nn.Parameter(torch.ones(4))
    texts = pieces()
    settings = TextSettings(steps=3, batch=8, learning_rate=0.1, rounds=10**9)
    fit(fresh(config()), Classify(texts, texts), settings, more=[gate], penalty=lambda: 5 * gate.sum())
    torch.testing.assert_close(gate.detach(), torch.full((4,), 0.7), atol=1e-3, rtol=0)


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epochs, steps, batch, rounds \(got \(3, 0, 32, 1\)\)"):
        TextSettings(steps=0)
    with pytest.raises(ValueError, match=r"learning rate, clip, weight decay, warm-up \(got \(0, 1\.0, 0\.0, 0\.0\)\)"):
        TextSettings(learning_rate=0)
    model, texts = fresh(config()), pieces()
    encoder_of(model)[1].encoder.layer[0].output.dense.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"loss of step 1 \(got nan\), expected a finite number"):
        fit(model, Classify(texts, texts), FEW)
