"""Tickets: the edges and weights that a search keeps."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gebt.graph.edge_scorer import EdgeScorer
from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph, structure_digest
from gebt.prune.mask import Mask
from gebt.ticket import files
from gebt.ticket.files import Seeded, TicketError, state_digest

StartWeights = Literal["inherit", "rewind", "reinit"]


@dataclass(frozen=True, eq=False)
class Ticket:
    """What a search found: hard masks, start weights and where they come from.

    Attributes:
        edge_mask: one tensor "edges", [P] bool.
        weight_mask: one boolean tensor a pruned parameter.
        state_at_draw: the model's full state (name -> tensor) at the draw, pruned entries zero.
        initial_state: the same before the search; where the model can draw it again from its seed, that seed alone,
            which makes the file a third smaller.
        provenance: plain JSON: graph fingerprint, settings, seed, epoch drawn, whether the detector fired, distances.
        soft_labels: log-probabilities [N, C] (float16) that the searched network gave every node, where it is a
            teacher.
        edge_weights: of the pairs that stay, in their order, where they do not all count 1.
        edge_scorer: what scored the pairs, where a function of their nodes did; such a ticket is one for every graph
            with features of that width.

    Example:
        >>> import gebt
        >>> from gebt.recipes.baselines import random_ticket
        >>> graph = gebt.load_graph("digits")
        >>> network = gebt.models.GCN(graph.num_features, 8, graph.num_classes, seed=0)
        >>> ticket = random_ticket(network, graph, edge_ratio=0.2, weight_ratio=0.5, seed=0)
        >>> round(ticket.edge_sparsity, 3), round(ticket.weight_sparsity, 3), ticket.epoch_drawn
        (0.2, 0.5, 0)
        >>> int(ticket.edge_mask_for(graph).sum()) == ticket.edge_mask.kept
        True
    """

    edge_mask: Mask
    weight_mask: Mask
    state_at_draw: dict[str, Tensor]
    initial_state: dict[str, Tensor] | Seeded
    provenance: dict[str, Any]
    soft_labels: Tensor | None = None
    edge_weights: Tensor | None = None
    edge_scorer: EdgeScorer | None = None

    def edges(self, graph: Graph) -> Edges:
        """The edges that stay: what the ticket is trained and served with.

        Args:
            graph: the ticket's, or another one for a ticket with an `edge_scorer`.

        Returns:
            Edges on the graph's device, with the ticket's edge weights.
        """
        values = None if self.edge_weights is None else self.edge_weights.to(graph.pairs.device)
        return Edges.from_pairs(graph.pairs[:, self.edge_mask_for(graph)], graph.num_nodes, values)

    def edge_mask_for(self, graph: Graph) -> Tensor:
        """Which pairs of a graph stay: by the ticket's mask, or by its edge scorer on another graph.

        Args:
            graph: the ticket's, or another one for a ticket with an `edge_scorer`.

        Returns:
            [P] bool.
        """
        if self.edge_scorer is None or graph.fingerprint == self.provenance["fingerprint"]:
            return self.edge_mask[EDGES].to(graph.pairs.device)
        scorer = copy.deepcopy(self.edge_scorer).to(graph.pairs.device)
        return scorer.mask(graph, float(self.provenance["edge_ratio"]), self.provenance["seed"])

    @property
    def epoch_drawn(self) -> int:
        """Epoch (from 1) whose masks these are; 0 for a ticket drawn without a search."""
        return int(self.provenance["epoch_drawn"])

    @property
    def epochs_searched(self) -> int:
        """Epochs that its search trained: more than `epoch_drawn` where the draw was settled on validation."""
        return int(self.provenance.get("epochs", self.epoch_drawn))

    @property
    def fired(self) -> bool:
        """True when the detector ended the search, False when the epoch limit did."""
        return bool(self.provenance["fired"])

    @property
    def edge_sparsity(self) -> float:
        """Measured share of the undirected pairs removed."""
        return self.edge_mask.sparsity

    @property
    def weight_sparsity(self) -> float:
        """Measured share of the maskable weights removed (biases are not among them)."""
        return self.weight_mask.sparsity

    def check(self, model: nn.Module, graph: Graph) -> None:
        """Checks that the ticket belongs to this model and graph.

        Args:
            model: whose tensors must have the names and shapes of the ticket's.
            graph: whose fingerprint must be the ticket's; with an `edge_scorer`, only its number of features.

        Raises:
            TicketError: naming what differs.
        """
        if self.edge_scorer is None:
            self._check_graph(graph)
        elif graph.num_features != self.edge_scorer.num_features:
            got, width = graph.num_features, self.edge_scorer.num_features
            raise TicketError(f"graph {graph.name!r} (got {got} features), expected {width} as the ticket's edge rule")
        self._check_model(model)

    def _check_graph(self, graph: Graph) -> None:
        pairs = self.edge_mask[EDGES].numel()
        if pairs != graph.num_pairs:
            raise TicketError(f"graph {graph.name!r} (got {graph.num_pairs} pairs), expected {pairs} as in the ticket")
        if self.provenance["fingerprint"] != graph.fingerprint:
            expected = f"{self.provenance['fingerprint'][:12]}... ({self.provenance['graph']!r}) as in the ticket"
            raise TicketError(
                f"graph {graph.name!r} (got fingerprint {graph.fingerprint[:12]}...), expected {expected}; "
                "the same data, feature scaling and split are needed"
            )
        if self.soft_labels is not None and self.soft_labels.shape != (len(graph.labels), graph.num_classes):
            got, size = tuple(self.soft_labels.shape), (len(graph.labels), graph.num_classes)
            raise TicketError(f"soft labels of the ticket (got shape {got}), expected {size} as the graph has")

    def _check_model(self, model: nn.Module) -> None:
        state = model.state_dict()
        for name, tensor in self.state_at_draw.items():
            if name not in state:
                raise TicketError(f"model (got no tensor {name!r}), expected one of shape {tuple(tensor.shape)}")
            if state[name].shape != tensor.shape:
                got, expected_shape = tuple(state[name].shape), tuple(tensor.shape)
                raise TicketError(f"tensor {name!r} of the model (got shape {got}), expected {expected_shape}")
        if extra := sorted(state.keys() - self.state_at_draw.keys()):
            raise TicketError(
                f"model (got tensors {extra} that the ticket lacks), expected {sorted(self.state_at_draw)}"
            )

    def start(self, model: nn.Module, how: StartWeights = "inherit", seed: int = 0) -> None:
        """Puts the ticket's start weights into a model, pruned entries zero.

        Args:
            model: changed in place.
            how: "inherit": the weights at the draw (GEBT); "rewind": those before the search (lottery tickets);
                "reinit": fresh ones from `model.reset(seed)`, the baseline that keeps the masks alone.
            seed: of "reinit".

        Raises:
            TicketError: when the model no longer draws the weights that "rewind" asks for; the model stays as it was.
            ValueError: for another `how`.
        """
        if how == "reinit":
            model.reset(seed)  # type: ignore[operator]
        elif how == "inherit":
            model.load_state_dict(self.state_at_draw)
        elif how == "rewind" and isinstance(self.initial_state, Seeded):
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.reset(self.initial_state.seed)  # type: ignore[operator]
            if state_digest(model.state_dict()) != self.initial_state.digest:
                model.load_state_dict(before)  # a refusal changes nothing
                raise TicketError(
                    f"start weights of seed {self.initial_state.seed} (got other numbers than the search began with), "
                    "expected the same: this version of torch, or this model, draws them differently; "
                    "start from 'inherit'"
                )
        elif how == "rewind":
            model.load_state_dict(self.initial_state)
        else:
            raise ValueError(f"start weights (got {how!r}), expected 'inherit', 'rewind' or 'reinit'")
        self.weight_mask.apply_(dict(model.named_parameters()))

    def apply(self, to: Any) -> Any:
        """Makes a new object without what the ticket prunes.

        Args:
            to: a PyG `Data`, or a model; stays as it is.

        Returns:
            The data without the pruned edges, edge attributes aligned, self-loops kept; or the model with the ticket's
            start weights, pruned ones zero (`gebt.enforce_mask` keeps them so in any training).

        Raises:
            TicketError: when the ticket belongs to another graph or model.
        """
        if not isinstance(to, nn.Module):
            return to.edge_subgraph(self._kept_entries(to))
        state = to.state_dict()
        for name, tensor in self.state_at_draw.items():
            if name not in state or state[name].shape != tensor.shape:
                got = tuple(state[name].shape) if name in state else "no such tensor"
                raise TicketError(f"tensor {name!r} of the model (got {got}), expected shape {tuple(tensor.shape)}")
        pruned = copy.deepcopy(to)
        self.start(pruned)
        return pruned

    def _kept_entries(self, data: Any) -> Tensor:
        """[E] boolean: the entries of the data's edge_index that stay."""
        edge_index = getattr(data, "edge_index", None)
        if not isinstance(edge_index, Tensor) or hasattr(data, "node_types"):
            raise TicketError(
                f"data (got {type(data).__name__} without a tensor edge_index [2, E] for all edges), expected a "
                "torch_geometric.data.Data"
            )
        low, high = edge_index.amin(0), edge_index.amax(0)
        keys = low * int(data.num_nodes) + high
        # In canonical form pairs are in lexicographic order, so a pair's number is the rank of its key.
        unique, rank = torch.unique(keys[low != high], return_inverse=True)
        kept = self.edge_mask[EDGES].to(edge_index.device)
        digest = structure_digest(torch.stack((unique // data.num_nodes, unique % data.num_nodes)), data.num_nodes)
        if unique.numel() != kept.numel() or digest != self.provenance.get("structure", digest):
            raise TicketError(
                f"data (got {unique.numel()} pairs of other nodes or number), expected the {kept.numel()} of graph "
                f"{self.provenance['graph']!r}"
            )
        stays = torch.ones_like(low, dtype=torch.bool)
        stays[low != high] = kept[rank]
        return stays

    def save(self, path: str | Path) -> Path:
        """Writes the ticket (safetensors, masks as bits, of the weights only those kept); never leaves half a file.

        Args:
            path: the file.

        Returns:
            The path.

        Raises:
            TicketError: for a weight that is NaN or infinite.
        """
        return files.write(Path(path), self)

    @staticmethod
    def load(path: str | Path) -> Ticket:
        """Reads a ticket, also one that 0.1.0 wrote.

        Args:
            path: the file.

        Returns:
            The ticket.

        Raises:
            TicketError: naming the file and what is wrong with it.

        Example:
            >>> Ticket.load("missing.safetensors")
            Traceback (most recent call last):
            gebt.ticket.files.TicketError: ticket missing.safetensors (got no such file), expected ...
        """
        return Ticket(**files.read(Path(path)))
