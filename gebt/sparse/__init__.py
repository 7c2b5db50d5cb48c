"""The fast road: CSR patterns and the products over them."""

from gebt.sparse.memory import use_huge_pages as use_huge_pages
from gebt.sparse.ops import matmul as matmul
from gebt.sparse.ops import sddmm as sddmm
from gebt.sparse.ops import spmm as spmm
from gebt.sparse.pattern import Pattern as Pattern
from gebt.sparse.pattern import SparseMatrix as SparseMatrix
