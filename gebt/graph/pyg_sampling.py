"""Neighbors sampled by PyG's sampler and its native code (pyg-lib, or torch-sparse), pair numbers included."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch_geometric.typing as installed
from torch import Tensor

from gebt.graph.edges import Edges


class PygNeighbors:
    """Draws neighbors of nodes of one graph as `torch_geometric.loader.NeighborLoader` does.

    Args:
        edges: the graph.
        fanouts: neighbors drawn at each distance.

    Raises:
        ValueError: where PyG has no native part to draw with.
    """

    def __init__(self, edges: Edges, fanouts: Sequence[int]) -> None:
        if not (installed.WITH_PYG_LIB or installed.WITH_TORCH_SPARSE):
            raise ValueError(
                "--sampler (got 'pyg' without its native parts), expected pyg-lib or torch-sparse; or 'own'"
            )
        from torch_geometric.data import Data
        from torch_geometric.sampler import NeighborSampler

        pattern = edges.pattern.to("cpu")
        others = pattern.row != pattern.col
        self._pairs = edges.source.cpu()[others].long()
        neighbor, node = pattern.col[others].long(), pattern.row[others].long()
        data = Data(edge_index=torch.stack((neighbor, node)), num_nodes=edges.num_nodes)
        with warnings.catch_warnings():
            # With torch-sparse alone: deprecated, and the same.
            warnings.filterwarnings("ignore", "Using 'NeighborSampler' without a 'pyg-lib'", UserWarning)
            self._sampler = NeighborSampler(data, num_neighbors=list(fanouts), is_sorted=True)

    def draw(self, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Samples around some nodes. PyG draws from torch's global random state, which is restored afterwards.

        Args:
            targets: [T].
            seed: of the draw.

        Returns:
            The targets and the nodes drawn, rising, and the numbers of the pairs drawn, rising.
        """
        from torch_geometric.sampler import NodeSamplerInput

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sample = self._sampler.sample_from_nodes(NodeSamplerInput(None, targets))
        return sample.node.sort().values, torch.unique(self._pairs[sample.edge])
