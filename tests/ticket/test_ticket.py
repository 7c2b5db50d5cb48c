from __future__ import annotations

import json
import pickle
import tracemalloc
import zlib
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
from gebt.graph.edges import EDGES
from gebt.models import GCN
from gebt.prune import Mask, magnitude, make_mask, prunable_weights
from gebt.prune.mask import pack_bits
from gebt.sparse import memory
from gebt.ticket import Seeded, Ticket, TicketError, make_ticket
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


def model_of(graph: Graph, seed: int = 0, hidden: int = 6, **options: Any) -> GCN:
    return GCN(graph.num_features, hidden, graph.num_classes, seed=seed, **options)


def moved(model: nn.Module, seed: int = 1) -> None:
    """As after training: every parameter has moved, biases are no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)


def drawn_ticket(graph: Graph, pretrained: bool = False) -> Ticket:
    """As after a search: the weights have moved since the start. `pretrained`: they had moved before it as well."""
    model = model_of(graph)
    if pretrained:
        moved(model, seed=2)
    initial = copy_state(model)
    generator = torch.Generator().manual_seed(1)
    moved(model)
    edge_mask = make_mask({EDGES: torch.rand(graph.num_pairs, generator=generator)}, ratio=0.4)
    weight_mask = make_mask(magnitude(prunable_weights(model)), ratio=0.7)
    return make_ticket(model, graph, edge_mask, weight_mask, initial, PROVENANCE)


@pytest.fixture(scope="module")
def ticket(toy: Graph) -> Ticket:
    return drawn_ticket(toy)


@pytest.fixture(scope="module")
def stored(toy: Graph) -> Ticket:
    """A ticket whose initial weights no seed draws again."""
    return drawn_ticket(toy, pretrained=True)


@pytest.fixture(scope="module", params=["seeded", "stored"])
def either(request: pytest.FixtureRequest, ticket: Ticket, stored: Ticket) -> Ticket:
    return {"seeded": ticket, "stored": stored}[request.param]


@pytest.fixture(scope="module")
def content(ticket: Ticket, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return ticket.save(tmp_path_factory.mktemp("saved") / "ticket.safetensors").read_bytes()


@pytest.fixture(scope="module")
def stored_content(stored: Ticket, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return stored.save(tmp_path_factory.mktemp("saved") / "ticket.safetensors").read_bytes()


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


def test_a_loaded_ticket_is_the_saved_one_in_every_part(either: Ticket, tmp_path: Path) -> None:
    ticket, again = either, Ticket.load(either.save(tmp_path / "t"))
    assert again.edge_mask == ticket.edge_mask
    assert again.weight_mask == ticket.weight_mask
    assert equal_states(again.state_at_draw, ticket.state_at_draw)
    if isinstance(ticket.initial_state, Seeded):
        assert again.initial_state == ticket.initial_state
    else:
        assert equal_states(again.initial_state, ticket.initial_state)
    assert again.provenance == ticket.provenance
    assert (again.epoch_drawn, again.fired) == (4, True)
    assert again.edge_sparsity == ticket.edge_sparsity == ticket.edge_mask.sparsity
    assert again.weight_sparsity == ticket.weight_sparsity == ticket.weight_mask.sparsity


def test_equal_tickets_are_equal_bytes(toy: Graph, either: Ticket, tmp_path: Path) -> None:
    content = either.save(tmp_path / "t").read_bytes()
    made_again = drawn_ticket(toy, pretrained=not isinstance(either.initial_state, Seeded))
    assert made_again.save(tmp_path / "again").read_bytes() == content
    assert Ticket.load(tmp_path / "t").save(tmp_path / "resaved").read_bytes() == content


def test_a_file_holds_the_kept_weights_and_deflated_bits_only(either: Ticket, scratch: Path) -> None:
    states = {"state_at_draw": either.state_at_draw} if isinstance(either.initial_state, Seeded) else vars(either)
    with safe_open(either.save(scratch), framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    masks = {f"mask.{name}": kept for name, kept in {**either.edge_mask, **either.weight_mask}.items()}
    groups = [group for group in ("state_at_draw", "initial_state") if group in states]
    assert held.keys() == masks.keys() | {f"{group}.{name}" for group in groups for name in either.state_at_draw}
    for name, kept in masks.items():
        assert zlib.decompress(held[name].numpy().tobytes()) == pack_bits(kept).numpy().tobytes()
    for group in groups:
        for name, tensor in states[group].items():
            kept = either.weight_mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
            assert torch.equal(held[f"{group}.{name}"].flatten(), tensor[kept].flatten())


def test_a_mask_of_whole_rows_costs_next_to_nothing(toy: Graph, tmp_path: Path) -> None:
    model = GCN(toy.num_features, 4000, toy.num_classes)
    mask = Mask(
        {name: torch.arange(len(w)).unsqueeze(1).expand_as(w) < 8 for name, w in prunable_weights(model).items()}
    )
    made = make_ticket(model, toy, Mask.ones({EDGES: toy.pairs[0]}), mask, copy_state(model), PROVENANCE)
    with safe_open(made.save(tmp_path / "t"), framework="pt") as file:
        assert file.get_tensor("mask.convs.0.lin.weight").numel() < 40
        assert pack_bits(mask["convs.0.lin.weight"]).numel() == 2500


def test_odd_shapes_and_buffers_round_trip(toy: Graph, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5), nn.Linear(1, 1))
    mask = Mask({"0.weight": torch.arange(45).view(5, 3, 3) % 2 == 0, "2.weight": torch.zeros(1, 1, dtype=torch.bool)})
    edges = Mask.ones({EDGES: toy.pairs[0]})
    ticket = make_ticket(model, toy, edges, mask, copy_state(model), PROVENANCE)
    again = Ticket.load(ticket.save(tmp_path / "t"))
    assert again.weight_mask == mask
    assert equal_states(again.state_at_draw, ticket.state_at_draw)
    assert equal_states(again.initial_state, ticket.initial_state)
    assert again.state_at_draw["1.num_batches_tracked"].dtype == torch.int64


def test_pruned_entries_are_zero_in_both_states_and_the_model_is_untouched(toy: Graph) -> None:
    model = model_of(toy)
    moved(model)
    before = copy_state(model)
    mask = make_mask(magnitude(prunable_weights(model)), ratio=0.5)
    made = make_ticket(model, toy, Mask.ones({EDGES: toy.pairs[0]}), mask, before, PROVENANCE)
    assert equal_states(copy_state(model), before)
    for state in (made.state_at_draw, made.initial_state):
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
    source.load_state_dict(ticket.state_at_draw)
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
        "inherit": ticket.state_at_draw,
        "rewind": model_of(toy, seed=0).state_dict(),
        "reinit": model_of(toy, seed=3).state_dict(),
    }[how]
    for name, tensor in model.state_dict().items():
        kept = ticket.weight_mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor[kept], expected[name][kept])
        assert not tensor[~kept].any()


@pytest.mark.parametrize("norm", [None, "batch"])
def test_a_rewind_from_a_seed_is_the_initial_state_bit_for_bit_with_pruned_zero(
    toy: Graph, tmp_path: Path, norm: Any
) -> None:
    model = model_of(toy, seed=11, norm=norm)
    initial = copy_state(model)
    moved(model)
    mask = make_mask(magnitude(prunable_weights(model)), ratio=0.6)
    made = make_ticket(model, toy, Mask.ones({EDGES: toy.pairs[0]}), mask, initial, PROVENANCE)
    assert isinstance(made.initial_state, Seeded)
    assert made.initial_state.seed == 11
    target = model_of(toy, seed=3, norm=norm)
    moved(target)
    if norm:
        target.norms[0].module.running_mean.fill_(7.0)
        target.norms[0].module.num_batches_tracked.fill_(7)
    Ticket.load(made.save(tmp_path / "t")).start(target, "rewind")
    for name, kept in mask.items():
        initial[name][~kept] = 0
    assert equal_states(copy_state(target), initial)


def test_a_rewind_from_stored_weights_is_the_initial_state(toy: Graph, stored: Ticket, tmp_path: Path) -> None:
    model, target = model_of(toy), model_of(toy, seed=9)
    moved(model, seed=2)
    Ticket.load(stored.save(tmp_path / "t")).start(target, "rewind")
    stored.weight_mask.apply_(dict(model.named_parameters()))
    assert equal_states(copy_state(target), copy_state(model))


class Noisy(GCN):
    """A network that draws other weights than `GCN` does from the same seed."""

    def reset(self, seed: int) -> None:
        super().reset(seed)
        with torch.no_grad():
            self.convs[0].lin.weight[0, 0].mul_(1 + 1e-6)


def test_a_rewind_from_a_seed_that_draws_other_numbers_is_refused(toy: Graph, ticket: Ticket) -> None:
    model = Noisy(toy.num_features, 6, toy.num_classes)
    ticket.check(model, toy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    message = (
        r"start weights of seed 0 \(got other numbers than the search began with\), expected the same: this version of "
        r"torch, or this model, draws them differently; start from 'inherit'"
    )
    with pytest.raises(TicketError, match=message):
        ticket.start(model, "rewind")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    ticket.start(model, "inherit")
    assert equal_states(copy_state(model), ticket.state_at_draw)


class Unseeded(nn.Module):
    """A network that lists no way to draw its weights again."""

    def __init__(self, **attributes: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).view(2, 3))
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize("attributes", [{}, {"seed": None}, {"seed": 3}, {"seed": 3, "reset": None}], ids=str)
def test_initial_weights_that_no_seed_draws_again_are_stored(toy: Graph, attributes: dict[str, object]) -> None:
    model, mask = Unseeded(**attributes), Mask({"weight": torch.tensor([[True, False, True], [False, True, True]])})
    initial = {"weight": torch.full((2, 3), 4.0)}
    made = make_ticket(model, toy, Mask.ones({EDGES: toy.pairs[0]}), mask, initial, PROVENANCE)
    assert equal_states(made.initial_state, {"weight": 4.0 * mask["weight"]})


def test_initial_weights_that_are_not_those_of_the_seed_are_stored(stored: Ticket) -> None:
    assert isinstance(stored.initial_state, dict)
    assert stored.initial_state.keys() == stored.state_at_draw.keys()


def test_making_a_ticket_draws_nothing_and_leaves_the_model_alone(toy: Graph) -> None:
    model = model_of(toy)
    initial = copy_state(model)
    moved(model)
    before, numbers = copy_state(model), torch.random.get_rng_state()
    mask = Mask.ones(prunable_weights(model))
    assert isinstance(
        make_ticket(model, toy, Mask.ones({EDGES: toy.pairs[0]}), mask, initial, PROVENANCE).initial_state, Seeded
    )
    assert equal_states(copy_state(model), before)
    assert torch.equal(torch.random.get_rng_state(), numbers)


def test_training_from_a_ticket_does_not_write_into_it(toy: Graph, ticket: Ticket) -> None:
    model = model_of(toy)
    ticket.start(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(8.0)
    assert not any((tensor == 8).any() for tensor in ticket.state_at_draw.values())


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


@pytest.mark.parametrize("number", [0, 1, 4, None, "3", [3]])
def test_another_format_is_refused(content: bytes, scratch: Path, number: object) -> None:
    with pytest.raises(TicketError, match=r"\(got format .*\), expected format 3; update gebt or search again"):
        Ticket.load(rewritten(content, scratch, lambda head: head | {"format": number}))


def test_a_file_of_format_1_is_refused(ticket: Ticket, scratch: Path) -> None:
    """As gebt 0.1.0 wrote it: bits that are not deflated, both states in full, no "initial_state" in the header."""
    tensors = {f"mask.{name}": pack_bits(kept) for name, kept in {**ticket.edge_mask, **ticket.weight_mask}.items()}
    for name, tensor in ticket.state_at_draw.items():
        kept = ticket.weight_mask.get(name)
        tensors |= {
            f"{group}.{name}": tensor if kept is None else tensor[kept] for group in ("state_at_draw", "initial_state")
        }
    header = {
        "format": 1,
        "pairs": ticket.edge_mask[EDGES].numel(),
        "shapes": {name: list(tensor.shape) for name, tensor in ticket.state_at_draw.items()},
        "masked": sorted(ticket.weight_mask),
        "provenance": ticket.provenance,
    }
    scratch.write_bytes(to_safetensors({k: v.clone() for k, v in tensors.items()}, {"gebt": json.dumps(header)}))
    with pytest.raises(TicketError, match=r"\(got format 1\), expected format 3; update gebt or search again"):
        Ticket.load(scratch)


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
        {"initial_state": None},
        {"initial_state": {}},
        {"initial_state": 3},
        {"initial_state": {"seed": 0}},
        {"initial_state": {"digest": ""}},
        {"initial_state": {"seed": "zero", "digest": ""}},
        {"initial_state": {"seed": 0.5, "digest": ""}},
        {"initial_state": {"seed": 2**64, "digest": ""}},
        {"initial_state": {"seed": 0, "digest": 5}},
    ],
    ids=str,
)
def test_a_header_that_fits_not_the_tensors_is_refused(content: bytes, scratch: Path, change: dict[str, Any]) -> None:
    with pytest.raises(TicketError, match=r"got broken content: .*expected format 3"):
        Ticket.load(rewritten(content, scratch, lambda head: head | change))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("state_at_draw.convs.0.bias", None),
        ("mask.edges", None),
        ("mask.edges", torch.zeros(1, dtype=torch.uint8)),
        ("mask.convs.0.lin.weight", torch.zeros(4, dtype=torch.uint8)),
        ("state_at_draw.convs.0.lin.weight", torch.zeros(3)),
        ("state_at_draw.convs.0.bias", torch.full((6,), float("nan"))),
        ("initial_state.convs.0.bias", None),
        ("initial_state.convs.0.bias", torch.full((6,), float("inf"))),
        ("extra", torch.zeros(1)),
        ("state_at_draw.convs.0.bias", torch.zeros(5)),
        ("state_at_draw.convs.0.bias", torch.zeros(6, dtype=torch.float8_e4m3fn)),
        ("state_at_draw.convs.0.bias", torch.zeros(6, dtype=torch.complex64)),
    ],
)
def test_tensors_that_fit_not_the_header_are_refused(
    stored_content: bytes, scratch: Path, name: str, tensor: Tensor | None
) -> None:
    with pytest.raises(TicketError, match=r"got broken content: .*expected format 3"):
        Ticket.load(rewritten(stored_content, scratch, tensors={name: tensor}))


def test_stored_initial_weights_beside_a_seed_are_refused(content: bytes, scratch: Path) -> None:
    with pytest.raises(TicketError, match=r"tensors \(got \['initial_state.convs.0.bias'\] beyond the header's\)"):
        Ticket.load(rewritten(content, scratch, tensors={"initial_state.convs.0.bias": torch.zeros(6)}))


def as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


@pytest.mark.parametrize("mask", ["edges", "convs.0.lin.weight"])
@pytest.mark.parametrize(
    "broken",
    [
        lambda bits: zlib.compress(bits + b"\x00", 9),
        lambda bits: zlib.compress(bits[:-1], 9),
        lambda bits: zlib.compress(bits, 9)[:-1],
        lambda bits: zlib.compress(bits, 9)[:-4],
        lambda bits: zlib.compress(bits, 9)[:3],
        lambda bits: zlib.compress(bits, 9)[:-1] + b"\x00",
        lambda bits: zlib.compress(bits, 9) + b"\x00",
        lambda bits: zlib.compress(bits, 9) * 2,
        lambda bits: bits,
    ],
    ids=["longer", "shorter", "cut", "no checksum", "no data", "wrong checksum", "trailing", "twice", "not deflated"],
)
def test_a_mask_that_does_not_inflate_to_its_shape_is_refused(
    ticket: Ticket, content: bytes, scratch: Path, mask: str, broken: Callable[[bytes], bytes]
) -> None:
    bits = pack_bits({**ticket.edge_mask, **ticket.weight_mask}[mask]).numpy().tobytes()
    with pytest.raises(TicketError, match=r"got broken content: .*expected format 3"):
        Ticket.load(rewritten(content, scratch, tensors={f"mask.{mask}": as_tensor(broken(bits))}))


def test_a_stream_that_inflates_to_far_more_is_refused_without_unpacking_it(content: bytes, scratch: Path) -> None:
    bomb = zlib.compress(bytes(1 << 25), 9)
    assert len(bomb) < 1 << 16
    path = rewritten(content, scratch, tensors={"mask.edges": as_tensor(bomb)})
    tracemalloc.start()
    try:
        with pytest.raises(TicketError, match=r"mask \(got 6 bytes or more\), expected 5 for shape \(3[3-9],\)"):
            Ticket.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_header_that_claims_more_than_fits_into_memory_is_refused(
    ticket: Ticket, content: bytes, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file may say that all of a huge tensor is pruned: what it would take is known before it is taken."""
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 64 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert Ticket.load(rewritten(content, scratch)).weight_mask == ticket.weight_mask
    claims = {"mask.edges": as_tensor(zlib.compress(bytes(1 << 14), 9))}
    with pytest.raises(TicketError, match=r"broken content: ticket of \d+ entries .*that are free"):
        Ticket.load(rewritten(content, scratch, lambda head: head | {"pairs": 1 << 17}, claims))


def test_a_header_nested_without_end_is_refused(content: bytes, scratch: Path) -> None:
    with pytest.raises(TicketError, match="got"):
        Ticket.load(rewritten(content, scratch, lambda _: "[" * 100_000))


def test_a_fingerprint_that_is_no_text_is_refused(content: bytes, scratch: Path) -> None:
    with pytest.raises(TicketError, match="got"):
        Ticket.load(rewritten(content, scratch, lambda h: h | {"provenance": h["provenance"] | {"fingerprint": 3}}))


@pytest.mark.parametrize("kind", ["content", "stored_content"])
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_a_sound_ticket_or_a_ticket_error(
    kind: str, content: bytes, stored_content: bytes, scratch: Path, changes: list[tuple[float, int]]
) -> None:
    changed = bytearray(content if kind == "content" else stored_content)
    for share, value in changes:
        changed[int(share * len(changed))] = value
    scratch.write_bytes(changed)
    try:
        loaded = Ticket.load(scratch)
    except TicketError:
        return
    states = (
        [loaded.state_at_draw]
        if isinstance(loaded.initial_state, Seeded)
        else [loaded.state_at_draw, loaded.initial_state]
    )
    for state in states:
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
        replace(ticket, state_at_draw=ticket.state_at_draw | {"convs.0.bias": bias}).save(tmp_path / "t")


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
