"""Graphs by name, from folders, OGB or PyTorch Geometric: read, checked and in canonical form."""

from gebt.data.graphs import check_dataset, check_folder, data_root, load_graph, names_here
from gebt.data.manifest import DatasetInfo, FileInfo, RecordedSettings, dataset_info, dataset_names
from gebt.data.mapped.mapped_graph import MappedGraph, open_mapped
from gebt.data.mapped.streams import GraphStream
from gebt.data.readers.folder import save_graph_folder
from gebt.data.readers.ogb import OgbGraph, read_ogb
from gebt.data.readers.ogb_graphs import ogb_graph, ogb_links
from gebt.data.readers.ogb_sets import OGB, OgbSet
from gebt.data.readers.ogb_write import as_ogb, write_ogb
from gebt.data.readers.pyg import from_pyg as from_pyg
from gebt.data.readers.pyg import to_pyg as to_pyg
from gebt.data.readers.reading import UnsafeFileError
from gebt.data.readers.tu import GraphDataset, read_graph_dataset
from gebt.data.surrogate import SurrogateSpec, generate

__all__ = [
    "OGB",
    "DatasetInfo",
    "FileInfo",
    "GraphDataset",
    "GraphStream",
    "MappedGraph",
    "OgbGraph",
    "OgbSet",
    "RecordedSettings",
    "SurrogateSpec",
    "UnsafeFileError",
    "as_ogb",
    "check_dataset",
    "check_folder",
    "data_root",
    "dataset_info",
    "dataset_names",
    "from_pyg",
    "generate",
    "load_graph",
    "names_here",
    "ogb_graph",
    "ogb_links",
    "open_mapped",
    "read_graph_dataset",
    "read_ogb",
    "save_graph_folder",
    "to_pyg",
    "write_ogb",
]
