"""One ticket, measured: dense, masked, compacted and PyG, in inference, in a training step and in the whole run."""

from gebt.bench.measure import NOT_MEASURED as NOT_MEASURED
from gebt.bench.measure import bench as bench
from gebt.bench.variants import ARMS as ARMS
from gebt.bench.variants import PARTS as PARTS
