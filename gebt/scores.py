"""All scores of the pruning core: how much each entry, or channel, is worth keeping. Needs torch alone."""

from gebt.prune.saliency import grasp as grasp
from gebt.prune.saliency import snip as snip
from gebt.prune.saliency import taylor as taylor
from gebt.prune.scores import bn_scale as bn_scale
from gebt.prune.scores import magnitude as magnitude
from gebt.prune.scores import prunable_weights as prunable_weights
from gebt.prune.scores import random as random
from gebt.prune.synflow import synflow as synflow
