"""The data sets of the Open Graph Benchmark that are known by name, and the description of any other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OgbSet:
    """One data set of OGB, as its master.csv and its site describe it.

    Attributes:
        name: one that begins with "ogbl-" is a link set.
        classes: C, of each task.
        features: columns of node-feat, 0 where there is no such file.
        edge_features: columns of edge-feat, 0 where there is no such file.
        tasks: columns of labels.
        metric: OGB's name of the metric.
        split: folder of the split.
        both_ways: whether the files name each undirected edge once (OGB's add_inverse_edge).
        node_more: further files of nodes, "node_year" and the like.
        edge_more: further files of edges.
        binary: npz instead of csv.
        nodes: number of nodes that the files must hold, 0 for any.
        edges: number of edges that the files must hold, 0 for any.
        address: of the zip file.

    Example:
        >>> OGB["ogbn-arxiv"].nodes, OGB["ogbn-arxiv"].links, OGB["ogbl-collab"].links
        (169343, False, True)
    """

    name: str
    classes: int = 0
    features: int = 0
    edge_features: int = 0
    tasks: int = 1
    metric: str = "acc"
    split: str = "random"
    both_ways: bool = False
    node_more: tuple[str, ...] = ()
    edge_more: tuple[str, ...] = ()
    binary: bool = False
    nodes: int = 0
    edges: int = 0
    address: str = ""

    @property
    def links(self) -> bool:
        """True for a set of link prediction."""
        return self.name.startswith("ogbl-")


_SITE = "https://snap.stanford.edu/ogb/data"
OGB = {
    info.name: info
    for info in (
        OgbSet(
            "ogbn-arxiv", 40, 128, split="time", node_more=("node_year",),
            nodes=169_343, edges=1_166_243, address=f"{_SITE}/nodeproppred/arxiv.zip",
        ),
        OgbSet(
            "ogbn-products", 47, 100, split="sales_ranking", both_ways=True,
            nodes=2_449_029, edges=61_859_140, address=f"{_SITE}/nodeproppred/products.zip",
        ),
        OgbSet(
            "ogbn-proteins", 2, 0, 8, tasks=112, metric="rocauc", split="species", both_ways=True,
            node_more=("node_species",), nodes=132_534, edges=39_561_252,
            address=f"{_SITE}/nodeproppred/proteins.zip",
        ),
        OgbSet(
            "ogbn-papers100M", 172, 128, split="time", node_more=("node_year",), binary=True,
            nodes=111_059_956, edges=1_615_685_872, address=f"{_SITE}/nodeproppred/papers100M-bin.zip",
        ),
        OgbSet(
            "ogbl-collab", 0, 128, tasks=0, metric="hits@50", split="time", both_ways=True,
            edge_more=("edge_weight", "edge_year"), nodes=235_868, edges=1_179_052,
            address=f"{_SITE}/linkproppred/collab.zip",
        ),
    )
}  # fmt: skip
