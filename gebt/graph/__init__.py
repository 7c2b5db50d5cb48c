"""Graphs in canonical form and their edges."""

from gebt.graph.canonical import Graph as Graph
from gebt.graph.canonical import GraphError as GraphError
from gebt.graph.canonical import canonical_graph as canonical_graph
from gebt.graph.edges import Edges as Edges
from gebt.graph.rules import EdgeRule as EdgeRule
from gebt.graph.scores import Agreement as Agreement
from gebt.graph.scores import NeighbourhoodShare as NeighbourhoodShare
from gebt.graph.sets import FoldOfGraphs as FoldOfGraphs
