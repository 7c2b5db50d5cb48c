"""The same network in PyG, trained as in PyG's examples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch.nn import functional as F

from gebt.graph.graph import Graph
from gebt.graph.metrics import label_loss, measure
from gebt.models.convs import GATConv
from gebt.models.gnn import GAT, GCN, GIN, GNN, GraphSAGE
from gebt.models.registry import Network
from gebt.models.resgcn import ResGCN
from gebt.sparse.memory import check_room
from gebt.sparse.pattern import SparseMatrix
from gebt.sparse.precision import forward
from gebt.train.loop import TrainingSettings


class PygStack(nn.Module):
    """PyG's convolutions in the order of one of our `GNN`s: dropout on the input and between the layers, ReLU.

    Its state dict is that of the model. GCN is cached, as in PyG's example.

    Args:
        model: network with the same sizes, without norm and residual connections.

    Raises:
        ValueError: for a network with them.
    """

    def __init__(self, model: GNN) -> None:
        super().__init__()
        if model.norms is not None or model.residual:
            raise ValueError(f"PyG's {type(model).__name__} (got norm or residual connections), expected neither")
        self.convs = nn.ModuleList(
            _convolution(model, number, a, b) for number, (a, b) in enumerate(pairwise(model.widths))
        )
        self.dropout = model.input_dropout, model.dropout

    @property
    def first(self) -> nn.Module:
        """The part that reads the features."""
        return self.convs[0]

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Logits [N, C]; `adjacency` is an edge index [2, 2P] or a transposed sparse tensor."""
        rate, later = self.dropout
        for conv in self.convs[:-1]:
            # With a rate of zero torch would draw numbers all the same.
            x = conv(F.dropout(x, rate, self.training) if rate else x, adjacency).relu()
            rate = later
        return self.convs[-1](F.dropout(x, rate, self.training), adjacency)


class PygResGCN(nn.Module):
    """The network of PyG's DeeperGCN example with the sizes of `model`, and the same names in its state dict."""

    def __init__(self, model: ResGCN) -> None:
        super().__init__()
        features, hidden, *_, classes = model.widths
        more = {"t": model.temperature} if model.aggregation == "softmax" else {}
        layers = (
            pyg.DeepGCNLayer(
                pyg.GENConv(hidden, hidden, aggr=model.aggregation, **more), nn.BatchNorm1d(hidden), nn.ReLU(),
                dropout=model.dropout,
            )
            for _ in model.layers
        )  # fmt: skip
        self.node_encoder, self.layers = nn.Linear(features, hidden), nn.ModuleList(layers)
        self.lin, self.dropout = nn.Linear(hidden, classes), (model.input_dropout, model.dropout)

    @property
    def first(self) -> nn.Module:
        """The part that reads the features."""
        return self.node_encoder

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Logits [N, C]."""
        layers: Any = self.layers
        first, *others = layers
        rate, later = self.dropout
        x = first.conv(self.node_encoder(F.dropout(x, rate, self.training) if rate else x), adjacency)
        for layer in others:
            x = layer(x, adjacency)
        x = first.act(first.norm(x))
        return self.lin(F.dropout(x, later, self.training))


def _convolution(model: GNN, number: int, in_channels: int, out_channels: int) -> nn.Module:
    if isinstance(model, GAT):
        conv = model.convs[number]
        assert isinstance(conv, GATConv)
        channels = out_channels // model.heads if conv.concat else out_channels
        return pyg.GATConv(in_channels, channels, model.heads, conv.concat, dropout=conv.dropout)
    if isinstance(model, GIN):
        return pyg.GINConv(pyg.MLP([in_channels, out_channels, out_channels], norm=None))
    if isinstance(model, GCN):
        return pyg.GCNConv(in_channels, out_channels, cached=True)
    if isinstance(model, GraphSAGE):
        return pyg.SAGEConv(in_channels, out_channels)
    raise ValueError(
        f"network (got {type(model).__name__}), expected one that PyG has: GCN, GraphSAGE, GAT, GIN, ResGCN"
    )


class PygTraining:
    """Full-batch training of PyG's network of the kind and sizes of `model` on dense features, as in its examples.

    Args:
        graph: to train on.
        model: network whose kind, sizes and weights are taken.
        settings: of the optimizer.
        fresh: take start weights of PyG instead, from the global random state.
        adjacency: default: the edge index.

    Raises:
        OutOfRoomError: when a step would not fit into memory.
        ValueError: as `PygStack`.
    """

    def __init__(
        self,
        graph: Graph,
        model: Network,
        settings: TrainingSettings,
        *,
        fresh: bool = False,
        adjacency: Tensor | None = None,
    ) -> None:
        check_room(f"PyG's step on {graph.name!r}", step_bytes(graph, model.widths), graph.labels.device)
        self.graph = graph
        self.x = graph.features.to_dense() if isinstance(graph.features, SparseMatrix) else graph.features
        self.adjacency = torch.cat((graph.pairs, graph.pairs.flip(0)), 1) if adjacency is None else adjacency
        peer = PygResGCN(model) if isinstance(model, ResGCN) else PygStack(model)
        self.model = peer.to(graph.labels.device)
        if not fresh:
            self.model.load_state_dict(model.state_dict())
        first = list(self.model.first.parameters())
        others = [p for p in self.model.parameters() if all(p is not other for other in first)]
        groups: list[dict[str, Any]] = [{"params": first, "weight_decay": settings.weight_decay}, {"params": others}]
        self.optimizer = torch.optim.Adam([group for group in groups if group["params"]], lr=settings.learning_rate)

    def infer(self) -> Tensor:
        """Logits [N, C] in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            return self._logits()

    def step(self) -> Tensor:
        """One step of the optimizer; the loss before it."""
        self.model.train()
        self.optimizer.zero_grad()
        train = self.graph.train_mask
        loss = label_loss(self.graph.target, self._logits()[train], self.graph.labels[train])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def epoch(self) -> tuple[float, float]:
        """One step and one evaluation: the graph's metric on the validation and on the test nodes."""
        self.step()
        logits, graph = self.infer(), self.graph
        parts = (graph.val_mask, graph.test_mask)
        val, test = (float(measure(graph.metric, logits[mask], graph.labels[mask])) for mask in parts)
        return val, test

    def _logits(self) -> Tensor:
        return forward(self.x.device, self.model, self.x, self.adjacency)

    def propagation_flops(self) -> int:
        """Flops of the sums over neighbors in one inference, 2 a stored entry and column; torch's counter sees none.

        Their backward passes go through the same entries and columns once more.
        """
        entries = 2 * self.graph.num_pairs + self.graph.num_nodes
        return 2 * entries * sum(map(_propagated, self.model.modules()))


def _propagated(part: nn.Module) -> int:
    """Columns that one of PyG's convolutions sends along its edges; 0 for any other module."""
    if isinstance(part, pyg.GCNConv):
        return part.out_channels
    if isinstance(part, pyg.GATConv):
        return part.heads * part.out_channels
    if isinstance(part, pyg.GINConv):
        return int(part.nn.in_channels)
    return int(part.in_channels) if isinstance(part, pyg.SAGEConv | pyg.GENConv) else 0


def step_bytes(graph: Graph, widths: Sequence[int]) -> int:
    """About the most bytes that a step of PyG's holds: edge index twice, two messages an edge, X three times, dense."""
    entries = 2 * graph.num_pairs + graph.num_nodes
    return entries * (32 + 8 + 2 * 4 * max(widths[1:])) + 3 * 4 * graph.num_nodes * widths[0]
