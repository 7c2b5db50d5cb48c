"""The data room: graphs by name or from PyTorch Geometric, checked and in canonical form."""

from gebt.data.graphs import check_dataset, data_root, load_graph
from gebt.data.manifest import DatasetInfo, FileInfo, RecordedSettings, dataset_info, dataset_names
from gebt.data.pyg import from_pyg
from gebt.data.raw import UnsafeFileError

__all__ = [
    "DatasetInfo",
    "FileInfo",
    "RecordedSettings",
    "UnsafeFileError",
    "check_dataset",
    "data_root",
    "dataset_info",
    "dataset_names",
    "from_pyg",
    "load_graph",
]
