"""One ticket, measured: dense, masked, compacted and PyG, in inference, in a training step and in the full run."""

from gebt.experiments.bench.measure import NOT_MEASURED as NOT_MEASURED
from gebt.experiments.bench.measure import bench as bench
from gebt.experiments.bench.variants import PARTS as PARTS
from gebt.experiments.bench.variants import VARIANTS as VARIANTS
