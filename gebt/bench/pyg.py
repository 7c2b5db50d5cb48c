"""The peer: the same network on PyG's road, trained as PyG's own example does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GCNConv

from gebt.graph.canonical import Graph
from gebt.models.gnn import GCN
from gebt.sparse.memory import check_room
from gebt.sparse.pattern import SparseMatrix
from gebt.train.loop import TrainingSettings


class PygGCN(nn.Module):
    """The GCN of PyG's own example: `GCNConv(cached=True)`, dropout on the input and between the layers.

    Its state dict is that of our `GCN` of equal `widths` (in, hidden layers, out). `dropout`: rates of the features and
    of the layers.
    """

    def __init__(self, widths: Sequence[int], dropout: tuple[float, float]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(GCNConv(a, b, cached=True) for a, b in pairwise(widths))
        self.dropout = dropout

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Logits [N, C]; `adjacency` is an edge index [2, 2P] or a transposed sparse tensor."""
        rate, later = self.dropout
        for conv in self.convs[:-1]:
            # With a rate of zero torch would draw numbers all the same.
            x = conv(F.dropout(x, rate, self.training) if rate else x, adjacency).relu()
            rate = later
        return self.convs[-1](F.dropout(x, rate, self.training), adjacency)


class PygTraining:
    """Full-batch training of a `PygGCN` on dense features, with the steps of PyG's example.

    Weights are those of `model` where it is given, PyG's own else (global random state). `adjacency`: the edge index
    unless another form is given. Raises `OutOfRoomError` when a step would not fit into memory.
    """

    def __init__(
        self,
        graph: Graph,
        widths: Sequence[int],
        dropout: tuple[float, float],
        settings: TrainingSettings,
        *,
        model: GCN | None = None,
        adjacency: Tensor | None = None,
    ) -> None:
        check_room(f"PyG's step on {graph.name!r}", step_bytes(graph, widths), graph.labels.device)
        self.graph = graph
        self.x = graph.features.to_dense() if isinstance(graph.features, SparseMatrix) else graph.features
        self.adjacency = torch.cat((graph.pairs, graph.pairs.flip(0)), 1) if adjacency is None else adjacency
        self.model = PygGCN(widths, dropout).to(graph.labels.device)
        if model is not None:
            self.model.load_state_dict(model.state_dict())
        groups = [
            {"params": conv.parameters(), "weight_decay": 0.0 if number else settings.weight_decay}
            for number, conv in enumerate(self.model.convs)
        ]
        self.optimizer = torch.optim.Adam(groups, lr=settings.learning_rate)

    def infer(self) -> Tensor:
        """Logits [N, C] in evaluation mode."""
        self.model.eval()
        with torch.no_grad():
            return self.model(self.x, self.adjacency)

    def step(self) -> Tensor:
        """One step of the optimizer; the loss before it."""
        self.model.train()
        self.optimizer.zero_grad()
        known = self.graph.train_mask
        loss = F.cross_entropy(self.model(self.x, self.adjacency)[known], self.graph.labels[known])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def epoch(self) -> tuple[float, float]:
        """One step and one evaluation: accuracy on the validation and on the test nodes."""
        self.step()
        hits = self.infer().argmax(1) == self.graph.labels
        val, test = (float(hits[mask].float().mean()) for mask in (self.graph.val_mask, self.graph.test_mask))
        return val, test

    def propagation_flops(self) -> int:
        """Flops of A_hat (X W) in one inference, 2 a stored entry and column; torch's counter does not see them.

        Its backward passes go through the same entries and columns once more.
        """
        entries = 2 * self.graph.num_pairs + self.graph.num_nodes
        return 2 * entries * sum(conv.out_channels for conv in self.model.convs)  # type: ignore[misc]


def step_bytes(graph: Graph, widths: Sequence[int]) -> int:
    """About the most bytes that a step of PyG's holds: edge index twice, two messages an edge, X three times, dense."""
    entries = 2 * graph.num_pairs + graph.num_nodes
    return entries * (32 + 8 + 2 * 4 * max(widths[1:])) + 3 * 4 * graph.num_nodes * widths[0]
