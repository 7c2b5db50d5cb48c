"""Tickets for any network of PyTorch Geometric, and PyG's data and transforms for any ticket."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import BaseTransform

from gebt.data.readers.pyg import from_pyg
from gebt.graph.graph import Graph
from gebt.models.adapter import Call, adapted
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.recipes import retrain, search
from gebt.recipes.retrain import Retrained, RetrainSettings
from gebt.recipes.search import SearchSettings, search_preset
from gebt.ticket import Seeded, Ticket
from gebt.train.loop import History

if TYPE_CHECKING:
    from collections.abc import Mapping

INSIDE = "model."


def find_ticket(
    model: nn.Module,
    data: Data,
    *,
    edge_ratio: float,
    weight_ratio: float,
    settings: SearchSettings | str = "best",
    seed: int = 0,
    split: int = 0,
    call: Call | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """Searches a ticket of any network made of `MessagePassing` layers on a PyG `Data`; `model` is left as trained.

    `data`: `x`, `edge_index` (undirected), `y` and the three masks; edge attributes stay with their edges.
    `settings`: a preset or `SearchSettings`. "best" and "fast" need no soft edge values, so any layer will do;
    "default" and "paper" train some, which is refused for a layer in which they would not be exact (naming it).
    `call(model, data)` returns logits [N, C]; default: the attributes that forward names, or the data itself.
    The ticket's soft labels, if any, are log-probabilities [N, C] to learn from. Weight decay is for all parameters.
    Raises `ValueError` for a model without message passing or without weights, heterogeneous or bipartite data, and as
    `recipes.search.joint`.
    """
    chosen = search_preset(settings) if isinstance(settings, str) else settings
    graph = _graph_of(data, split)
    prunable_weights(model)
    soft = chosen.trains_edges and edge_ratio > 0
    ratios: dict[str, Any] = {"edge_ratio": edge_ratio, "weight_ratio": weight_ratio}
    with adapted(model, data, graph, call=call, soft=soft, seed=seed) as network:
        ticket = search.joint(network, graph, **ratios, settings=chosen, seed=seed, on_epoch=on_epoch)
    return _renamed(ticket, lambda name: name.removeprefix(INSIDE))


def train_ticket(
    ticket: Ticket,
    model: nn.Module,
    data: Data,
    *,
    settings: RetrainSettings | None = None,
    seed: int = 0,
    split: int = 0,
    call: Call | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Retrained:
    """Trains a ticket of `find_ticket`: pruned edges do not exist, pruned weights are held at zero.

    `model` receives the ticket's start weights and ends in the state of its best validation epoch. Raises
    `TicketError` when the ticket belongs to other data or another model.
    """
    graph = _graph_of(data, split)
    with adapted(model, data, graph, call=call) as network:
        inside = _renamed(ticket, lambda name: INSIDE + name)
        return retrain.run(inside, network, graph, settings, seed=seed, on_epoch=on_epoch)


class ApplyTicket(BaseTransform):  # type: ignore[misc, unused-ignore]
    """PyG transform: the data without the edges that the ticket in the file `path` prunes (`Ticket.apply`)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.ticket = Ticket.load(self.path)

    def forward(self, data: Any) -> Any:
        """A new data object; raises `TicketError` when the ticket belongs to other data."""
        return self.ticket.apply(data)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def _graph_of(data: Data, split: int) -> Graph:
    if isinstance(data, HeteroData):
        raise ValueError(
            f"data (got {type(data).__name__} of node types {data.node_types}), expected one type of nodes and of "
            "edges: a pair of a heterogeneous or bipartite graph has no single value yet; use data.to_homogeneous()"
        )
    return from_pyg(data, split=split)


def _renamed(ticket: Ticket, rename: Callable[[str], str]) -> Ticket:
    def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
        return {rename(name): tensor for name, tensor in state.items()}

    initial = ticket.initial if isinstance(ticket.initial, Seeded) else renamed(ticket.initial)
    mask = Mask(renamed(ticket.weight_mask))
    return dataclasses.replace(ticket, weight_mask=mask, drawn=renamed(ticket.drawn), initial=initial)
