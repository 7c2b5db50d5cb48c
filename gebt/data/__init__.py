"""The data room: graphs by name or from PyTorch Geometric, checked and in canonical form."""

from gebt.data.graphs import check_dataset, data_root, load_graph
from gebt.data.manifest import DatasetInfo, FileInfo, RecordedSettings, dataset_info, dataset_names
from gebt.data.pyg import from_pyg
from gebt.data.raw import UnsafeFileError
from gebt.data.surrogate import SurrogateSpec, generate

__all__ = [
    "DatasetInfo",
    "FileInfo",
    "RecordedSettings",
    "SurrogateSpec",
    "UnsafeFileError",
    "check_dataset",
    "data_root",
    "dataset_info",
    "dataset_names",
    "from_pyg",
    "generate",
    "load_graph",
]
