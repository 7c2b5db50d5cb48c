"""Training loops."""

from gebt.train.links import LinkTask as LinkTask
from gebt.train.loop import History as History
from gebt.train.loop import NodeTask as NodeTask
from gebt.train.loop import TrainingSettings as TrainingSettings
from gebt.train.loop import fit as fit
