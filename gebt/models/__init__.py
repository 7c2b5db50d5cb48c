"""Graph neural networks with sparse adjacency and features, and what is built on them."""

from gebt.models.gnn import GAT as GAT
from gebt.models.gnn import GCN as GCN
from gebt.models.gnn import GIN as GIN
from gebt.models.gnn import GraphSAGE as GraphSAGE
from gebt.models.graph_classifier import GraphClassifier as GraphClassifier
from gebt.models.links import LinkPredictor as LinkPredictor
from gebt.models.resgcn import ResGCN as ResGCN
