"""Edge scores by a function of the two nodes: what is learned on some graphs prunes any other."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gebt.graph.edges import EDGES, Edges
from gebt.graph.graph import Graph
from gebt.graph.graph_sets import GraphClassificationFold
from gebt.prune.selection import keep_highest, keep_within, pruned_count, refuse_nan
from gebt.prune.tie_breaking import TieBreaker
from gebt.sparse.ops import matmul
from gebt.sparse.pattern import SparseMatrix

WIDTH, HOPS = 16, 2
# What a file may ask for.
SIZES, LARGEST = {"num_features", "width", "hops"}, 1 << 24


class EdgeScorer(nn.Module):
    """A network that scores pairs: the same for (u, v) and (v, u), and defined on any graph with such features.

    s_uv = rho(phi_u + phi_v), phi_u = relu(sum over k = 0 .. hops of M^k [x_u, log(1 + d_u)] W_k + b), M the mean over
    neighbors and d the degrees; rho(z) = <relu(z V + c), w>. Functions of a sum are all symmetric ones. w begins at 0,
    so that all soft edge values 2 sigmoid(s) begin at 1.

    Args:
        num_features: F of the graphs.
        seed: of the initial weights.
        width: columns of phi.
        hops: how far the neighborhood reaches.

    Raises:
        ValueError: for sizes below 1, or hops below 0.

    Source:
        Zaheer et al. 2017 (functions of a sum); Sui et al. 2023 (AutoMasker: edges scored by a network).
    """

    def __init__(self, num_features: int, seed: int = 0, *, width: int = WIDTH, hops: int = HOPS) -> None:
        super().__init__()
        if min(num_features, width) < 1 or hops < 0:
            got = (num_features, width, hops)
            raise ValueError(f"features, width, hops of an edge rule (got {got}), expected at least 1, 1 and 0")
        self.reads = nn.ParameterList(nn.Parameter(torch.empty(width, num_features + 1)) for _ in range(hops + 1))
        self.shift = nn.Parameter(torch.empty(width))
        self.mix = nn.Parameter(torch.empty(width, width))
        self.mix_shift = nn.Parameter(torch.empty(width))
        self.outer = nn.Parameter(torch.empty(width))
        self.reset(seed)

    @staticmethod
    def of(state: Mapping[str, Tensor], sizes: Mapping[str, int]) -> EdgeScorer:
        """The scorer of a state dict.

        Args:
            state: its tensors by name.
            sizes: as the property `sizes`.

        Returns:
            The scorer.

        Raises:
            ValueError: where tensors and sizes do not fit each other, or a number is not finite.
        """
        if sizes.keys() != SIZES or not all(type(size) is int and 0 <= size <= LARGEST for size in sizes.values()):
            raise ValueError(f"edge rule (got sizes {dict(sizes)}), expected {sorted(SIZES)} up to {LARGEST}")
        if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in state.values()):
            raise ValueError("edge rule (got NaN, infinity or whole numbers), expected finite floating-point numbers")
        # Nothing is allocated before the sizes are known to be those of the tensors.
        width, features = sizes["width"], sizes["num_features"] + 1
        expected: dict[str, tuple[int, ...]]
        expected = {f"reads.{number}": (width, features) for number in range(min(sizes["hops"], len(state)) + 1)}
        expected |= {"shift": (width,), "mix": (width, width), "mix_shift": (width,), "outer": (width,)}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if shapes != expected:
            raise ValueError(f"edge rule (got tensors {shapes}), expected {expected}")
        edge_scorer = EdgeScorer(**sizes)
        edge_scorer.load_state_dict(dict(state))
        return edge_scorer

    @property
    def sizes(self) -> dict[str, int]:
        """The arguments, except the seed, of another scorer of this shape."""
        return {"num_features": self.num_features, "width": self.shift.numel(), "hops": len(self.reads) - 1}

    @property
    def num_features(self) -> int:
        """F of the graphs that it scores."""
        return self.reads[0].shape[1] - 1

    def reset(self, seed: int) -> None:
        """Draws new weights.

        Args:
            seed: of the draw.
        """
        generator = torch.Generator().manual_seed(seed)
        for weight in (*self.reads, self.mix):
            nn.init.xavier_uniform_(weight, generator=generator)
        for zero in (self.shift, self.mix_shift, self.outer):
            nn.init.zeros_(zero)

    def forward(self, features: Tensor | SparseMatrix, edges: Edges) -> Tensor:
        """Scores s of the pairs, differentiable.

        Args:
            features: [N, F].
            edges: P pairs.

        Returns:
            [P].
        """
        dtype = self.shift.dtype
        degrees = edges.incident_sum(torch.ones(edges.num_pairs, dtype=dtype, device=self.shift.device))
        entries, share = edges.to_entries(degrees.new_ones(edges.num_pairs)), 1 / degrees.clamp(min=1).unsqueeze(1)
        size = degrees.log1p().unsqueeze(1)
        around = torch.zeros_like(size)
        # Horner's way: one product with the graph for each hop, on as few columns as the rule has.
        for number, weight in reversed(list(enumerate(self.reads))):
            around = around + _product(features, weight[:, :-1].t()) + size * weight[:, -1]
            if number:
                around = edges.propagate(entries, around) * share
        phi = torch.relu(around + self.shift)
        u, v = edges.pairs
        return torch.relu((phi[u] + phi[v]) @ self.mix.t() + self.mix_shift) @ self.outer

    def values(self, features: Tensor | SparseMatrix, edges: Edges) -> Tensor:
        """Soft edge values 2 sigmoid(s) in (0, 2), differentiable: what the scorer is trained through.

        Args:
            features: [N, F].
            edges: P pairs.

        Returns:
            [P].
        """
        return 2 * torch.sigmoid(self(features, edges))

    def scores(self, graph: Graph) -> Tensor:
        """Scores of all pairs of a graph.

        Computed in double precision and rounded to single: pairs with equal neighborhoods get equal scores, wherever in
        whatever graph they stand.

        Args:
            graph: P pairs.

        Returns:
            [P].

        Raises:
            ValueError: for features of another width.
        """
        if graph.num_features != self.num_features:
            got = f"{graph.num_features} features"
            raise ValueError(f"graph {graph.name!r} (got {got}), expected {self.num_features} as the edge rule reads")
        with torch.no_grad():
            precise = copy.deepcopy(self).double()
            return precise(graph.features, Edges.from_pairs(graph.pairs, graph.num_nodes)).float()

    def mask(self, graph: Graph, ratio: float, seed: int = 0) -> Tensor:
        """The pairs that stay when the lowest scores of each graph go: floor(ratio P_g) of a graph of P_g pairs.

        Ties are broken by a random order of `seed` and of a pair's number within its graph, so what a graph loses does
        not depend on the others.

        Args:
            graph: one graph, or many (`GraphClassificationFold`).
            ratio: prune ratio, in [0, 1).
            seed: of the order of ties.

        Returns:
            [P] bool.

        Raises:
            ValueError: as `scores`, or for a ratio outside [0, 1).
        """
        scores = self.scores(graph)
        refuse_nan({EDGES: scores})
        return keep_of_each_graph(graph, scores, ratio, TieBreaker(seed))


def keep_of_each_graph(graph: Graph, scores: Tensor, ratio: float, tie_break: TieBreaker) -> Tensor:
    """The pairs that stay when the lowest scores of each graph go.

    Args:
        graph: one graph, or many (`GraphClassificationFold`).
        scores: [P].
        ratio: prune ratio of every graph, rounded down to a number of pairs.
        tie_break: order of equal scores.

    Returns:
        [P] bool.
    """
    if not isinstance(graph, GraphClassificationFold):
        size, prune = len(scores), pruned_count(len(scores), ratio)
        if not prune:
            return torch.ones_like(scores, dtype=torch.bool)
        return keep_highest(scores, prune, lambda entries: tie_break.of(entries + (size << 32)))[0]
    of = graph.graph_of_pair
    counts = torch.bincount(of)
    numbers = torch.arange(len(of), device=of.device) - (counts.cumsum(0) - counts)[of]
    # Graphs of other sizes have other orders: one for all would spare the same places in each.
    return keep_within(scores, of, ratio, tie_break.of(numbers + (counts[of] << 32)))


def _product(features: Tensor | SparseMatrix, weight: Tensor) -> Tensor:
    if isinstance(features, Tensor):
        return features.to(weight.dtype) @ weight
    if features.values.dtype != weight.dtype:
        features = SparseMatrix(features.pattern, features.values.to(weight.dtype))
    return matmul(features, weight)
