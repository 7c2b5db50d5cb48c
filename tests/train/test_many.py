"""Networks trained together: each as it would be by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gebt.graph import Graph
from gebt.models import GCN
from gebt.prune import Mask
from gebt.sparse import SparseMatrix
from gebt.train import History, NodeTask, TrainingSettings, fit
from gebt.train.loop import adam
from gebt.train.many import MOST_WORK, ManySettings, Member, each, fit_many, pays

SEEDS = (0, 3, 7)
SETTINGS = TrainingSettings(epochs=25, learning_rate=0.05)
