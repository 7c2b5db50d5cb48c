"""How a ticket is searched for, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gebt.graph.edge_scores import EdgeScore, EdgeValues
from gebt.graph.graph import Graph, check_classes
from gebt.prune.detector import Criterion, EarlyBird, Normalisation
from gebt.prune.selection import EntryScope
from gebt.sparse.structure import UnitScore, WeightStructure
from gebt.train.loop import TrainingSettings

# When the masks are drawn for good: in the epoch the detector fires, or in that of the best validation accuracy.
Draw = Literal["detector", "validation"]


_CHOICES: dict[str, tuple[str, ...]] = {
    "scope": get_args(EntryScope),
    "edge_score": get_args(EdgeScore),
    "weight_structure": get_args(WeightStructure),
    "unit_score": get_args(UnitScore),
    "draw": get_args(Draw),
    "edge_values": get_args(EdgeValues),
}


@dataclass(frozen=True)
class SearchSettings:
    """How a ticket is searched for; the values of the presets and why are in docs/method.md.

    `edge_score` "agreement" and "need" need no edge values, so none are trained; "rule" trains a function of the nodes
    instead (`gebt.graph.edge_scorer`). `draw` "validation" trains for all
    `max_epochs` and draws from the network of the best validation epoch. `soft_labels`: what that network says of every
    node goes into the ticket, for its retraining to learn from. What it says, for this and for "agreement", is `spread`
    over the graph by that share (`graph.label_propagation`), unless this lowers the accuracy on the validation nodes; with
    `smoothing` it is a running mean over the epochs, the earlier ones counting that share. `edge_values`: what kept
    edges count.
    """

    max_epochs: int = 100
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    edge_learning_rate: float = 1e-3
    edge_l1: float = 0.0
    edge_score: EdgeScore = "share"
    scope: EntryScope = "global"
    normalisation: Normalisation = "swap"
    criterion: Criterion = "sum"
    threshold: float = 0.03
    window: int = 3
    warmup: int = 0
    weight_structure: WeightStructure = "entry"
    unit_score: UnitScore = "magnitude"
    draw: Draw = "detector"
    soft_labels: bool = False
    spread: float = 0.0
    smoothing: float = 0.0
    edge_values: EdgeValues = "unit"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name.replace('_', ' ')} (got {getattr(self, name)!r}), expected one of {allowed}")
        if not (self.edge_learning_rate > 0 and self.edge_l1 >= 0):
            got = (self.edge_learning_rate, self.edge_l1)
            raise ValueError(f"edge learning rate, edge L1 (got {got}), expected > 0 and >= 0")
        for name in ("spread", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} (got {getattr(self, name)}), expected 0 <= {name} < 1")
        if self.edge_values == "trained" and not self.trains_edges:
            score = self.edge_score
            raise ValueError(f"edge values (got 'trained', but edge score {score!r} trains none), expected 'unit'")
        if self.edge_score == "rule" and self.edge_values != "unit":
            raise ValueError(f"edge values (got {self.edge_values!r}), expected 'unit' with edge score 'rule'")
        if self.smoothing and self.draw != "validation":
            raise ValueError(f"smoothing (got {self.smoothing}), expected 0 unless draw is 'validation'")
        self.training()
        self.detector()

    @property
    def trains_edges(self) -> bool:
        """Whether edge values train beside the weights."""
        return self.edge_score not in ("agreement", "need", "rule")

    def check(self, graph: Graph) -> None:
        """Raises `GraphError` where the graph's labels are no classes and these settings need some."""
        if self.edge_score in ("agreement", "need", "mixed") or self.soft_labels:
            check_classes(graph, f"edge score {self.edge_score!r}, soft labels {self.soft_labels}")

    def training(self) -> TrainingSettings:
        """The settings of the weights' optimizer."""
        return TrainingSettings(self.max_epochs, self.learning_rate, self.weight_decay)

    def detector(self) -> EarlyBird:
        """A fresh detector."""
        return EarlyBird(self.threshold, self.window, self.normalisation, self.criterion, self.warmup)


PRESETS = {
    # GEBT (AAAI 2022), Algorithm 2 and its settings to the letter; the paper names L_reg but no coefficient.
    "paper": SearchSettings(edge_l1=1e-4, edge_score="magnitude", normalisation="entry", threshold=0.1),
    "default": SearchSettings(),
    # What accuracy can be had: the search's own network, trained to its best, ranks the edges and teaches the ticket.
    "best": SearchSettings(max_epochs=200, edge_score="need", draw="validation", soft_labels=True, spread=0.8),
    # The same with a search and a retraining that together take about as long as dense training.
    "fast": SearchSettings(
        max_epochs=100, learning_rate=0.02, edge_score="need", draw="validation", soft_labels=True, spread=0.8
    ),
}


def search_preset(name: str) -> SearchSettings:
    """The settings of a preset, "paper", "default", "fast" or "best"; raises `ValueError` for another name."""
    if name not in PRESETS:
        raise ValueError(f"preset (got {name!r}), expected one of {sorted(PRESETS)}")
    return PRESETS[name]
