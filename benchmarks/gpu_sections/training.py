"""Epochs of gebt's networks, timed as they are run, and the same network in PyG."""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_sections.setting import synchronize
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

import gebt
from gebt.data.manifest import dataset_info
from gebt.graph import Graph
from gebt.recipes import baselines, retrain, search
from gebt.sparse import SparseMatrix
from gebt.ticket import Ticket
from gebt.train.cuda_graph import WARMUP
from gebt.train.loop import TrainingSettings, adam, fit
from gebt.train.search_settings import search_preset
from gebt.train.tasks import task_for

# Epochs before the first one that counts: plain ones, the recording, and its first replay.
FIRST = WARMUP + 2


class Epochs:
    """When each epoch ended: given to a recipe as `on_epoch`. An epoch ends when its loss is known to the host."""

    def __init__(self) -> None:
        synchronize()
        self.ends = [time.perf_counter()]

    def __call__(self, *_: Any) -> bool:
        """Notes the end of an epoch, and lets the training go on."""
        self.ends.append(time.perf_counter())
        return False

    @property
    def ms(self) -> float:
        """Median milliseconds of the epochs after the first ones."""
        times = [1e3 * (after - before) for before, after in zip(self.ends, self.ends[1:], strict=False)]
        return statistics.median(times[min(FIRST, len(times) - 1) :])

    @property
    def first_seconds(self) -> float:
        """Seconds of the first epochs: compiling, choosing algorithms, recording."""
        return self.ends[min(FIRST, len(self.ends) - 1)] - self.ends[0]


def settings_for(graph: Graph, epochs: int) -> TrainingSettings:
    """The recorded settings of the data set, for that many epochs."""
    recorded = dataset_info(graph.name).training
    return TrainingSettings(epochs, recorded.learning_rate, recorded.weight_decay)


def network(graph: Graph, seed: int = 0, hidden: int | None = None) -> gebt.models.GCN:
    """The recorded GCN of the data set on the graph's device; `hidden`: of another width."""
    recorded = dataset_info(graph.name).training
    model = gebt.models.GCN(
        graph.num_features, hidden or recorded.hidden, graph.num_classes, recorded.depth, dropout=recorded.dropout,
        input_dropout=recorded.input_dropout, seed=seed,
    )  # fmt: skip
    return model.to(graph.labels.device)


def dense(graph: Graph, model: nn.Module, epochs: int, *, replay: bool | None = None) -> Epochs:
    """Dense training with an evaluation each epoch."""
    settings, clock = settings_for(graph, epochs), Epochs()
    fit(model, task_for(graph), [adam(model, settings)], epochs, on_epoch=clock, replay=replay)
    return clock


def searched(
    graph: Graph, model: nn.Module, epochs: int, preset: str = "early-bird", seed: int = 0, **more: Any
) -> tuple[Ticket, Epochs]:
    """GEBT's joint search of that many epochs at most, with 20 % of the edges and half of the weights to go."""
    recorded = settings_for(graph, epochs)
    rates = {"learning_rate": recorded.learning_rate, "weight_decay": recorded.weight_decay}
    settings = dataclasses.replace(search_preset(preset), max_epochs=epochs, **rates, **more)
    clock = Epochs()
    ticket = search.joint(
        model, graph, edge_ratio=0.2, weight_ratio=0.5, settings=settings, seed=seed, on_epoch=clock
    )  # fmt: skip
    return ticket, clock


def retrained(
    graph: Graph, model: nn.Module, ticket: Ticket, epochs: int, seed: int = 0
) -> tuple[retrain.RetrainResult, Epochs]:
    """Training of a ticket at four times the rate of the dense network, as by preset "early-bird"."""
    recorded, clock = settings_for(graph, epochs), Epochs()
    training = dataclasses.replace(recorded, learning_rate=4 * recorded.learning_rate)
    settings = retrain.RetrainSettings(training)
    return retrain.run(ticket, model, graph, settings, seed=seed, on_epoch=clock), clock


def unit_ticket(graph: Graph, model: nn.Module) -> Ticket:
    """A random ticket without 40 % of the edges and three quarters of the hidden units."""
    return baselines.random_ticket(model, graph, edge_ratio=0.4, weight_ratio=0.75, weight_structure="unit")


class Peer:
    """PyG's GCN as in its example: cached normalization, dense features; one step and one evaluation an epoch.

    Args:
        graph: to train on.
        model: whose sizes it has.
        csr: the adjacency is torch's CSR tensor, not an edge index.
        indices: nodes by their numbers, whose count the host knows, not by masks, whose it must wait for.
    """

    def __init__(self, graph: Graph, model: gebt.models.GCN, *, csr: bool = False, indices: bool = False) -> None:
        self.x = graph.features.to_dense() if isinstance(graph.features, SparseMatrix) else graph.features
        self.adjacency = csr_adjacency(graph) if csr else torch.cat((graph.pairs, graph.pairs.flip(0)), 1)
        sizes = zip(model.widths, model.widths[1:], strict=False)
        self.model = Stack([GCNConv(a, b, cached=True) for a, b in sizes], model.dropout).to(graph.labels.device)
        self.labels = graph.labels
        masks = (graph.train_mask, graph.val_mask, graph.test_mask)
        self.parts = [mask.nonzero().squeeze(1) for mask in masks] if indices else list(masks)
        # A recording needs an optimizer that counts its steps on the device.
        rate, on_device = settings_for(graph, 1).learning_rate, indices and graph.labels.is_cuda
        self.optimizer = torch.optim.Adam(self.model.parameters(), rate, capturable=on_device)

    def step(self) -> Tensor:
        """One step of the optimizer; the loss before it."""
        self.model.train()
        self.optimizer.zero_grad()
        train = self.parts[0]
        loss = F.cross_entropy(self.model(self.x, self.adjacency)[train], self.labels[train])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def epoch(self) -> Tensor:
        """A step, then accuracies of the validation and test nodes: [3], not waited for."""
        loss = self.step()
        self.model.eval()
        with torch.no_grad():
            right = (self.model(self.x, self.adjacency).argmax(1) == self.labels).float()
        return torch.stack((loss, *(right[part].mean() for part in self.parts[1:])))


class Stack(nn.Module):
    """Convolutions with ReLU and dropout between them, dropout on the input as well."""

    def __init__(self, convs: Sequence[nn.Module], dropout: float) -> None:
        super().__init__()
        self.convs, self.dropout = nn.ModuleList(convs), dropout

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Logits [N, C]."""
        for conv in self.convs[:-1]:
            x = conv(F.dropout(x, self.dropout, self.training), adjacency).relu()
        return self.convs[-1](F.dropout(x, self.dropout, self.training), adjacency)


def csr_adjacency(graph: Graph) -> Tensor:
    """The adjacency as torch's CSR tensor; it is symmetric, so its own transpose."""
    both = torch.cat((graph.pairs, graph.pairs.flip(0)), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.sparse_coo_tensor(both, torch.ones(both.shape[1], device=both.device), (graph.num_nodes,) * 2
                                       ).to_sparse_csr()  # fmt: skip


def timed_epochs(epoch: Callable[[], Tensor], epochs: int) -> Epochs:
    """Epochs of a peer, each read by the host."""
    clock = Epochs()
    for _ in range(epochs):
        epoch().tolist()
        clock()
    return clock
