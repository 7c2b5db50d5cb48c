"""Link prediction: a graph network as encoder of nodes, and a perceptron that scores pairs of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gebt.graph.edges import Edges
from gebt.models.dropout import dropout
from gebt.models.linear import Linear
from gebt.models.registry import Network
from gebt.sparse.compaction import Group
from gebt.sparse.pattern import SparseMatrix

# Pairs scored at a time: nothing as large as all pairs times channels is ever there, forward or backward.
CHUNK = 1 << 15
# What separates the predictor's random numbers from the encoder's, which are those of `seed` itself.
_PREDICTOR = 7_368_787


class LinkPredictor(nn.Module):
    """score(u, v) = MLP(h_u * h_v), h = encoder(X) [N, d]: the predictor of OGB's ogbl-collab example.

    The MLP has ReLU and dropout between its layers; its matrices are pruned as all others.

    Args:
        encoder: the graph network.
        hidden: units of the hidden layers of the MLP.
        depth: number of linear layers of the MLP.
        dropout: rate between them.
        seed: of the weights, those of the encoder included.

    Raises:
        ValueError: for a width or depth under 1, or a rate outside [0, 1).

    Example:
        >>> from gebt.models.gnn import GCN
        >>> edges = Edges.from_pairs(torch.tensor([[0, 1, 2], [1, 2, 3]]), num_nodes=4)
        >>> model = LinkPredictor(GCN(5, 8, 6), hidden=4)
        >>> model(torch.ones(4, 5), edges).shape, model(torch.ones(4, 5), edges, pairs=edges.pairs).shape
        (torch.Size([4, 6]), torch.Size([3]))
    """

    def __init__(self, encoder: Network, hidden: int, depth: int = 2, *, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        if min(hidden, depth) < 1 or not 0 <= dropout < 1:
            got = (hidden, depth, dropout)
            raise ValueError(f"predictor (got hidden, depth, dropout = {got}), expected >= 1, >= 1, 0 <= dropout < 1")
        self.encoder, self.dropout = encoder, dropout
        self.widths = [encoder.widths[-1], *[hidden] * (depth - 1), 1]
        self.lins = nn.ModuleList(Linear(*sizes, bias=True) for sizes in pairwise(self.widths))
        self.reset(seed)

    @property
    def first(self) -> nn.Module:
        """The layer that reads the features."""
        return self.encoder.first

    @property
    def starts_from_aggregated(self) -> bool:
        """Whether the encoder can start from A_hat X."""
        return self.encoder.starts_from_aggregated

    def reset(self, seed: int) -> None:
        """Draws fresh weights.

        Args:
            seed: of the weights.
        """
        self.seed = seed
        self.encoder.reset(seed)
        generator = torch.Generator().manual_seed(seed + _PREDICTOR)
        for lin in self._lins():
            lin.reset(generator)

    def groups(self) -> list[Group]:
        """Groups of units of the encoder that can be removed together; its output and the predictor stay.

        Returns:
            The groups, input first.
        """
        return [
            Group(group.name, *([(f"encoder.{name}", dim) for name, dim in part] for part in (group.made, group.read)))
            for group in self.encoder.groups()
        ]

    def resized(self, sizes: Mapping[str, int]) -> LinkPredictor:
        """A network of the same kind with other numbers of units in some groups; its weights are to be loaded.

        Args:
            sizes: numbers of units by group name; other groups stay as they are.

        Returns:
            The network, on the same device.
        """
        encoder, hidden, depth = self.encoder.resized(sizes), self.widths[-2], len(self.lins)
        return LinkPredictor(encoder, hidden, depth, dropout=self.dropout).to(next(self.parameters()))

    def forward(
        self,
        features: Tensor | SparseMatrix,
        edges: Edges,
        gates: Tensor | None = None,
        aggregated: Tensor | None = None,
        pairs: Tensor | None = None,
    ) -> Tensor:
        """Computes embeddings of nodes or scores of pairs.

        Args:
            features: [N, F], dense or sparse.
            edges: the adjacency.
            gates: soft values of the pairs, [P] (search only); None: every pair counts 1.
            aggregated: A_hat X, as in `GNN.forward`.
            pairs: node pairs, [2, n].

        Returns:
            Scores of `pairs`, [n]; without `pairs` embeddings of all nodes, [N, d].
        """
        inputs = (features, edges, gates)
        h = self.encoder(*inputs, aggregated) if self.starts_from_aggregated else self.encoder(*inputs)
        return h if pairs is None else self.score(h, pairs)

    def score(self, h: Tensor, pairs: Tensor) -> Tensor:
        """Scores pairs from embeddings, `CHUNK` pairs at a time, also in the backward pass.

        Args:
            h: embeddings, [N, d].
            pairs: node pairs, [2, n].

        Returns:
            Scores, [n].
        """
        if pairs.shape[1] <= CHUNK:
            return self._scored(h, pairs)
        if not torch.is_grad_enabled():
            return torch.cat([self._scored(h, chunk) for chunk in pairs.split(CHUNK, 1)])
        # Each chunk is scored again when its gradient is due; it then draws the same dropout.
        chunks = [checkpoint(self._scored, h, chunk, use_reentrant=False) for chunk in pairs.split(CHUNK, 1)]
        return torch.cat(cast(list[Tensor], chunks))

    def _scored(self, h: Tensor, pairs: Tensor) -> Tensor:
        x = h.index_select(0, pairs[0]) * h.index_select(0, pairs[1])
        *hidden, last = self._lins()
        for lin in hidden:
            x = dropout(lin(x), self.dropout, self.training, relu=True)
        return last(x).squeeze(1)

    def _lins(self) -> list[Linear]:
        return cast(list[Linear], list(self.lins))
