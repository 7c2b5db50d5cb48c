"""Early-bird tickets of BERT: masks of the scales at the draw, both detectors, units gone, weights where they say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from gebt.data.word_pieces import Pieces  # noqa: E402
from gebt.models.bert import fresh  # noqa: E402
from gebt.models.bert_units import Gates, without  # noqa: E402
from gebt.prune.selection import pruned_count  # noqa: E402
from gebt.recipes import bert_early_bird as early  # noqa: E402
from gebt.recipes.bert_early_bird import UnitSettings  # noqa: E402
from gebt.train.texts import Classify, fit  # noqa: E402

FEW = UnitSettings(
    steps=24, batch=8, learning_rate=2e-3, head_ratio=0.5, unit_ratio=0.4, head_l1=1e-2, unit_l1=1e-2, every=2,
    window=2, threshold=0.3,
)  # fmt: skip


def network(seed: int = 0) -> Any:
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.BertConfig(num_hidden_layers=2, max_position_embeddings=16, hidden_dropout_prob=0.0, **sizes)
    return fresh(config, seed=seed)


@pytest.fixture(scope="module")
def task() -> Classify:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30, (64, 8), generator=generator)
    labels = (ids == 7).any(1).long()
    texts = Pieces(ids, torch.zeros_like(ids), torch.full((64,), 8), labels)
    return Classify(texts, texts)


def test_the_ticket_is_of_the_scales_at_the_draw(task: Classify) -> None:
    ticket, history = early.search(network(), task, settings=FEW, seed=1)
    assert ticket.fired
    assert ticket.step == len(history.losses) < 24
    assert ticket.step % 2 == 0
    draws = ticket.step // 2
    for kind, moved in ticket.distances.items():
        assert len(moved) == draws, kind
    assert all(moved[-1] < 0.3 for moved in ticket.distances.values())
    for layer in range(2):
        assert int(ticket.mask[f"heads.{layer}"].sum()) == 2
    units = torch.cat([ticket.mask[f"units.{layer}"] for layer in range(2)])
    assert int((~units).sum()) == pruned_count(48, 0.4)
    for kind in ("heads", "units"):
        scores = ticket.gates.scores(kind)
        groups = [scores] if kind == "units" else [{name: own} for name, own in scores.items()]
        for group in groups:
            flat, kept = torch.cat(list(group.values())), torch.cat([ticket.mask[name] for name in group])
            assert float(flat[kept].min()) >= float(flat[~kept].max())


def test_a_watch_that_never_ends_is_drawn_after_the_last_step(task: Classify) -> None:
    settings = UnitSettings(**{**vars(FEW), "window": 30})
    ticket, history = early.search(network(), task, settings=settings)
    assert (ticket.fired, ticket.step, len(history.losses)) == (False, 24, 24)


def test_the_search_trains_with_the_scales_and_their_l1(task: Classify) -> None:
    strong = UnitSettings(**{**vars(FEW), "window": 30, "head_l1": 1.0, "unit_l1": 0.0, "clip": 1e9})
    ticket, _ = early.search(network(), task, settings=strong)
    assert all(float(own.detach().max()) < 0.99 for own in ticket.gates.heads)
    model = network()
    fit(model, task, strong.after())
    assert any(not torch.equal(own, model.state_dict()[name]) for name, own in ticket.state.items())


@pytest.mark.parametrize("start", ["pretrained", "inherit"])
def test_the_smaller_network_starts_where_it_says(task: Classify, start: Any) -> None:
    model = network()
    pretrained = copy.deepcopy(model)
    ticket, _ = early.search(copy.deepcopy(model), task, settings=FEW, seed=1)
    twin = network()
    gates = ticket.gates if start == "inherit" else Gates(twin)
    if start == "inherit":
        twin.load_state_dict(ticket.state)
    expected = without(twin, ticket.mask, gates if start == "inherit" else None)
    starts = []

    class Watched(Classify):
        def loss(self, model: Any, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            starts.append(copy.deepcopy(model.state_dict()))
            return super().loss(model, chosen, generator)

    small, history = early.retrain(ticket, model, Watched(task.texts, task.dev), settings=FEW, start=start, seed=1)
    assert len(history.losses) == 24 - (ticket.step if start == "inherit" else 0)
    assert all(torch.equal(own, starts[0][name]) for name, own in expected.state_dict().items())
    assert sum(own.numel() for own in small.parameters()) < sum(own.numel() for own in model.parameters())
    if start == "pretrained":
        assert all(torch.equal(own, pretrained.state_dict()[name]) for name, own in model.state_dict().items())


def test_wrong_settings_are_refused(task: Classify) -> None:
    with pytest.raises(ValueError, match=r"prune ratio \(got 1\.0\)"):
        UnitSettings(unit_ratio=1.0)
    with pytest.raises(ValueError, match=r"steps between draws, L1s \(got \(0, 0\.0001, 0\.0001\)\)"):
        UnitSettings(every=0)
    ticket, _ = early.search(network(), task, settings=UnitSettings(**{**vars(FEW), "steps": 2}))
    with pytest.raises(ValueError, match=r"start \(got 'again'\), expected 'pretrained' or 'inherit'"):
        early.retrain(ticket, network(), task, start="again")  # type: ignore[arg-type]
