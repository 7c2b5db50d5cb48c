from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gebt.models import GCN
from gebt.sparse.compaction import Group, check_pruned_are_zero, live_units, scattered, sliced

LAYERS = {"w0": (4, 3), "w1": (3, 4), "w2": (2, 3)}
CHAIN = [
    Group("features", [], [("w0", 1)]),
    Group("first", [("w0", 0), ("b0", 0)], [("w1", 1)]),
    Group("second", [("w1", 0), ("b1", 0)], [("w2", 1)]),
]
STATE = {
    **{name: torch.arange(1.0, 1 + a * b).view(a, b) for name, (a, b) in LAYERS.items()},
    "b0": torch.arange(4.0),
    "b1": torch.arange(3.0),
    "b2": torch.arange(2.0),
    "steps": torch.tensor(7),
}


def mask_of(**pruned: list[tuple[int, int]]) -> dict[str, Tensor]:
    mask = {name: torch.ones(shape, dtype=torch.bool) for name, shape in LAYERS.items()}
    for name, entries in pruned.items():
        for row, col in entries:
            mask[name][row, col] = False
    return mask


def live(mask: Mapping[str, Tensor], groups: Sequence[Group] = CHAIN) -> dict[str, list[int]]:
    return {name: units.tolist() for name, units in live_units(groups, STATE, mask).items()}


ALL = {"features": [0, 1, 2], "first": [0, 1, 2, 3], "second": [0, 1, 2]}


def test_without_pruned_entries_everything_is_live() -> None:
    assert live(mask_of()) == live({}) == ALL


def test_a_unit_is_live_while_one_weight_reads_it() -> None:
    assert live(mask_of(w2=[(0, 1)])) == ALL
    assert live(mask_of(w2=[(0, 1), (1, 1)])) == ALL | {"second": [0, 2]}


def test_a_unit_that_nothing_makes_stays_since_its_bias_is_read() -> None:
    assert live(mask_of(w1=[(1, unit) for unit in range(4)])) == ALL


def test_a_unit_whose_only_reader_is_dead_is_dead_and_so_on_to_the_features() -> None:
    """Feature 2 is read by unit 3 alone, unit 3 by unit 0 of the next layer alone, and that by no output."""
    mask = mask_of(
        w0=[(0, 2), (1, 2), (2, 2)],
        w1=[(1, 3), (2, 3)],
        w2=[(0, 0), (1, 0)],
    )
    assert live(mask) == {"features": [0, 1], "first": [0, 1, 2], "second": [1, 2]}


def test_a_group_that_nothing_reads_keeps_its_first_unit_and_what_that_reads() -> None:
    mask = mask_of(w2=[(row, col) for row in range(2) for col in range(3)], w1=[(0, 1), (0, 2)])
    assert live(mask) == {"features": [0, 1, 2], "first": [0, 3], "second": [0]}


def test_tensors_that_the_mask_lacks_are_read_in_full() -> None:
    mask = mask_of(w2=[(0, 1), (1, 1)])
    assert live({"w2": mask["w2"]}) == ALL | {"second": [0, 2]}
    assert live({name: mask[name] for name in ("w0", "w1")}) == ALL


STREAM = [
    Group("features", [], [("w0", 1)]),
    Group("hidden", [("w0", 0), ("w1", 0)], [("w1", 1), ("w2", 1)]),
]


def stream(reads: Mapping[str, list[tuple[int, int]]]) -> list[int]:
    """Live units of a residual stream of 4 in which only the given entries are kept."""
    shapes = {"w0": (4, 3), "w1": (4, 4), "w2": (2, 4)}
    mask = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    for name, entries in reads.items():
        for row, col in entries:
            mask[name][row, col] = True
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return live_units(STREAM, state, mask)["hidden"].tolist()


def test_in_a_stream_a_unit_is_live_when_any_layer_reads_it_into_something_live() -> None:
    assert stream({"w2": [(0, 1)]}) == [1]
    assert stream({"w2": [(0, 1)], "w1": [(1, 3)]}) == [1, 3]
    assert stream({"w2": [(0, 1)], "w1": [(1, 3), (3, 0)]}) == [0, 1, 3]


def test_in_a_stream_units_that_only_dead_ones_or_they_themselves_read_are_dead() -> None:
    assert stream({"w2": [(0, 1)], "w1": [(2, 2)]}) == [1]
    assert stream({"w2": [(0, 1)], "w1": [(2, 3), (3, 0), (0, 2)]}) == [1]
    assert stream({"w1": [(2, 3), (3, 2)]}) == [0]


def reachable(groups: Sequence[Group], state: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, set[int]]:
    """By the definition: from the outputs back along kept weights, one entry after the other."""
    maker = {name: group.name for group in groups for name, dim in group.made if dim == 0}
    reader = {name: group.name for group in groups for name, dim in group.read if dim == 1}
    found: dict[str, set[int]] = {group.name: set() for group in groups}
    moved = True
    while moved:
        moved = False
        for name, source in reader.items():
            kept = mask[name] if name in mask else torch.ones_like(state[name])
            for row, col in kept.nonzero().tolist():
                if (name not in maker or row in found[maker[name]]) and col not in found[source]:
                    found[source].add(col)
                    moved = True
    return found


@given(
    seed=st.integers(0, 999),
    depth=st.integers(1, 4),
    share=st.sampled_from([0.1, 0.2, 0.4, 0.8]),
    residual=st.booleans(),
    norm=st.sampled_from([None, "batch"]),
)
def test_live_units_are_those_that_the_outputs_reach(
    seed: int, depth: int, share: float, residual: bool, norm: str | None
) -> None:
    model = GCN(5, 4, 2, depth, norm=norm, residual=residual)
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    mask = {
        name: torch.rand(tensor.shape, generator=generator) < share
        for name, tensor in state.items()
        if name.endswith("lin.weight")
    }
    found = {name: set(units.tolist()) for name, units in live_units(model.groups(), state, mask).items()}
    expected = reachable(model.groups(), state, mask)
    # Where nothing is reached a unit stays for form's sake, and those that it reads with it.
    emptied = [name for name, units in expected.items() if not units]
    assert all(found[name] == {0} for name in emptied[-1:])
    assert emptied or found == expected
    assert all(found[name] >= expected[name] for name in found)


def test_slices_are_the_live_units_and_tensors_of_no_group_stay_whole() -> None:
    live = {"features": torch.tensor([0, 2]), "first": torch.tensor([1, 3]), "second": torch.tensor([2])}
    small = sliced(STATE, CHAIN, live)
    assert torch.equal(small["w0"], STATE["w0"][[1, 3]][:, [0, 2]])
    assert torch.equal(small["w1"], STATE["w1"][[2]][:, [1, 3]])
    assert torch.equal(small["w2"], STATE["w2"][:, [2]])
    assert (small["b0"].tolist(), small["b1"].tolist(), small["b2"].tolist()) == ([1.0, 3.0], [2.0], [0.0, 1.0])
    assert small["steps"] is STATE["steps"]
    assert all(tensor.is_contiguous() for tensor in small.values())
    assert sliced({"b0": STATE["b0"]}, CHAIN, live).keys() == {"b0"}


def test_spreading_writes_the_live_units_and_nothing_else() -> None:
    live = {"features": torch.tensor([0, 2]), "first": torch.tensor([1, 3]), "second": torch.tensor([2])}
    before = {name: tensor.clone() for name, tensor in STATE.items()}
    small = {name: -tensor - 100 for name, tensor in sliced(STATE, CHAIN, live).items()}
    full = scattered(small, STATE, CHAIN, live)
    again = sliced(full, CHAIN, live)
    assert all(torch.equal(again[name], tensor) for name, tensor in small.items())
    touched = {name: int((full[name] != before[name]).sum()) for name in full}
    assert touched == {name: small[name].numel() for name in small}
    assert all(torch.equal(STATE[name], tensor) for name, tensor in before.items())


def test_a_pruned_entry_that_is_not_zero_is_refused_by_name() -> None:
    mask = mask_of(w1=[(0, 0), (2, 3)])
    state = {name: tensor.clone() for name, tensor in STATE.items()}
    state["w1"][0, 0] = 0.0
    message = r"compaction \(got 1 non-zero pruned entries in 'w1'\), expected zeros, .*; apply the mask to the weights"
    with pytest.raises(ValueError, match=message):
        check_pruned_are_zero(state, mask)
    state["w1"][2, 3] = float("nan")
    with pytest.raises(ValueError, match="got 1 non-zero"):
        check_pruned_are_zero(state, mask)
    state["w1"][2, 3] = 0.0
    check_pruned_are_zero(state, mask)
