from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from gebt.graph import Edges, Graph
from gebt.models import GCN
from gebt.prune import Mask, magnitude, prunable_weights, select
from gebt.ticket import EDGES, Ticket, TicketError, make_ticket
from gebt.train.loop import copy_state

PROVENANCE = {
    "method": "test",
    "seed": 0,
    "edge_ratio": 0.5,
    "weight_ratio": 0.5,
    "epoch_drawn": 4,
    "fired": True,
    "settings": {"window": 3, "name": "é"},
}
State = dict[str, Tensor]


def model_of(graph: Graph, seed: int = 0, hidden: int = 6) -> GCN:
    return GCN(graph.num_features, hidden, graph.num_classes, seed=seed)


def drawn_ticket(graph: Graph) -> Ticket:
    """As after a search: the weights have moved since the start, biases are no longer zero."""
    model = model_of(graph)
    initial = copy_state(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    edge_mask = select({EDGES: torch.rand(graph.num_pairs, generator=generator)}, ratio=0.4)
    weight_mask = select(magnitude(prunable_weights(model)), ratio=0.7)
    return make_ticket(model, graph, edge_mask, weight_mask, initial, PROVENANCE)


@pytest.fixture(scope="module")
def ticket(toy: Graph) -> Ticket:
    return drawn_ticket(toy)


@pytest.fixture(scope="module")
def content(ticket: Ticket, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return ticket.save(tmp_path_factory.mktemp("saved") / "ticket.safetensors").read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "ticket.safetensors"


def equal_states(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rewritten(
    content: bytes,
    path: Path,
    header: Callable[[Any], Any] = lambda h: h,
    tensors: dict[str, Tensor | None] | None = None,
) -> Path:
    """The ticket with another header, and with some tensors replaced (by None: left out)."""
    path.write_bytes(content)
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["gebt"])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    stored = {name: tensor for name, tensor in (stored | (tensors or {})).items() if tensor is not None}
    text = header(head)
    path.write_bytes(to_safetensors(stored, {"gebt": text if isinstance(text, str) else json.dumps(text)}))
    return path


def test_a_loaded_ticket_is_the_saved_one_in_every_part(ticket: Ticket, tmp_path: Path) -> None:
    again = Ticket.load(ticket.save(tmp_path / "t"))
    assert again.edge_mask == ticket.edge_mask
    assert again.weight_mask == ticket.weight_mask
    assert equal_states(again.drawn, ticket.drawn)
    assert equal_states(again.initial, ticket.initial)
    assert again.provenance == ticket.provenance
    assert (again.epoch_drawn, again.fired) == (4, True)
    assert again.edge_sparsity == ticket.edge_sparsity == ticket.edge_mask.sparsity
    assert again.weight_sparsity == ticket.weight_sparsity == ticket.weight_mask.sparsity


def test_equal_tickets_are_equal_bytes(toy: Graph, ticket: Ticket, content: bytes, tmp_path: Path) -> None:
    assert drawn_ticket(toy).save(tmp_path / "again").read_bytes() == content
    assert Ticket.load(ticket.save(tmp_path / "t")).save(tmp_path / "resaved").read_bytes() == content


def test_a_file_holds_the_kept_weights_only(ticket: Ticket, content: bytes, scratch: Path) -> None:
    scratch.write_bytes(content)
    with safe_open(scratch, framework="pt") as file:
        for name, kept in ticket.weight_mask.items():
            assert file.get_tensor(f"drawn.{name}").shape == (int(kept.sum()),)
            assert file.get_tensor(f"mask.{name}").numel() == (kept.numel() + 7) // 8


def test_odd_shapes_and_buffers_round_trip(toy: Graph, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.Linear(1, 1))
    mask = Mask({"0.weight": torch.arange(45).view(5, 3, 3) % 2 == 0, "2.weight": torch.zeros(1, 1, dtype=torch.bool)})
    edges = Mask.ones({EDGES: toy.pairs[0]})
    ticket = make_ticket(model, toy, edges, mask, copy_state(model), PROVENANCE)
    again = Ticket.load(ticket.save(tmp_path / "t"))
    assert again.weight_mask == mask
    assert equal_states(again.drawn, ticket.drawn)
    assert again.drawn["1.num_batches_tracked"].dtype == torch.int64


def test_pruned_entries_are_zero_in_both_states_and_the_model_is_untouched(toy: Graph) -> None:
    model = model_of(toy)
    before = copy_state(model)
    mask = select(magnitude(prunable_weights(model)), ratio=0.5)
    made = make_ticket(model, toy, Mask.ones({EDGES: toy.pairs[0]}), mask, before, PROVENANCE)
    assert equal_states(copy_state(model), before)
    for state in (made.drawn, made.initial):
        for name, kept in mask.items():
            assert not state[name][~kept].any()
            assert torch.equal(state[name][kept], before[name][kept])


def test_a_weight_mask_of_what_the_model_lacks_is_refused(toy: Graph) -> None:
    model = model_of(toy)
    mask = Mask({"convs.0.bias": torch.ones(6, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"weight mask \(got tensors \['convs.0.bias'\]\), expected only"):
        make_ticket(model, toy, Mask.ones({EDGES: toy.pairs[0]}), mask, copy_state(model), PROVENANCE)


def test_inherited_weights_give_the_forward_of_the_ticket(toy: Graph, ticket: Ticket, tmp_path: Path) -> None:
    source, target = model_of(toy, seed=5).eval(), model_of(toy, seed=9).eval()
    source.load_state_dict(ticket.drawn)
    loaded = Ticket.load(ticket.save(tmp_path / "t"))
    loaded.check(target, toy)
    loaded.start(target)
    edges = Edges.from_pairs(toy.pairs[:, ticket.edge_mask[EDGES]], toy.num_nodes)
    assert torch.equal(target(toy.features, edges), source(toy.features, edges))


@pytest.mark.parametrize("how", ["inherit", "rewind", "reinit"])
def test_start_weights_are_those_asked_for_on_kept_entries_and_zero_elsewhere(
    toy: Graph, ticket: Ticket, how: Any
) -> None:
    model = model_of(toy, seed=9)
    ticket.start(model, how, seed=3)
    expected = {
        "inherit": ticket.drawn,
        "rewind": model_of(toy, seed=0).state_dict(),
        "reinit": model_of(toy, seed=3).state_dict(),
    }[how]
    for name, tensor in model.state_dict().items():
        kept = ticket.weight_mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor[kept], expected[name][kept])
        assert not tensor[~kept].any()


def test_training_from_a_ticket_does_not_write_into_it(toy: Graph, ticket: Ticket) -> None:
    model = model_of(toy)
    ticket.start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(8.0)
    assert not any((tensor == 8).any() for tensor in ticket.drawn.values())


def test_unknown_start_weights_are_refused(toy: Graph, ticket: Ticket) -> None:
    with pytest.raises(ValueError, match=r"start weights \(got 'resume'\), expected 'inherit', 'rewind' or 'reinit'"):
        ticket.start(model_of(toy), "resume")  # type: ignore[arg-type]


def test_a_ticket_fits_its_own_graph_and_model(toy: Graph, ticket: Ticket) -> None:
    ticket.check(model_of(toy, seed=3), replace(toy, name="renamed"))


@pytest.mark.parametrize("changed", ["features", "labels", "train_mask"])
def test_a_graph_of_other_data_is_refused(toy: Graph, ticket: Ticket, changed: str) -> None:
    other = replace(toy, **{changed: getattr(toy, changed).flip(0)})
    with pytest.raises(TicketError, match=r"graph 'toy' \(got fingerprint .*\.\.\.\), expected .* as in the ticket"):
        ticket.check(model_of(toy), other)


def test_a_graph_of_another_size_is_refused(toy: Graph, ticket: Ticket, make_graph: Callable[..., Graph]) -> None:
    other = make_graph(nodes=15, name="other")
    with pytest.raises(TicketError, match=rf"graph 'other' \(got {other.num_pairs} pairs\), expected {toy.num_pairs}"):
        ticket.check(model_of(toy), other)


def test_another_model_is_refused_by_what_differs(toy: Graph, ticket: Ticket) -> None:
    sizes = toy.num_features, 6, toy.num_classes
    with pytest.raises(TicketError, match=r"tensor 'convs.0.bias' of the model \(got shape \(7,\)\), expected \(6,\)"):
        ticket.check(model_of(toy, hidden=7), toy)
    with pytest.raises(TicketError, match=r"model \(got no tensor 'convs.1.bias'\), expected one of shape"):
        ticket.check(GCN(toy.num_features, 6, 6, depth=1), toy)
    deeper = GCN(*sizes[:2], 6, depth=3)
    deeper.convs[1] = model_of(toy).convs[1]
    with pytest.raises(TicketError, match=r"model \(got tensors \['convs.2.bias', 'convs.2.lin.weight'\] that the"):
        ticket.check(deeper, toy)


def test_a_file_that_is_no_ticket_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(TicketError, match=rf"ticket .*{path.name} \(got .*{message}"):
            Ticket.load(path)

    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    refused(tmp_path / "absent", "no such file")
    refused(tmp_path, "no such file")
    refused(file("empty", b""), "expected a safetensors file")
    refused(file("giant", (2**60).to_bytes(8, "little") + b"{" * 100), f"a header of {2**60} bytes")
    refused(file("long", (2**20 + 1).to_bytes(8, "little") + b" " * 2**21), "a header of 1048577 bytes")
    refused(file("pickled", pickle.dumps({"a": 1}) + b"\x00" * 64), "a header of")
    refused(file("foreign", to_safetensors({"w": torch.ones(2)})), "'gebt'")
    refused(file("text", to_safetensors({"w": torch.ones(2)}, {"gebt": "{"})), "expected a safetensors file")
    refused(file("list", to_safetensors({"w": torch.ones(2)}, {"gebt": "[]"})), "format list")
    refused(file("longer", content + b"\x00"), "expected a safetensors file")


def test_a_ticket_cut_anywhere_is_refused(content: bytes, scratch: Path) -> None:
    for length in [*range(0, len(content), 97), len(content) - 1]:
        scratch.write_bytes(content[:length])
        with pytest.raises(TicketError, match="got"):
            Ticket.load(scratch)


@pytest.mark.parametrize("number", [0, 2, None, "1", [1]])
def test_another_format_is_refused(content: bytes, scratch: Path, number: object) -> None:
    with pytest.raises(TicketError, match=r"\(got format .*\), expected format 1; update gebt or search again"):
        Ticket.load(rewritten(content, scratch, lambda head: head | {"format": number}))


@pytest.mark.parametrize(
    "change",
    [
        {"pairs": 3},
        {"pairs": -1},
        {"pairs": None},
        {"pairs": 2**40},
        {"masked": []},
        {"masked": None},
        {"masked": ["convs.9.lin.weight"]},
        {"shapes": {}},
        {"shapes": {"convs.0.lin.weight": [-6, -5]}},
        {"provenance": {}},
        {"provenance": None},
        {"pairs": []},
        {"pairs": float("inf")},
        {"shapes": []},
        {"shapes": None},
    ],
    ids=str,
)
def test_a_header_that_fits_not_the_tensors_is_refused(content: bytes, scratch: Path, change: dict[str, Any]) -> None:
    with pytest.raises(TicketError, match=r"got broken content: .*expected format 1"):
        Ticket.load(rewritten(content, scratch, lambda head: head | change))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("drawn.convs.0.bias", None),
        ("mask.edges", None),
        ("mask.edges", torch.zeros(1, dtype=torch.uint8)),
        ("mask.convs.0.lin.weight", torch.zeros(4, dtype=torch.uint8)),
        ("drawn.convs.0.lin.weight", torch.zeros(3)),
        ("drawn.convs.0.bias", torch.full((6,), float("nan"))),
        ("initial.convs.1.lin.weight", torch.full((6,), float("inf"))),
        ("extra", torch.zeros(1)),
        ("drawn.convs.0.bias", torch.zeros(5)),
        ("drawn.convs.0.bias", torch.zeros(6, dtype=torch.float8_e4m3fn)),
        ("drawn.convs.0.bias", torch.zeros(6, dtype=torch.complex64)),
    ],
)
def test_tensors_that_fit_not_the_header_are_refused(
    content: bytes, scratch: Path, name: str, tensor: Tensor | None
) -> None:
    with pytest.raises(TicketError, match=r"got broken content: .*expected format 1"):
        Ticket.load(rewritten(content, scratch, tensors={name: tensor}))


def test_a_header_nested_without_end_is_refused(content: bytes, scratch: Path) -> None:
    with pytest.raises(TicketError, match="got"):
        Ticket.load(rewritten(content, scratch, lambda _: "[" * 100_000))


def test_a_fingerprint_that_is_no_text_is_refused(content: bytes, scratch: Path) -> None:
    with pytest.raises(TicketError, match="got"):
        Ticket.load(rewritten(content, scratch, lambda h: h | {"provenance": h["provenance"] | {"fingerprint": 3}}))


@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_a_sound_ticket_or_a_ticket_error(
    content: bytes, scratch: Path, changes: list[tuple[float, int]]
) -> None:
    changed = bytearray(content)
    for share, value in changes:
        changed[int(share * len(changed))] = value
    scratch.write_bytes(changed)
    try:
        loaded = Ticket.load(scratch)
    except TicketError:
        return
    for state in (loaded.drawn, loaded.initial):
        for name, kept in loaded.weight_mask.items():
            assert not state[name][~kept].any()
        assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_no_changed_byte_of_the_header_breaks_the_reader(content: bytes, scratch: Path) -> None:
    length = 8 + int.from_bytes(content[:8], "little")
    for place in (place for place in range(length) if content[place] in b"0123456789[]{},:"):
        for value in b"9e":
            scratch.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            with suppress(TicketError):
                Ticket.load(scratch)


def test_a_failed_save_leaves_the_old_ticket_whole(ticket: Ticket, content: bytes, tmp_path: Path) -> None:
    path = ticket.save(tmp_path / "ticket")
    broken = replace(ticket, provenance={"settings": object()})
    with pytest.raises(TypeError, match="JSON"):
        broken.save(path)
    with pytest.raises(OSError, match="ticket"):
        ticket.save(path / "inside")
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_ticket_that_could_not_be_loaded_is_not_saved(ticket: Ticket, tmp_path: Path) -> None:
    bias = torch.full((6,), float("inf"))
    with pytest.raises(TicketError, match="finite"):
        replace(ticket, drawn=ticket.drawn | {"convs.0.bias": bias}).save(tmp_path / "t")


@pytest.mark.parametrize(("key", "value"), [("seed", "x"), ("edge_ratio", None), ("method", 1), ("epoch_drawn", 1.5)])
def test_a_provenance_that_readers_cannot_rely_on_is_refused(
    content: bytes, scratch: Path, key: str, value: object
) -> None:
    with pytest.raises(TicketError, match=rf"provenance '{key}' \(got {value!r}\), expected"):
        Ticket.load(rewritten(content, scratch, lambda h: h | {"provenance": h["provenance"] | {key: value}}))


def test_no_ticket_is_made_that_could_not_be_loaded(toy: Graph) -> None:
    model = model_of(toy)
    mask = Mask.ones(prunable_weights(model))
    edges = Mask({"edges": torch.ones(toy.num_pairs, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"provenance 'seed' \(got None\)"):
        make_ticket(model, toy, edges, mask, copy_state(model), {k: v for k, v in PROVENANCE.items() if k != "seed"})
