"""BERT's prunable matrices, masks for other heads, checkpoints, shuffled layers, and units taken out exactly."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

from gebt.models.bert import (  # noqa: E402
    encoder_of,
    fitted,
    fresh,
    head_names,
    pretrained,
    prunable,
    reinitialize,
    reset_head,
    shuffle_layers,
    with_head,
)
from gebt.models.bert_units import Gates, without  # noqa: E402
from gebt.prune.mask import Mask  # noqa: E402

IDS = {"input_ids": torch.arange(5, 19).view(2, 7), "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])}


def config(layers: int = 2, **more: Any) -> Any:
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    return transformers.BertConfig(num_hidden_layers=layers, max_position_embeddings=32, **{**sizes, **more})


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: own.clone() for name, own in encoder_of(model)[1].state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(own, b[name]) for name, own in a.items())


def test_bert_base_has_73_prunable_tensors() -> None:
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
    weights = prunable(model)
    assert len(weights) == 73
    assert sum(weight.numel() for weight in weights.values()) == 85_524_480
    assert not [name for name in weights if "embeddings" in name or "LayerNorm" in name or "classifier" in name]
    assert list(weights)[:2] == [f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key")]
    assert list(weights)[-1] == "bert.pooler.dense.weight"


def test_the_encoder_is_found_in_every_model_of_the_family() -> None:
    assert {name.removeprefix("bert.") for name in prunable(fresh(config()))} == set(
        prunable(transformers.BertModel(config()))
    )
    words = fresh(config(), "words")
    assert len(prunable(words)) == 12
    roberta = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**config().to_diff_dict()))
    assert all(name.startswith("roberta.encoder.layer.") for name in prunable(roberta))
    for other in (
        nn.Linear(2, 2),
        transformers.DistilBertModel(transformers.DistilBertConfig(dim=8, n_heads=2, hidden_dim=8, vocab_size=9)),
    ):
        with pytest.raises(
            ValueError, match=r"\(got no BERT encoder\), expected BertModel .*attention\.self\.query, att"
        ):
            prunable(other)


def test_heads_leave_out_what_is_tied_to_the_encoder() -> None:
    assert head_names(fresh(config())) == ["classifier.weight", "classifier.bias"]
    names = head_names(fresh(config(), "words"))
    assert "cls.predictions.decoder.weight" not in names
    assert {"cls.predictions.bias", "cls.predictions.decoder.bias", "cls.predictions.transform.dense.weight"} <= set(
        names
    )


def test_a_mask_fits_a_model_with_another_head() -> None:
    words, classes, bare = fresh(config(), "words"), fresh(config(), classes=5), transformers.BertModel(config())
    generator = torch.Generator().manual_seed(0)
    mask = Mask({name: torch.rand(own.shape, generator=generator) < 0.5 for name, own in prunable(words).items()})
    there = fitted(mask, classes)
    assert there == mask
    assert fitted(there, bare) == Mask({name.removeprefix("bert."): own for name, own in mask.items()})
    whole = Mask.ones(prunable(bare))
    assert list(fitted(whole, classes)) == list(prunable(classes))
    assert list(fitted(whole, words)) == list(prunable(words))
    with pytest.raises(ValueError, match=r"layer\.2\..*weight' \(got none in the model\)"):
        fitted(Mask.ones(prunable(fresh(config(3)))), classes)
    with pytest.raises(ValueError, match=r"mask of 'bert\.encoder\.layer\.1\..*' \(got no such tensor\)"):
        fitted(Mask.ones(prunable(fresh(config(1)))), classes)
    with pytest.raises(ValueError, match=r"\(got shape \(16, 16\)\), expected one of shape \(8, 8\)"):
        fitted(mask, fresh(config(hidden_size=8)))


def test_checkpoints_keep_the_encoder_and_get_the_head_asked_for(tmp_path: Path) -> None:
    words = fresh(config(), "words", seed=3)
    words.save_pretrained(tmp_path)
    assert same(state(pretrained(tmp_path, "words")), state(words))
    one, other = (pretrained(tmp_path, classes=3, seed=seed) for seed in (1, 2))
    assert {name: own for name, own in state(one).items() if "pooler" not in name}.keys() == state(words).keys()
    assert all(torch.equal(state(one)[name], own) for name, own in state(words).items())
    assert one.classifier.weight.shape == (3, 16)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert torch.equal(one.classifier.weight, pretrained(tmp_path, classes=3, seed=1).classifier.weight)
    again = with_head(one, "words")
    assert same(state(again), state(words))


def test_checkpoints_that_are_missing_broken_or_others_are_refused(tmp_path: Path) -> None:
    for nowhere in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=r"checkpoint .* \(got: .*\), expected a folder, or a name on the hub"):
            pretrained(nowhere)
    words = fresh(config(), "words")
    words.save_pretrained(tmp_path)
    config(hidden_size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(got 'bert\..*' of another shape\), expected the shapes of its config"):
        pretrained(tmp_path)
    config(3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(got no 'bert\.encoder\.layer\.2\..*'\), expected all weights of a Bert"):
        pretrained(tmp_path)
    fresh(config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"\(got no 'cls\.predictions\..*'\), expected all weights of a BertForMasked"):
        pretrained(tmp_path, "words")
    (tmp_path / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ValueError, match=r"checkpoint .* \(got: .*header"):
        pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(words.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"\(got: Error no file named model\.safetensors"):
        pretrained(tmp_path)


def test_controls_change_what_they_say_and_nothing_else() -> None:
    model = fresh(config(4))
    before, head = state(model), copy.deepcopy(model.classifier.state_dict())
    order = shuffle_layers(model, 0)
    assert sorted(order) == [0, 1, 2, 3] != order
    for name, own in state(model).items():
        place = name.split(".")[2] if name.startswith("encoder.layer.") else None
        source = name if place is None else name.replace(f"layer.{place}.", f"layer.{order[int(place)]}.")
        assert torch.equal(own, before[source]), name
    reinitialize(model, 5)
    assert same(state(model), state(fresh(config(4), seed=5)))
    assert same(model.classifier.state_dict(), head)
    reset_head(model, 8)
    assert same(state(model), state(fresh(config(4), seed=5)))
    assert same(model.classifier.state_dict(), fresh(config(4), seed=8).classifier.state_dict())
    with pytest.raises(ValueError, match=r"layers \(got 1\), expected at least 2"):
        shuffle_layers(fresh(config(1)), 0)


def units_mask(seed: int = 0) -> Mask:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"heads.0": (4, 3), "heads.1": (4, 1), "units.0": (24, 9), "units.1": (24, 23)}
    kept = {}
    for name, (size, count) in sizes.items():
        kept[name] = torch.zeros(size, dtype=torch.bool)
        kept[name][torch.randperm(size, generator=generator)[:count]] = True
    return Mask(kept)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("folded", [True, False])
def test_taken_out_units_leave_the_outputs_of_the_masked_network(attention: str, folded: bool) -> None:
    settings = config(initializer_range=0.5)
    settings._attn_implementation = attention
    model = fresh(settings).eval()
    for own in model.parameters():  # biases, too, are not zero
        own.data += 0.1 * torch.randn(own.shape, generator=torch.Generator().manual_seed(own.numel()))
    gates, mask = Gates(model), units_mask()
    if folded:
        for own in gates.parameters():
            own.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(own.numel()))
    small = without(model, mask, gates if folded else None)
    gates.close(mask)
    with torch.no_grad():
        plain = model(**IDS).logits
        with gates.attached(model):
            expected = model(**IDS).logits
        torch.testing.assert_close(small(**IDS).logits, expected, atol=1e-5, rtol=0)
        assert torch.equal(model(**IDS).logits, plain)
        assert float((plain - expected).abs().max()) > 1e-2
    lost = sum(own.numel() for own in model.parameters()) - sum(own.numel() for own in small.parameters())
    heads = (1 + 3) * (3 * (4 * 16 + 4) + 4 * 16)
    assert lost == heads + (15 + 1) * (16 + 1 + 16)


def test_masks_over_units_that_do_not_fit_are_refused() -> None:
    model, mask = fresh(config()), dict(units_mask())
    empty = {**mask, "heads.1": torch.zeros(4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"mask of 'heads\.1' \(got all 4 pruned\), expected every layer to keep one"):
        without(model, Mask(empty))
    with pytest.raises(ValueError, match=r"mask of 'units\.0' \(got shape \(3,\)\), expected one of shape \(24,\)"):
        without(model, Mask({**mask, "units.0": torch.ones(3, dtype=torch.bool)}))
    with pytest.raises(ValueError, match=r"mask of 'heads\.0' \(got no such tensor\)"):
        without(model, Mask({name: own for name, own in mask.items() if name != "heads.0"}))
    with pytest.raises(ValueError, match=r"mask tensor 'heads\.2' \(got none in the model\)"):
        without(model, Mask({**mask, "heads.2": torch.ones(4, dtype=torch.bool)}))
