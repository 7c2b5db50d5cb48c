"""A masked network and its graph rewritten as a smaller network on a smaller graph."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gebt.graph.graph import Graph
from gebt.measure.cost import measure_seconds
from gebt.models.gnn import GCN
from gebt.models.linear import SemiStructuredLinear, SparseLinear
from gebt.models.links import LinkPredictor
from gebt.models.registry import Network
from gebt.prune.mask import Mask
from gebt.prune.n_m_sparsity import is_two_of_four
from gebt.sparse.backends import AUTO, current
from gebt.sparse.compaction import check_pruned_are_zero, live_units, scattered, sliced
from gebt.sparse.pattern import SparseMatrix
from gebt.sparse.precision import current as current_precision
from gebt.sparse.precision import forward

# Below this share of kept entries a weight matrix is worth a try as a sparse one (the measurement decides).
SPARSE_WEIGHT_DENSITY = 0.5
# Above it, stored features are worth a try as a dense matrix.
DENSE_FEATURE_DENSITY = 0.05

log = logging.getLogger("gebt.compaction")


@dataclass(frozen=True, eq=False)
class CompactedModel:
    """What `compact_model` returns: a smaller model on a graph with fewer feature columns and the same nodes and split.

    Attributes:
        model: the smaller network.
        graph: the graph with the feature columns that the network still reads.
        mask: entries that are still pruned, to be kept at zero in training; None when there are none.
        live: indices of the remaining units of every group.
        products: how each layer multiplies, with measured seconds.
    """

    model: Network | LinkPredictor
    graph: Graph
    mask: Mask | None
    live: dict[str, Tensor]
    products: list[dict[str, float | str]]

    def restore(self, model: Network | LinkPredictor) -> None:
        """Writes the weights of the small network into the full one it was made from.

        Args:
            model: the full network, changed in place.
        """
        state = dict(self.model.state_dict())
        for name, part in self.model.named_modules():
            if isinstance(part, SparseLinear | SemiStructuredLinear):
                # It stores its weights otherwise, and has no such tensor in its state.
                state.pop(f"{name}.values", None)
                state[f"{name}.weight"] = part.weight
        model.load_state_dict(scattered(state, model.state_dict(), model.groups(), self.live))


def compact_model(
    model: Network | LinkPredictor, mask: Mask, graph: Graph, *, training: bool = True, choose: bool | None = None
) -> CompactedModel:
    """The network without the units `mask` has made useless, on the graph without the feature columns nobody reads.

    Removed are feature columns whose weights are all pruned, and hidden units that are disconnected on either side.
    Outputs and gradients are those of the masked network up to rounding.

    Args:
        model: the masked network, not changed.
        mask: over its weights; pruned entries are zero.
        graph: what the network is run on.
        training: products are measured with the backward pass.
        choose: whether to measure the products of each layer of a GCN and take the cheapest: features stored sparse or
            dense, weights dense (with zeros) or sparse. False: weights dense, features stored as they are. None: only
            where the backend is "auto", since what a clock decides does not repeat bit for bit.

    Returns:
        The smaller network and graph.

    Raises:
        ValueError: naming the tensor when pruned entries are not zero, so that removing them would change the output.

    Example:
        >>> model = GCN(2, 3, 2, seed=0)
        >>> mask = Mask({"convs.0.lin.weight": torch.tensor([[True, False]] * 3)})
        >>> mask.apply_(dict(model.named_parameters()))
        >>> labels, split = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
        >>> pairs = torch.tensor([[0, 1], [1, 2]])
    >>> graph = Graph("path", pairs, torch.ones(4, 2), labels, split, split, split, num_classes=2)
        >>> compact_model(model, mask, graph).graph.features.shape
        torch.Size([4, 1])
    """
    state, groups = model.state_dict(), model.groups()
    check_pruned_are_zero(state, mask)
    live = live_units(groups, state, mask)
    small = model.resized({name: units.numel() for name, units in live.items()})
    small.load_state_dict(sliced(state, groups, live))
    small.train(model.training)
    for parameter, large in zip(small.parameters(), model.parameters(), strict=True):
        parameter.requires_grad_(large.requires_grad)
    inside = Mask(sliced(mask, groups, live))
    features = graph.features
    columns = live["features"]
    if columns.numel() < features.shape[1]:
        features = features.columns(columns) if isinstance(features, SparseMatrix) else features[:, columns]
    products: list[dict[str, float | str]] = []
    if isinstance(small, GCN) and (choose if choose is not None else current() == AUTO):
        features, products = _cheapest_products(small, inside, features, training)
    partly_pruned = {
        name: kept for name, kept in inside.items() if name in dict(small.named_parameters()) and not kept.all()
    }
    return CompactedModel(
        small, replace(graph, features=features), Mask(partly_pruned) if partly_pruned else None, live, products
    )


def _cheapest_products(
    model: GCN, mask: Mask, features: Tensor | SparseMatrix, training: bool
) -> tuple[Tensor | SparseMatrix, list[dict[str, float | str]]]:
    """Settles in place how each layer of `model` multiplies; returns the features as they are best stored."""
    products = []
    for number, layer in enumerate(model.layers):
        weight, kept = layer.lin.weight, mask.get(f"convs.{number}.lin.weight")
        stored: dict[str, Tensor | SparseMatrix] = {}
        if number == 0:
            stored = _ways_to_store(features)
        else:
            stored["dense"] = torch.ones(features.shape[0], weight.shape[1], device=weight.device, dtype=weight.dtype)
        ways: dict[str, tuple[Tensor | SparseMatrix, Any]] = {name: (x, layer.lin) for name, x in stored.items()}
        if kept is not None and float(kept.float().mean()) <= SPARSE_WEIGHT_DENSITY and "dense" in stored:
            sparse = SparseLinear(weight, kept).requires_grad_(weight.requires_grad)
            ways["sparse weights"] = (stored["dense"], sparse)
        if not training and kept is not None and weight.device.type == "cuda" and is_two_of_four(kept):
            ways.update(_on_tensor_cores(stored, weight))
        seconds: dict[str, float | str] = {}
        if len(ways) > 1:
            back_to_x = number > 0
            seconds.update({name: _seconds(lin, x, training, back_to_x) for name, (x, lin) in ways.items()})
        chosen = min(seconds, key=lambda name: seconds[name]) if seconds else next(iter(ways))
        if number == 0:
            features = ways[chosen][0]
        layer.lin = ways[chosen][1]
        products.append({"layer": f"convs.{number}", "chosen": chosen, **seconds})
    return features, products


def _on_tensor_cores(
    stored: dict[str, Tensor | SparseMatrix], weight: Tensor
) -> dict[str, tuple[Tensor | SparseMatrix, nn.Module]]:
    x = stored.get("dense")
    if x is None:
        return {}
    try:
        lin = SemiStructuredLinear(weight)
        forward(weight.device, lin, x)  # some kernels refuse only when they multiply
    except (RuntimeError, NotImplementedError) as error:
        # The kernel wants certain types and multiples of its tile; it says so itself.
        way_out = "" if current_precision() == "bf16" else "; on an H100 it takes 16 bits alone: --precision bf16"
        log.info("2:4 product of %s: %s%s", tuple(weight.shape), error, way_out)
        return {}
    return {"2:4": (x, lin)}


def _ways_to_store(features: Tensor | SparseMatrix) -> dict[str, Tensor | SparseMatrix]:
    if isinstance(features, SparseMatrix):
        ways: dict[str, Tensor | SparseMatrix] = {"sparse features": features}
        if features.pattern.density >= DENSE_FEATURE_DENSITY:
            ways["dense"] = features.to_dense()
        return ways
    return {"dense": features}


def _seconds(lin: nn.Module, x: Tensor | SparseMatrix, training: bool, back_to_x: bool) -> float:
    device = x.device if isinstance(x, Tensor) else x.values.device

    def infer() -> None:
        with torch.no_grad():
            forward(device, lin, x)

    def both() -> None:
        wanted: list[Tensor] = [p for p in lin.parameters() if p.requires_grad]
        source = x
        if back_to_x and isinstance(x, Tensor):
            source = x.detach().requires_grad_()
            wanted.append(source)
        y = forward(device, lin, source)
        if wanted:
            torch.autograd.grad(y.sum(), wanted)

    return measure_seconds(both if training else infer, repeats=3, warmup=1).median
