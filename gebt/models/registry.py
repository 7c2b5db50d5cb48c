"""Graph networks by name, with one constructor for all."""

from __future__ import annotations

from typing import Any, Literal, get_args

from gebt.models.gnn import GAT, GCN, GIN, GNN, GraphSAGE
from gebt.models.resgcn import Aggregation, ResGCN
from gebt.prune.selection import EntryScope

ModelName = Literal["gcn", "gat", "gin", "sage", "resgcn7", "resgcn14", "resgcn28"]
# Networks that list what can be removed of them (`models.compact`).
Network = GNN | ResGCN

HEADS = 8
# What the literature trains each network with, where it differs from the data set's settings (those of a GCN):
# Velickovic et al. 2018 for GAT, the GEBT paper for ResGCN; GIN by validation accuracy on Cora and CiteSeer.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gat": {"hidden": 64, "dropout": 0.6, "learning_rate": 0.005},
    "gin": {"hidden": 64, "dropout": 0.8, "learning_rate": 0.003, "weight_decay": 5e-3},
    **{name: {"hidden": 128, "depth": int(name[6:])} for name in get_args(ModelName) if name.startswith("resgcn")},
}
# Layers of a deep network with normalization are not to be compared by magnitude: together the first one loses all.
SCOPES: dict[str, EntryScope] = {name: "layer" for name in get_args(ModelName) if name.startswith("resgcn")}


def build(
    name: ModelName,
    in_channels: int,
    hidden_channels: int,
    out_channels: int,
    depth: int,
    dropout: float,
    seed: int,
    *,
    input_dropout: float | None = None,
    heads: int = HEADS,
    aggregation: Aggregation = "softmax",
) -> Network:
    """Builds a graph network by name.

    Args:
        name: "gcn", "gat", "gin", "sage", "resgcn7", "resgcn14" or "resgcn28".
        in_channels: number of features, F.
        hidden_channels: width of the hidden layers, H.
        out_channels: number of outputs, C.
        depth: number of layers.
        dropout: rate.
        seed: of the weights.
        input_dropout: rate for the features; None: `dropout`.
        heads: of "gat".
        aggregation: of "resgcn*": "softmax", "mean" or "add".

    Returns:
        The network with fresh weights.

    Raises:
        ValueError: for another name, and as the networks themselves.

    Example:
        >>> model = build("sage", 5, 8, 3, depth=2, dropout=0.5, seed=0)
        >>> type(model).__name__, model.widths
        ('GraphSAGE', [5, 8, 3])
    """
    if name not in get_args(ModelName):
        raise ValueError(f"model (got {name!r}), expected one of {get_args(ModelName)}")
    sizes: tuple[Any, ...] = (in_channels, hidden_channels, out_channels, depth, dropout, seed)
    if name.startswith("resgcn"):
        return ResGCN(*sizes, input_dropout=input_dropout, aggregation=aggregation)
    if name == "gat":
        return GAT(*sizes, input_dropout=input_dropout, heads=heads)
    kinds: dict[str, type[GNN]] = {"gcn": GCN, "gin": GIN, "sage": GraphSAGE}
    return kinds[name](*sizes, input_dropout=input_dropout)
