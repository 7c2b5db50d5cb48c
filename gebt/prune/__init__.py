"""The pruning core: masks, scores, selection, detector, enforcement. Needs torch alone."""

from gebt.prune.detector import EarlyBird as EarlyBird
from gebt.prune.detector import mask_distance as mask_distance
from gebt.prune.enforce import enforce_mask as enforce_mask
from gebt.prune.mask import Mask as Mask
from gebt.prune.scores import magnitude as magnitude
from gebt.prune.scores import prunable_weights as prunable_weights
from gebt.prune.selection import make_mask as make_mask
