"""The groups of options on a help page, in the order in which they are shown."""

from __future__ import annotations

from cyclopts import Group, Parameter


def _group(name: str, text: str) -> Parameter:
    return Parameter(group=Group.create_ordered(name, text))


# Annotations of options: `dataset: Annotated[str, DATA]`.
DATA = _group("Data", "The graph, or images, and what is learned on them.")
NETWORK = _group("Network", "The network and its training, unpruned. Defaults: recorded for the data set and network.")
SEARCH = _group("Search", "How a ticket is found.")
RETRAINING = _group("Retraining", "How a ticket is trained once it is found.")
BATCHES = _group(
    "Batches", "Training batch by batch: for graphs that are large or on disk; torchrun's processes share them."
)
# Without a text: it also has the options of commands that train nothing.
RUN = _group("Run", "")
GROUPS = (DATA, NETWORK, SEARCH, RETRAINING, BATCHES, RUN)
