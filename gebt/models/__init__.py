"""Networks that run on the sparse road."""

from gebt.models.gnn import GCN as GCN
