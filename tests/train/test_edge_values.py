from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gebt.prune import EarlyBird, Mask, make_mask
from gebt.prune.tie_breaking import TieBreaker
from gebt.train.consistency import check_same_on_all_ranks, digest
from gebt.train.edge_values import NAMES, EdgeValueStore
from gebt.train.shards import Shards

KINDS = [torch.float32, torch.float64]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(count: int, kind: torch.dtype, step: int) -> list[tuple[Tensor, Tensor]]:
    """Scattered pairs and their gradients; a pair may be in several batches, or in none."""
    generator = seeded(step)
    drawn = [torch.randperm(count, generator=generator)[: count // 3] for _ in range(2)]
    return [(ids, torch.randn(ids.numel(), dtype=kind, generator=generator)) for ids in drawn]


def whole(values: EdgeValueStore) -> Tensor:
    return values.read(torch.arange(values.count))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("l1", [0.0, 0.03])
@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("run", [64, 1 << 18])
def test_steps_are_those_of_adam_on_the_whole_tensor(
    kind: torch.dtype, l1: float, in_files: bool, run: int, tmp_path: Path
) -> None:
    count = 1000
    values = EdgeValueStore(
        count, learning_rate=0.02, l1=l1, dtype=kind, folder=tmp_path if in_files else None, run=run, betas=(0.8, 0.99)
    )
    plain = torch.ones(count, dtype=kind, requires_grad=True)
    adam = torch.optim.Adam([plain], lr=0.02, betas=(0.8, 0.99), fused=True)
    for step in range(5):
        (l1 * plain.abs().sum()).backward()
        for ids, gradient in batches(count, kind, step):
            values.add_gradient(ids, gradient)
            (plain[ids] * gradient).sum().backward()
        values.step()
        adam.step()
        adam.zero_grad(set_to_none=False)
        last = count // 16 * 16
        torch.testing.assert_close(whole(values), plain.detach(), rtol=1e-6 if kind == torch.float32 else 1e-14, atol=0)
        if not l1:  # which autograd adds first, not last
            assert torch.equal(whole(values)[:last], plain.detach()[:last])


def test_a_step_does_not_depend_on_where_a_value_lies() -> None:
    few, many = (EdgeValueStore(count, learning_rate=0.01, dtype=torch.float64) for count in (3, 1000))
    generator = seeded()
    for _ in range(20):
        gradient = torch.randn(3, dtype=torch.float64, generator=generator)
        few.add_gradient(torch.arange(3), gradient)
        many.add_gradient(torch.arange(100, 103), gradient)
        few.step()
        many.step()
    assert torch.equal(whole(few), whole(many)[100:103])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weight", [None, "tensor", "function"])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_masks_are_those_of_select(kind: torch.dtype, weight: str | None, ratio: float, tmp_path: Path) -> None:
    count, order = 777, TieBreaker(3)
    values = EdgeValueStore(count, learning_rate=0.1, dtype=kind, folder=tmp_path, run=128)
    ids = torch.randperm(count, generator=seeded())[:400]  # the others stay 1, and tie
    values.add_gradient(ids, torch.randn(400, dtype=kind, generator=seeded(1)))
    values.step()
    table = torch.rand(count, generator=seeded(2)).mul(4).ceil()
    given = {None: None, "tensor": table, "function": lambda numbers: table[numbers]}[weight]
    scores = whole(values).abs() * (1 if weight is None else table)
    mask = values.draw(ratio, order, given)
    assert list(mask) == ["edges"]
    assert mask == make_mask({"edges": scores}, ratio=ratio, tie_break=order, allow_empty=True)
    assert mask.kept == int(mask["edges"].sum())


@pytest.mark.parametrize("in_files", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_a_saved_state_goes_on_bit_for_bit(in_files: bool, mapped: bool, tmp_path: Path) -> None:
    folder = tmp_path / "values" if in_files else None
    through = EdgeValueStore(300, learning_rate=0.02, l1=0.01, folder=folder, run=64)

    def epoch(values: EdgeValueStore, step: int, saved: io.BytesIO | Path | None = None) -> None:
        for ids, gradient in batches(300, torch.float32, step):
            values.add_gradient(ids, gradient)
            if saved:  # in the middle of an epoch, the gradient half there
                torch.save(values.state_dict(), saved)
                saved = None
        values.step()

    for step in range(3):
        epoch(through, step)
    epoch(through, 3, tmp_path / "state.pt")
    resumed = EdgeValueStore(300, learning_rate=0.02, l1=0.01, folder=folder, run=128)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", mmap=mapped, weights_only=True))
    ids, gradient = batches(300, torch.float32, 3)[1]
    resumed.add_gradient(ids, gradient)
    resumed.step()
    for step in range(4, 6):
        epoch(through, step)
        epoch(resumed, step)
    assert digest(through.state_dict()) == digest(resumed.state_dict())


def test_files_are_gone_with_the_values(tmp_path: Path) -> None:
    values = EdgeValueStore(10, learning_rate=0.1, folder=tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    assert torch.equal(whole(values), torch.ones(10))


def test_pages_in_files_do_not_stay_in_memory(tmp_path: Path) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("RssFile", "RssShmem")))

    order, before = TieBreaker(0), resident()
    values = EdgeValueStore(8_000_000, learning_rate=0.1, folder=tmp_path)  # 128 MB
    values.step()
    assert values.draw(0.5, order).kept == 4_000_000
    assert resident() - before < 20_000  # kB


def test_gradients_and_values_of_pairs_that_are_not_there_are_refused() -> None:
    values = EdgeValueStore(10, learning_rate=0.1)
    for ids in (torch.tensor([3, 10]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=r"numbers of pairs \(got .*\), expected 0 to 9"):
            values.read(ids)
    with pytest.raises(ValueError, match=r"gradient \(got torch.float64 \(2,\)\), expected torch.float32 \(2,\)"):
        values.add_gradient(torch.tensor([1, 2]), torch.ones(2).double())
    with pytest.raises(ValueError, match=r"gradient \(got torch.float32 \(3,\)\)"):
        values.add_gradient(torch.tensor([1, 2]), torch.ones(3))


def test_a_nan_value_is_refused_when_a_mask_is_drawn() -> None:
    values = EdgeValueStore(10, learning_rate=0.1)
    values.add_gradient(torch.tensor([4]), torch.tensor([float("nan")]))
    values.step()
    with pytest.raises(ValueError, match=r"scores \(got NaN for 1 of 10 entries\)"):
        values.draw(0.5, TieBreaker(0))


def test_other_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"type of the values \(got torch.float16\)"):
        EdgeValueStore(10, learning_rate=0.1, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"run \(got 100\), expected a multiple of 64"):
        EdgeValueStore(10, learning_rate=0.1, run=100)
    with pytest.raises(ValueError, match=r"shards \(got 9 pairs\), expected 10"):
        EdgeValueStore(10, learning_rate=0.1, shards=Shards(torch.zeros(9), rank=0, world=1))


def test_the_state_of_other_pairs_is_refused() -> None:
    state = EdgeValueStore(10, learning_rate=0.1).state_dict()
    with pytest.raises(ValueError, match=r"state of .value. \(got \(10, torch.float32, \(10,\)\)\), expected \(11, "):
        EdgeValueStore(11, learning_rate=0.1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"expected \(10, torch.float64, \(10,\)\)"):
        EdgeValueStore(10, learning_rate=0.1, dtype=torch.float64).load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"process of the state \(got \(1, 3\)\), expected \(0, 1\) \(rank, processes\)"
    ):
        EdgeValueStore(10, learning_rate=0.1).load_state_dict(state | {"process": (1, 3)})
    assert set(NAMES) < state.keys()


def test_no_pair_at_all() -> None:
    values = EdgeValueStore(0, learning_rate=0.1)
    values.add_gradient(torch.empty(0, dtype=torch.long), torch.empty(0))
    values.step()
    assert whole(values).shape == (0,)
    assert values.draw(0.5, TieBreaker(0))["edges"].shape == (0,)


def test_pairs_belong_to_the_process_of_the_part_of_their_smaller_end() -> None:
    pairs = torch.tensor([[0, 5, 2, 3, 4], [1, 0, 4, 5, 5]])
    parts = torch.tensor([2, 0, 1, 3, 0, 1])
    owners = [2, 2, 1, 3, 0]
    for world in (1, 2, 3, 9):
        shards = [
            Shards.by_smaller_end([(slice(None), pairs)], 5, parts, rank=rank, world=world) for rank in range(world)
        ]
        assert shards[0].owner.tolist() == [part * world // 4 for part in owners]
        assert torch.cat([own.own for own in shards]).sort().values.tolist() == list(range(5))
        for own in shards:
            assert own.local(own.own.long()).tolist() == list(range(own.own.numel()))


def test_shards_of_many_pairs() -> None:
    nodes = torch.randint(50, (2, 600_000), generator=seeded())
    parts = torch.arange(50)
    runs = [(slice(begin, begin + 250_000), nodes[:, begin : begin + 250_000]) for begin in range(0, 600_000, 250_000)]
    shards = Shards.by_smaller_end(runs, 600_000, parts, rank=1, world=3)
    assert torch.equal(shards.owner, (nodes.amin(0) * 3 // 50).to(torch.uint8))
    assert torch.equal(shards.own.long(), (shards.owner == 1).nonzero().squeeze(1))


def test_a_process_that_is_not_there_owns_nothing() -> None:
    with pytest.raises(ValueError, match=r"owners \(got 0 to 2 for 2 processes\), expected 0 to 1"):
        Shards(torch.tensor([0, 1, 2]), rank=0, world=2)
    with pytest.raises(ValueError, match=r"rank \(got 2 of 2 processes\), expected 0 to 1"):
        Shards(torch.tensor([0, 1]), rank=2, world=2)
    assert Shards(torch.tensor([0, 299]), rank=299, world=300).own.tolist() == [1]


def test_fingerprints_tell_things_apart() -> None:
    kept = torch.rand(100, generator=seeded()) < 0.5
    things = [
        1, 1.0, True, "1", b"1", None, [1], [[1]], [1, None], {"a": 1}, {"b": 1}, ["ab", "c"], ["a", "bc"],
        torch.ones(2), torch.ones(2).double(), torch.ones(2, 1), torch.ones(2).bfloat16(), torch.tensor(1),
        Mask({"edges": kept}), Mask({"weights": kept}), Mask({"edges": ~kept}), Mask({"edges": kept.view(4, 25)}),
    ]  # fmt: skip
    assert len({digest(thing) for thing in things}) == len(things)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match=r"thing to compare \(got object\), expected numbers"):
        digest(object())


def test_masks_have_one_fingerprint_as_bits_and_as_tensors() -> None:
    drawn = EdgeValueStore(100, learning_rate=0.1).draw(0.3, TieBreaker(1))
    assert drawn.words is not None
    assert digest(drawn) == digest(Mask({"edges": drawn["edges"].clone()}))
    bird = EarlyBird()
    bird.update(drawn)
    assert digest(bird.state_dict()) != digest(EarlyBird().state_dict())


def test_one_process_agrees_with_itself() -> None:
    check_same_on_all_ranks("options", "anything")
