"""The two verbs for everything that is a graph, and PyG's data and transforms for any ticket.

`find_ticket` and `retrain` take this library's `Graph` and networks, a PyG `Data`, and any network made of PyG's
`MessagePassing` layers, in any combination.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import BaseTransform

from gebt.data.readers.pyg import from_pyg, to_pyg
from gebt.graph.graph import Graph
from gebt.models.adapter import Call, adapted
from gebt.models.links import LinkPredictor
from gebt.models.registry import Network
from gebt.prune.mask import Mask
from gebt.prune.scores import prunable_weights
from gebt.recipes import retrain as retraining
from gebt.recipes import search
from gebt.recipes.retrain import RetrainResult, RetrainSettings
from gebt.recipes.search import SearchSettings, search_preset
from gebt.ticket import Seeded, Ticket
from gebt.train.loop import History

# Where the parameters of a PyG network are inside its adapter.
_INSIDE = "model."


def find_ticket(
    model: nn.Module,
    data: Graph | Data,
    *,
    edge_ratio: float,
    weight_ratio: float,
    feature_ratio: float | None = None,
    preset: str | SearchSettings = "best",
    seed: int = 0,
    split: int = 0,
    call: Call | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> Ticket:
    """Searches for a ticket: hard masks over the graph's edges and the network's weights, with start weights.

    Args:
        model: a network of `gebt.models`, or any network made of PyG's `MessagePassing` layers; it stays as trained.
        data: a `Graph`, or a PyG `Data` with `x` [N, F], an undirected `edge_index` [2, E], `y` [N] and three masks.
        edge_ratio: share of the undirected edges to prune, in [0, 1).
        weight_ratio: share of the weights to prune, in [0, 1).
        feature_ratio: share of the input features, where whole features are pruned; default: `weight_ratio`.
        preset: "best", "fast", "early-bird", "paper", or a `SearchSettings`. For a PyG network "best" and
            "fast" suit any layer; the others train soft edge values, which is refused where a layer is not exact.
        seed: of dropout and of ties.
        split: which split of a `Data` whose masks are [N, S].
        call: `call(model, data)` returns logits [N, C] of a PyG network; default: by the arguments of its forward.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the search.

    Returns:
        The ticket. With "best" and "fast" it holds log-probabilities [N, C] that its retraining learns from.

    Raises:
        ValueError: a ratio outside [0, 1) or one that would empty a layer (named), a model without message passing or
            weights, heterogeneous data, tensors of two devices, or settings that the graph's labels do not allow.

    Source:
        You et al., Early-Bird GCNs, AAAI 2022, Algorithm 2.

    Example:
        >>> import gebt
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes)
        >>> settings = gebt.recipes.search.SearchSettings(max_epochs=2)
        >>> ticket = gebt.find_ticket(model, graph, edge_ratio=0.2, weight_ratio=0.5, preset=settings)
        >>> round(ticket.edge_sparsity, 3), round(ticket.weight_sparsity, 3)
        (0.2, 0.5)
    """
    ratios: dict[str, Any] = {"edge_ratio": edge_ratio, "weight_ratio": weight_ratio, "feature_ratio": feature_ratio}
    chosen = search_preset(preset) if isinstance(preset, str) else preset
    _check_one_device(model, data)
    graph = _graph_of(data, split)
    if isinstance(model, Network | LinkPredictor):
        return search.joint(model, graph, **ratios, settings=chosen, seed=seed, on_epoch=on_epoch)
    prunable_weights(model)
    soft = chosen.trains_edges and edge_ratio > 0
    with adapted(model, _data_of(data), graph, call=call, soft=soft, seed=seed) as network:
        ticket = search.joint(network, graph, **ratios, settings=chosen, seed=seed, on_epoch=on_epoch)
    return _renamed(ticket, lambda name: name.removeprefix(_INSIDE))


def retrain(
    ticket: Ticket,
    model: nn.Module,
    data: Graph | Data,
    *,
    settings: RetrainSettings | None = None,
    seed: int = 0,
    split: int = 0,
    call: Call | None = None,
    on_epoch: Callable[[int, History], bool] | None = None,
) -> RetrainResult:
    """Trains a ticket of `find_ticket`: pruned edges do not exist, pruned weights stay zero.

    Args:
        ticket: from a search on this graph and network.
        model: receives the ticket's start weights and ends in the state of its best validation epoch.
        data: the graph of the ticket's search, as for `find_ticket`.
        settings: epochs, rates, start weights; default: those of the preset "best".
        seed: of dropout.
        split: which split of a `Data` whose masks are [N, S].
        call: as for `find_ticket`.
        on_epoch: called with the epoch (from 1) and the history; returning True ends the training.

    Returns:
        The history with its accuracies, the kept edges, and the smaller network that was trained, if it was one.

    Raises:
        TicketError: the ticket belongs to other data or to another model.
        ValueError: tensors of two devices.

    Example:
        >>> import gebt
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes)
        >>> ticket = gebt.recipes.baselines.random_ticket(model, graph, edge_ratio=0.2, weight_ratio=0.5)
        >>> result = gebt.retrain(ticket, model, graph)
        >>> 0.5 < result.test_accuracy <= 1
        True
    """
    _check_one_device(model, data)
    graph = _graph_of(data, split)
    if isinstance(model, Network | LinkPredictor):
        return retraining.run(ticket, model, graph, settings, seed=seed, on_epoch=on_epoch)
    with adapted(model, _data_of(data), graph, call=call) as network:
        of_adapter = _renamed(ticket, lambda name: _INSIDE + name)
        return retraining.run(of_adapter, network, graph, settings, seed=seed, on_epoch=on_epoch)


class ApplyTicket(BaseTransform):  # type: ignore[misc, unused-ignore]
    """PyG transform: the data without the edges that a ticket file prunes (`Ticket.apply`).

    Args:
        path: of the ticket file.

    Example:
        >>> import gebt, tempfile
        >>> graph = gebt.load_graph("digits")
        >>> model = gebt.models.GCN(graph.num_features, 8, graph.num_classes)
        >>> ticket = gebt.recipes.baselines.random_ticket(model, graph, edge_ratio=0.2, weight_ratio=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     transform = ApplyTicket(ticket.save(f"{folder}/ticket.safetensors"))
        >>> transform(to_pyg(graph)).num_edges // 2, graph.num_pairs
        (7944, 9929)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.ticket = Ticket.load(self.path)

    def forward(self, data: Any) -> Any:
        """Removes the edges that the ticket prunes; `data` stays as it is.

        Args:
            data: a PyG `Data` of the ticket's graph.

        Returns:
            A new data object.

        Raises:
            TicketError: the ticket belongs to other data.
        """
        return self.ticket.apply(data)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def _check_one_device(model: nn.Module, data: Graph | Data) -> None:
    """Raises `ValueError` unless all parameters, buffers and tensors of the data are on one device."""
    if isinstance(data, Graph):
        features = data.features if isinstance(data.features, Tensor) else data.features.values
        parts: dict[str, Any] = {"features": features, "pairs": data.pairs, "labels": data.labels}
    else:
        parts = data.to_dict()
    tensors = {f"the data's {name}": part for name, part in parts.items() if isinstance(part, Tensor)}
    tensors |= {f"the model's {name}": part for name, part in (*model.named_parameters(), *model.named_buffers())}
    places = {name: tensor.device for name, tensor in tensors.items()}
    first = next(iter(places))
    for name, place in places.items():
        if place != places[first]:
            raise ValueError(
                f"devices (got {first} on {places[first]}, {name} on {place}), expected one; "
                "move model and data there by .to(device)"
            )


def _graph_of(data: Graph | Data, split: int) -> Graph:
    if isinstance(data, Graph):
        return data
    if isinstance(data, HeteroData):
        raise ValueError(
            f"data (got {type(data).__name__} of node types {data.node_types}), expected one type of nodes and of "
            "edges: a pair of a heterogeneous or bipartite graph has no single value yet; use data.to_homogeneous()"
        )
    return from_pyg(data, split=split)


def _data_of(data: Graph | Data) -> Data:
    return to_pyg(data) if isinstance(data, Graph) else data


def _renamed(ticket: Ticket, rename: Callable[[str], str]) -> Ticket:
    def renamed(state: Mapping[str, Any]) -> dict[str, Any]:
        return {rename(name): tensor for name, tensor in state.items()}

    initial = ticket.initial_state if isinstance(ticket.initial_state, Seeded) else renamed(ticket.initial_state)
    mask = Mask(renamed(ticket.weight_mask))
    return dataclasses.replace(
        ticket, weight_mask=mask, state_at_draw=renamed(ticket.state_at_draw), initial_state=initial
    )
