"""Early-bird tickets of convolutional networks: several ratios in one search, channels gone, weights inherited."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from gebt.data.images import Images, load_images
from gebt.models.cnn import PreResNet
from gebt.prune.scores import bn_scale
from gebt.prune.selection import make_mask
from gebt.prune.slim.slim import masked_channels
from gebt.recipes import early_bird_cnn as ebt
from gebt.recipes.early_bird_cnn import ChannelTicket, CnnSettings
from gebt.train.images import ImageTrainer

FEW = CnnSettings(epochs=8, learning_rate=0.05, milestones=(5,), batch=64, crop=1, flip=False, threshold=0.4, window=2)
Found = tuple[dict[float, ChannelTicket], Any, nn.Module]


@pytest.fixture(scope="module")
def parts() -> tuple[Images, Images]:
    train = load_images("digits").take(torch.arange(384))
    return train.take(torch.arange(320)), train.take(torch.arange(320, 384))


def network() -> PreResNet:
    return PreResNet(20, 10, in_channels=1, width=0.25, seed=0)


@pytest.fixture(scope="module")
def found(parts: tuple[Images, Images]) -> Found:
    model, told = network(), []
    tickets, history = ebt.search(
        model, parts[0], ratios=(0.3, 0.6), validation=parts[1], settings=FEW, seed=1,
        on_epoch=lambda epoch, _: told.append(epoch),
    )  # fmt: skip
    assert told == list(range(1, len(history.losses) + 1))
    return tickets, history, model


def test_one_search_draws_all_ratios(found: Found) -> None:
    tickets, history, model = found
    assert set(tickets) == {0.3, 0.6}
    total = sum(score.numel() for score in bn_scale(model).values())
    for ratio, ticket in tickets.items():
        assert ticket.mask.kept == total - int(ratio * total)
        assert len(ticket.distances) == ticket.epoch
        assert ticket.fired == (max(ticket.distances[-1:]) < FEW.threshold)
    assert max(ticket.epoch for ticket in tickets.values()) == len(history.losses) == len(history.accuracy)
    assert history.losses[-1] < history.losses[0]


def test_the_mask_is_that_of_the_scales_at_the_draw(found: Found) -> None:
    for ratio, ticket in found[0].items():
        twin = network()
        twin.load_state_dict(ticket.state)
        scores = torch.cat([score.flatten() for score in bn_scale(twin).values()])
        kept = ticket.mask.flat()
        assert float(scores[kept].min()) >= float(scores[~kept].max()), ratio


@pytest.mark.parametrize("start", ["inherit", "reinit"])
def test_the_ticket_is_smaller_and_starts_where_it_says(found: Found, parts: tuple[Images, Images], start: Any) -> None:
    ticket = found[0][0.6]
    now = CnnSettings(**{**vars(FEW), "epochs": ticket.epoch})  # nothing is left to train
    model = network()
    small, history = ebt.retrain(ticket, model, parts[0], settings=now, start=start, seed=7)
    assert history.losses == []
    before = network()
    before.load_state_dict(ticket.state) if start == "inherit" else before.reset(7)
    expected = masked_channels(before, ticket.mask).eval()
    example = parts[1].pixels[:8].float()
    torch.testing.assert_close(small.eval()(example), expected(example), atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())


def test_retraining_goes_on_by_the_absolute_schedule(found: Found, parts: tuple[Images, Images]) -> None:
    ticket, rates = found[0][0.3], []
    _, history = ebt.retrain(
        ticket, network(), parts[0], validation=parts[1], settings=FEW, on_epoch=lambda epoch, _: rates.append(epoch)
    )
    assert rates == list(range(ticket.epoch + 1, 9))
    assert len(history.accuracy) == len(rates)
    assert [FEW.rate(epoch) for epoch in (1, 5, 6, 8)] == pytest.approx([0.05, 0.05, 0.005, 0.005])


def test_l1_pulls_scales_by_its_sign_alone(parts: tuple[Images, Images]) -> None:
    plain, pulled = network(), network()
    settings: dict[str, Any] = {**vars(FEW), "momentum": 0.0, "weight_decay": 0.0, "batch": 320}
    for model, strength in ((plain, 0.0), (pulled, 0.5)):
        ImageTrainer(model, parts[0], None, CnnSettings(**{**settings, "scale_l1": strength}), 0).epoch(1)
    for name, score in bn_scale(plain).items():
        torch.testing.assert_close(bn_scale(pulled)[name], (score - 0.05 * 0.5).abs(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(plain.fc.weight, pulled.fc.weight)


def test_constant_scales_are_drawn_by_chance_not_by_position() -> None:
    kept = make_mask(bn_scale(network()), ratio=0.5, allow_empty=True).flat()
    assert [float(part.float().mean()) for part in kept.chunk(4)] == pytest.approx([0.5] * 4, abs=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda images: ebt.search(network(), images, ratios=()), r"ratios \(got none\)"),
        (lambda images: ebt.search(network(), images, ratios=(1.0,)), r"prune ratio \(got 1.0\)"),
        (lambda images: ebt.search(nn.Linear(2, 2), images, ratios=(0.5,)), r"got no batch normalization with scales"),
        (lambda images: CnnSettings(epochs=0), r"epochs, batch \(got \(0, 256\)\)"),
        (lambda images: CnnSettings(scale_l1=-1), r"learning rate, momentum, weight decay, scale L1, crop"),
    ],
)
def test_what_cannot_be_is_refused(parts: tuple[Images, Images], call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(parts[0])


def test_a_search_in_low_precision_leaves_scales_of_so_many_bits(parts: tuple[Images, Images]) -> None:
    settings = dataclasses.replace(FEW, epochs=1, bits=8)
    model = network()
    tickets, _ = ebt.search(model, parts[0], ratios=(0.5,), settings=settings)
    for name, scale in bn_scale(model).items():
        counts = scale.double() * 2.0**7 / 2.0 ** scale.max().double().log2().floor()  # half units
        assert torch.equal(counts, counts.round()), name
    assert settings.after().bits is None  # LF; LL asks for it
    low = dataclasses.replace(settings, epochs=2, bits_after=8)
    small, history = ebt.retrain(tickets[0.5], network(), parts[0], settings=low)
    assert len(history.losses) == 1
    assert all(p.detach().unique().numel() <= 256 for p in small.parameters() if p.dim() == 1)
