"""What a run fills in where an option is left out: by preset, task and data set."""

from __future__ import annotations

from typing import Any

from gebt.data.manifest import TaskName

# What a preset says besides its search settings (docs/method.md): epochs of dense training (None: those recorded for
# the data set), epochs of retraining, and the learning rates of search and retraining as multiples of the dense one.
TRAINING: dict[str, tuple[int | None, int, float, float]] = {
    "paper": (100, 100, 1.0, 1.0),
    "early-bird": (None, 100, 1.0, 4.0),
    "fast": (None, 60, 2.0, 6.0),
    "best": (None, 100, 1.0, 4.0),
}

# What can be learned on a data set that was recorded for a task.
TASKS: dict[TaskName, tuple[TaskName, ...]] = {"nodes": ("nodes", "links"), "links": ("links",), "graphs": ("graphs",)}

# What a network for links is trained with where the data set was recorded for nodes: by validation on Cora. A ticket's
# training is as long as the dense one, at twice its rate (docs/method.md).
LINKS: dict[str, Any] = {
    "hidden": 128,
    "depth": 1,
    "dropout": 0.5,
    "input_dropout": 0.8,
    "learning_rate": 0.02,
    "weight_decay": 0.0,
    "epochs": 200,
}

# What a search on a set of graphs does differently from its preset: edges of unseen graphs are pruned too.
GRAPHS: dict[str, Any] = {
    "edge_score": "learned",
    "edge_learning_rate": 0.01,
    "label_propagation": 0.0,
    "edge_l1": 0.0,
}
