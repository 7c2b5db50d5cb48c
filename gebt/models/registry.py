"""Networks by name, with one constructor for all."""

from __future__ import annotations

from typing import Any, Literal, get_args

from gebt.models.gnn import GAT, GCN, GIN, GNN, GraphSAGE
from gebt.models.resgcn import Aggregation, ResGCN
from gebt.prune.selection import EntryScope

ModelName = Literal["gcn", "gat", "gin", "sage", "resgcn7", "resgcn14", "resgcn28"]
# Networks that list what can be removed of them (`models.compact`).
Network = GNN | ResGCN

HEADS = 8
# What the literature trains each network with, where it is not what the data set's own (a GCN's) settings say:
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
    """A fresh network: "gcn", "gat" (`heads`), "gin", "sage", or "resgcn7", "resgcn14", "resgcn28" (`aggregation`).

    Raises `ValueError` for another name and as the networks themselves.
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
