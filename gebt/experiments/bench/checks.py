"""Checks before anything is timed: equal logits, and the same search again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gebt.experiments.bench.variants import Network
from gebt.graph.edges import EDGES
from gebt.ticket import Ticket

# Variants that must have equal logits, and the largest difference, as a share of the largest logit.
EQUAL = {"compacted": ("masked", 1e-5), "pyg": ("dense", 1e-4)}
# A repeated search whose masks differ in a larger share of their entries is another search.
SAME_MASKS = 0.01


def check_equal(networks: Mapping[str, Mapping[str, Network]]) -> dict[str, float]:
    """Largest difference of logits, as a share of the largest logit, between the networks that must agree.

    Args:
        networks: of every variant, by what they are for.

    Returns:
        A difference for every two variants, as "compacted - masked".

    Raises:
        ValueError: naming the network that is further off than rounding explains.
    """
    differences: dict[str, float] = {}
    for variant, (other, most) in EQUAL.items():
        if variant not in networks:
            continue
        expected = networks[other]["inference"].infer()
        scale = float(expected.abs().max()) or 1.0
        for network in networks[variant].values():
            share = float((network.infer() - expected).abs().max()) / scale
            if not share <= most:  # nor is NaN
                raise ValueError(
                    f"logits of {variant!r} (got {share:.3g} of the largest logit away from {other!r}), expected at "
                    f"most {most:g}; they compute different things, so nothing was timed"
                )
            differences[f"{variant} - {other}"] = max(share, differences.get(f"{variant} - {other}", 0.0))
    return differences


def check_search(ticket: Ticket, again: Ticket) -> dict[str, Any]:
    """How many mask entries of a repeated search differ from the ticket's.

    None do with the machine and options of the first search; rounding, of other threads or engines, moves a few. A
    search on another kind of device draws other dropout: it is another search, and any number may differ.

    Args:
        ticket: of the first search.
        again: of the repeated one.

    Returns:
        Numbers of differing entries, of all entries, and of epochs, and the devices of both searches.

    Raises:
        ValueError: when more differ than rounding explains.
    """
    masks = [(ticket.edge_mask[EDGES], again.edge_mask[EDGES])]
    masks += [(kept, again.weight_mask[name]) for name, kept in ticket.weight_mask.items()]
    differing = sum(int((one != other.to(one.device)).sum()) for one, other in masks)
    entries = sum(one.numel() for one, _ in masks)
    devices = [str(one.provenance.get("device", "cpu")) for one in (ticket, again)]
    if differing > SAME_MASKS * entries and devices[0] == devices[1]:
        raise ValueError(
            f"search (got masks that differ from the ticket's in {differing} of {entries} entries), expected the same "
            "search again; give the options it was run with (--algorithm, --dropout, ...)"
        )
    found = {"differing_entries": differing, "entries": entries, "epochs": again.epoch_drawn}
    return {**found, "devices": devices}
