"""Graphs in canonical form and their edges."""

from gebt.graph.canonical import Graph as Graph
from gebt.graph.canonical import GraphError as GraphError
from gebt.graph.canonical import canonical_graph as canonical_graph
from gebt.graph.canonical import check_classes as check_classes
from gebt.graph.edges import Edges as Edges
from gebt.graph.links import LinkGraph as LinkGraph
from gebt.graph.links import hold_out_links as hold_out_links
from gebt.graph.rules import EdgeRule as EdgeRule
from gebt.graph.scores import Agreement as Agreement
from gebt.graph.scores import NeighbourhoodShare as NeighbourhoodShare
from gebt.graph.sets import FoldOfGraphs as FoldOfGraphs
