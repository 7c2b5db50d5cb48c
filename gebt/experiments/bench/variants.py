"""What is measured: the network of every variant, and the phases of its full run."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from gebt.experiments.options import RunOptions
from gebt.experiments.setup import find_ticket, macs_for, model_for
from gebt.graph.edges import Edges
from gebt.graph.graph import Graph
from gebt.measure.cost import flops_executed
from gebt.models.compact import compact_model
from gebt.models.registry import Network as Model
from gebt.prune.enforce import enforce_mask
from gebt.prune.mask import Mask
from gebt.recipes import baselines, retrain
from gebt.ticket import Ticket
from gebt.train.loop import TrainingSettings, adam
from gebt.train.tasks import task_for

VARIANTS = ("dense", "masked", "compacted", "pyg")
PARTS = ("inference", "epoch", "run")
# The parts of a full run.
PHASES = {"dense": ("dense",), "masked": ("search", "masked"), "compacted": ("search", "compacted"), "pyg": ("pyg",)}


class Network(Protocol):
    """A network on a graph, ready to be timed."""

    def infer(self) -> Tensor:
        """Logits [N, C] from features and edges."""

    def step(self) -> Tensor:
        """One step of the optimizer; the loss before it."""


class GebtTraining:
    """A network of gebt; nothing that depends on the features is stored between two inferences."""

    def __init__(
        self, model: nn.Module, graph: Graph, edges: Edges, settings: TrainingSettings, mask: Mask | None = None
    ) -> None:
        self.model = model
        self.task = task_for(graph, edges)
        self._bare = task_for(graph, edges, keep_aggregated=False)
        self._optimizer = adam(model, settings)
        if mask is not None:
            enforce_mask(model, mask, self._optimizer)

    def infer(self) -> Tensor:
        """Logits [N, C] in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            return self._bare.logits(self.model)

    def step(self) -> Tensor:
        """One step, as `fit` does it; the loss before it."""
        self.model.train()
        self._optimizer.zero_grad()
        loss = self.task.loss(self.task.logits(self.model))
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class Workbench:
    """A ticket with its graph and options, and the networks and runs that are measured.

    Args:
        options: resolved.
        ticket: to measure.
        graph: of the ticket.

    Raises:
        TicketError: when the ticket belongs to another graph or model.
    """

    def __init__(self, options: RunOptions, ticket: Ticket, graph: Graph) -> None:
        self.options, self.ticket, self.graph = options, ticket, graph
        self.seed = int(ticket.provenance["seed"])
        ticket.check(self.model(), graph)

    def model(self) -> Model:
        """The network as its seed draws it."""
        return cast(Model, model_for(self.options, self.graph, self.seed))

    @cached_property
    def edges(self) -> Edges:
        """All edges."""
        return Edges.from_pairs(self.graph.pairs, self.graph.num_nodes)

    @cached_property
    def kept(self) -> Edges:
        """The ticket's edges."""
        return self.ticket.edges(self.graph)

    def network(self, variant: str, *, training: bool = True, model: Model | None = None) -> Network:
        """The network of a variant.

        Args:
            variant: name.
            training: compact for training steps, otherwise for inference.
            model: whose weights it has; those of tickets are the ticket's.

        Returns:
            The network, ready to be timed.

        Raises:
            OutOfRoomError: when PyG's would not fit into memory.
        """
        model = model or self.model()
        if variant == "pyg":
            # Not at the top: its libraries would count in the memory of every other variant.
            from gebt.experiments.bench.pyg import PygTraining

            return PygTraining(self.graph, model, self.options.training())
        if variant == "dense":
            return GebtTraining(model, self.graph, self.edges, self.options.training())
        self.ticket.start(model)
        settings, mask = self.options.retraining().training, self.ticket.weight_mask
        if variant == "masked":
            return GebtTraining(model, self.graph, self.kept, settings, mask)
        small = compact_model(model, mask, self.graph, training=training)
        return GebtTraining(small.model, small.graph, self.kept, settings, small.mask)

    @property
    def searched(self) -> bool:
        """Whether the ticket comes from a search, and is not random."""
        return self.ticket.epoch_drawn > 0

    @cached_property
    def search_options(self) -> RunOptions:
        """The options with ratios and settings of the ticket's search."""
        origin = self.ticket.provenance
        names = ("edge_ratio", "weight_ratio", "feature_ratio")
        changes: dict[str, Any] = {**{name: origin.get(name) for name in names}, **origin["settings"]}
        return dataclasses.replace(self.options, **changes)

    def phase(self, name: str, most_epochs: int | None = None) -> Any:
        """Runs one phase of a full run on a fresh network.

        Args:
            name: "dense", "search", "masked" or "compacted".
            most_epochs: limit of every training.

        Returns:
            The test accuracy, or the ticket of a search.
        """
        options = self.search_options if name == "search" else self.options
        if most_epochs is not None:
            limits = {
                key: min(most_epochs, getattr(options, key)) for key in ("epochs", "retrain_epochs", "max_epochs")
            }
            options = dataclasses.replace(options, **limits)
        if name == "search":
            return find_ticket(options, self.graph, self.model(), self.seed)
        if name == "dense":
            return baselines.dense(self.model(), self.graph, options.training(), seed=self.seed).accuracy
        settings = dataclasses.replace(options.retraining(), compaction=name == "compacted")
        return retrain.run(self.ticket, self.model(), self.graph, settings, seed=self.seed).test_accuracy

    def search_step_flops(self) -> int:
        """Flops of one step of the search."""
        model, task = self.model().requires_grad_(self.options.algorithm != "graph"), task_for(self.graph, self.edges)
        gates = None
        if self.options.algorithm != "weights" and self.search_options.search().trains_edges:
            gates = torch.ones(self.graph.num_pairs, device=self.graph.pairs.device, requires_grad=True)

        def step() -> None:
            task.loss(task.logits(model, gates)).backward()

        step()  # without products that "auto" times on their first call
        return flops_executed(step)

    def macs(self, ticket: Ticket | None) -> float:
        """`macs_paper` of one inference of the ticket, or of the dense network."""
        return macs_for(self.options, self.graph, ticket)
