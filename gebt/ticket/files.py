"""The file of a ticket: one safetensors file with a JSON header, masks as bits; written and read strictly."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from gebt._files import write_atomically
from gebt.graph.edge_scorer import EdgeScorer
from gebt.graph.edges import EDGES
from gebt.prune.mask import Mask, deflated, inflated
from gebt.sparse.memory import check_room
from gebt.ticket.old_names import renamed_ticket

FORMAT = 3
# What is read: format 2 is that of 0.1.0, with other names (`ticket.old_names`).
READABLE = (2, 3)
STATES = ("state_at_draw", "initial_state")
SOFT_LABELS = "soft_labels"
EDGE_WEIGHTS = "edge_weights"
EDGE_SCORER = "edge_scorer"
MAX_HEADER_BYTES = 1 << 20
MAX_ENTRIES = 1 << 34
# What every ticket records, and what a reader may rely on.
PROVENANCE = {
    "graph": str,
    "fingerprint": str,
    "method": str,
    "seed": int,
    "epoch_drawn": int,
    "fired": bool,
    "edge_ratio": int | float,
    "weight_ratio": int | float,
}
FIELDS = (
    "edge_mask", "weight_mask", "state_at_draw", "initial_state", "provenance", "soft_labels", "edge_weights",
    "edge_scorer",
)  # fmt: skip


class TicketError(ValueError):
    """A ticket that is broken, or that belongs to another graph or model."""


@dataclass(frozen=True)
class Seeded:
    """Start weights that `model.reset(seed)` draws again.

    Attributes:
        seed: what the model draws them from.
        digest: sha256 of that state (`state_digest`).
    """

    seed: int
    digest: str


def write(path: Path, ticket: Any) -> Path:
    """Writes a ticket: masks as bits, of the weights only those that the mask keeps; never leaves half a file.

    Args:
        path: the file.
        ticket: the `Ticket`.

    Returns:
        The path.

    Raises:
        TicketError: for a weight that is NaN or infinite.
    """
    tensors = {f"mask.{EDGES}": deflated(ticket.edge_mask[EDGES])}
    for name, kept in ticket.weight_mask.items():
        tensors[f"mask.{name}"] = deflated(kept)
    seed = ticket.initial_state if isinstance(ticket.initial_state, Seeded) else None
    for group in STATES[:1] if seed else STATES:
        for name, tensor in getattr(ticket, group).items():
            if not bool(torch.isfinite(tensor).all()):
                raise TicketError(f"tensor {name!r} (got NaN or infinity), expected finite numbers to save")
            kept_values = tensor[ticket.weight_mask[name]] if name in ticket.weight_mask else tensor
            tensors[f"{group}.{name}"] = kept_values.contiguous()
    optional = {SOFT_LABELS: ticket.soft_labels, EDGE_WEIGHTS: ticket.edge_weights}
    tensors |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    scorer = ticket.edge_scorer
    if scorer is not None:
        tensors |= {f"{EDGE_SCORER}.{name}": tensor for name, tensor in scorer.state_dict().items()}
    header = {
        "format": FORMAT,
        "pairs": ticket.edge_mask[EDGES].numel(),
        "shapes": {name: list(tensor.shape) for name, tensor in ticket.state_at_draw.items()},
        "masked": sorted(ticket.weight_mask),
        "initial_state": None if seed is None else vars(seed),
        "provenance": ticket.provenance,
        **({} if scorer is None else {EDGE_SCORER: scorer.sizes}),
    }
    # One metadata key: the writer does not promise an order among several, and equal tickets are equal bytes.
    metadata = {"gebt": json.dumps(header, sort_keys=True)}
    on_cpu = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    return write_atomically(path, to_safetensors(on_cpu, metadata))


def read(path: Path) -> dict[str, Any]:
    """Reads the fields of the ticket in a file.

    Args:
        path: the file, of format 3, or of format 2 (0.1.0).

    Returns:
        The arguments of `Ticket`, by name.

    Raises:
        TicketError: naming the file and what is wrong with it.
    """
    header, tensors = _opened(path)
    try:
        return _assemble(header, tensors)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        raise TicketError(f"ticket {path} (got broken content: {error}), expected format {FORMAT}") from error


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise TicketError(f"ticket {path} (got no such file), expected a ticket.safetensors written by gebt")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, path.stat().st_size):
        raise TicketError(f"ticket {path} (got a header of {length} bytes), expected a ticket; is it foreign or cut?")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["gebt"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, RecursionError, ValueError, OSError) as error:
        raise TicketError(f"ticket {path} (got {error}), expected a safetensors file with a gebt header") from error
    if not isinstance(header, dict) or header.get("format") not in READABLE:
        got = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise TicketError(f"ticket {path} (got format {got}), expected format {FORMAT}; update gebt or search again")
    return renamed_ticket(header, tensors) if header["format"] == 2 else (header, tensors)


def _assemble(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    shapes = {name: tuple(int(size) for size in shape) for name, shape in header["shapes"].items()}
    pairs = int(header["pairs"])
    for name, shape in {**shapes, EDGES: (pairs,)}.items():
        if min(shape, default=0) < 0 or math.prod(shape) > MAX_ENTRIES:
            raise ValueError(f"tensor {name!r} (got shape {shape}), expected at most {MAX_ENTRIES} entries")
    # A short stream of zeros may stand for a huge mask: bits being unpacked, then one number an entry in either state.
    entries = pairs + sum(map(math.prod, shapes.values()))
    check_room(f"ticket of {entries} entries", 8 * entries, torch.device("cpu"))
    weight_mask = Mask({name: inflated(tensors[f"mask.{name}"], shapes[name]) for name in header["masked"]})
    edge_mask = Mask({EDGES: inflated(tensors[f"mask.{EDGES}"], (pairs,))})
    seeded = header["initial_state"]
    groups = STATES[:1] if seeded else STATES
    states: list[Any] = [
        {name: _restored(tensors[f"{group}.{name}"], shape, weight_mask.get(name)) for name, shape in shapes.items()}
        for group in groups
    ]
    if seeded:
        states.append(_read_seed(seeded["seed"], seeded["digest"]))
    expected = {f"mask.{name}" for name in (EDGES, *weight_mask)}
    expected |= {f"{group}.{name}" for group in groups for name in shapes}
    soft_labels = tensors.get(SOFT_LABELS)
    if soft_labels is not None and (soft_labels.dim() != 2 or not bool(torch.isfinite(soft_labels).all())):
        raise ValueError(f"soft labels (got shape {tuple(soft_labels.shape)} or NaN), expected finite numbers [N, C]")
    values = tensors.get(EDGE_WEIGHTS)
    if values is not None and (values.shape != (edge_mask.kept,) or not bool(torch.isfinite(values).all())):
        got = f"shape {tuple(values.shape)} or NaN"
        raise ValueError(f"edge weights (got {got}), expected ({edge_mask.kept},) finite numbers as the mask keeps")
    edge_scorer = None
    if EDGE_SCORER in header:
        stored = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{EDGE_SCORER}.")}
        edge_scorer = EdgeScorer.of(
            {name.removeprefix(f"{EDGE_SCORER}."): tensor for name, tensor in stored.items()}, header[EDGE_SCORER]
        )
        expected |= stored.keys()
    if extra := sorted(tensors.keys() - expected - {SOFT_LABELS, EDGE_WEIGHTS}):
        raise ValueError(f"tensors (got {extra} beyond the header's), expected {sorted(expected)}")
    check_provenance(header["provenance"])
    fields = (edge_mask, weight_mask, *states, header["provenance"], soft_labels, values, edge_scorer)
    return dict(zip(FIELDS, fields, strict=True))


def _read_seed(seed: object, digest: object) -> Seeded:
    # What torch takes as a seed; another number would only be refused when a rewind asks for it.
    if type(seed) is not int or not -(2**63) <= seed < 2**64 or not isinstance(digest, str):
        raise ValueError(f"start weights (got seed {seed!r}, digest {digest!r}), expected an int64 or uint64, and text")
    return Seeded(seed, digest)


def check_provenance(provenance: Mapping[str, Any]) -> None:
    """Checks that a provenance has the entries that a reader relies on (`PROVENANCE`).

    Args:
        provenance: plain JSON.

    Raises:
        ValueError: for an entry that is missing or of another type.

    Example:
        >>> check_provenance({"graph": "digits"})
        Traceback (most recent call last):
        ValueError: provenance 'fingerprint' (got None), expected <class 'str'>
    """
    for key, kind in PROVENANCE.items():
        if not isinstance(provenance.get(key), kind):
            raise ValueError(f"provenance {key!r} (got {provenance.get(key)!r}), expected {kind}")


def _restored(stored: Tensor, shape: tuple[int, ...], kept: Tensor | None) -> Tensor:
    if stored.is_complex() or not bool(torch.isfinite(stored).all()):
        raise ValueError("weights (got NaN or infinity), expected finite numbers")
    if kept is None:
        return stored.view(shape)
    if stored.shape != (int(kept.sum()),):
        raise ValueError(f"kept weights (got {tuple(stored.shape)}), expected ({int(kept.sum())},) as the mask keeps")
    full = torch.zeros(shape, dtype=stored.dtype)
    full[kept] = stored
    return full


def state_digest(state: Mapping[str, Tensor]) -> str:
    """The sha256 of a state: names, types, shapes and numbers.

    Args:
        state: tensors by name; their order does not matter.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> one, other = torch.ones(2), torch.zeros(1)
        >>> state_digest({"a": one, "b": other}) == state_digest({"b": other, "a": one})
        True
        >>> state_digest({"a": one}) == state_digest({"a": one.double()})
        False
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
