"""Graphs in canonical form and their edges."""

from gebt.graph.edge_scorer import EdgeScorer as EdgeScorer
from gebt.graph.edge_scores import LocalDegree as LocalDegree
from gebt.graph.edge_scores import Similarity as Similarity
from gebt.graph.edges import Edges as Edges
from gebt.graph.graph import Graph as Graph
from gebt.graph.graph import GraphError as GraphError
from gebt.graph.graph import canonical_graph as canonical_graph
from gebt.graph.graph import check_classes as check_classes
from gebt.graph.graph_sets import GraphClassificationFold as GraphClassificationFold
from gebt.graph.links import LinkGraph as LinkGraph
from gebt.graph.links import hold_out_links as hold_out_links
