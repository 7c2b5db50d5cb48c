"""Makes a ticket of a model as it stands, and of its masks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gebt.graph.edges import EDGES
from gebt.graph.graph import Graph
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.sparse.precision import current
from gebt.ticket.files import Seeded, check_provenance, state_digest
from gebt.ticket.ticket import Ticket


def make_ticket(
    model: nn.Module,
    graph: Graph,
    edge_mask: Mask,
    weight_mask: Mask,
    initial_state: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    soft_labels: Tensor | None = None,
    edge_weights: Tensor | None = None,
) -> Ticket:
    """Makes a ticket of the model as it stands now, masks applied to both its start states.

    Args:
        model: whose state becomes `state_at_draw`.
        graph: what the masks were found on; its name and fingerprint go into the provenance, and the model's device.
        edge_mask: one tensor "edges", [P] bool.
        weight_mask: one boolean tensor a pruned parameter.
        initial_state: the model's state before the search; stored as a seed where the model can draw it again.
        provenance: the entries of `gebt.ticket.files.PROVENANCE` but those of the graph; more are welcome.
        soft_labels: logits [N, C] to learn from.
        edge_weights: [P], what the pairs count, where they do not all count 1.

    Returns:
        The ticket.

    Raises:
        ValueError: when the weight mask names other than the model's prunable weights, or the provenance lacks an
            entry.
    """
    weights = prunable_weights(model)
    if unknown := sorted(weight_mask.keys() - weights.keys()):
        raise ValueError(f"weight mask (got tensors {unknown}), expected only {sorted(weights)}")
    # Networks on a CUDA device draw other dropout: who repeats the search wants to know where it was.
    device = next((weight.device.type for weight in weights.values()), "cpu")
    origin = {"graph": graph.name, "fingerprint": graph.fingerprint, "structure": graph.structure, **provenance}
    origin |= {"device": device, "precision": current()}
    check_provenance(origin)
    seeded = _seeded(model, initial_state)
    start = seeded if seeded is not None else _masked(initial_state, weight_mask)
    # Half precision: a teacher's log-probabilities need no more, and they are the ticket's largest tensor.
    log_probabilities = None if soft_labels is None else soft_labels.detach().log_softmax(1).clamp(min=-1e4).half()
    values = None if edge_weights is None else edge_weights.detach()[edge_mask[EDGES]].clone()
    drawn = _masked(model.state_dict(), weight_mask)
    return Ticket(edge_mask, weight_mask, drawn, start, origin, log_probabilities, values)


def _masked(state: Mapping[str, Tensor], weight_mask: Mask) -> dict[str, Tensor]:
    copied = {name: tensor.detach().clone() for name, tensor in state.items()}
    weight_mask.apply_(copied)
    return copied


def _seeded(model: nn.Module, initial: Mapping[str, Tensor]) -> Seeded | None:
    """The seed from which the model draws `initial` again, bit for bit; None when it does not."""
    seed = getattr(model, "seed", None)
    if not isinstance(seed, int) or not callable(getattr(model, "reset", None)):
        return None
    twin = copy.deepcopy(model)
    twin.reset(seed)  # type: ignore[operator]
    digest = state_digest(initial)
    return Seeded(seed, digest) if state_digest(twin.state_dict()) == digest else None
