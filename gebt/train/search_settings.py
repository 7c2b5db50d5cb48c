"""How a ticket is searched for, and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gebt.graph.edge_scores import EdgeScore, EdgeWeights
from gebt.graph.graph import Graph, check_classes
from gebt.prune.detector import Criterion, EarlyBird, Normalization
from gebt.prune.selection import EntryScope
from gebt.sparse.structure import UnitScore, WeightStructure
from gebt.train.loop import TrainingSettings

# When the masks are drawn for good: in the epoch the detector fires, or in that of the best validation accuracy.
DrawAt = Literal["detector", "validation"]


_CHOICES: dict[str, tuple[str, ...]] = {
    "scope": get_args(EntryScope),
    "edge_score": get_args(EdgeScore),
    "weight_structure": get_args(WeightStructure),
    "unit_score": get_args(UnitScore),
    "draw_at": get_args(DrawAt),
    "edge_weights": get_args(EdgeWeights),
}


@dataclass(frozen=True)
class SearchSettings:
    """How a ticket is searched for; the values of the presets and why are in docs/method.md.

    Args:
        max_epochs: the search ends here even if the detector has not fired.
        learning_rate: Adam's, of the weights.
        weight_decay: of the first layer's weights.
        edge_learning_rate: Adam's, of the edge values.
        edge_l1: factor of the sum of |edge value| in the loss.
        edge_score: "similarity" and "reliance" need no edge values, so none are trained; "learned" trains a function of
            the nodes instead (`gebt.graph.edge_scorer`).
        scope: weights are ranked over all layers, or in each alone.
        normalization: of the mask distance, see `gebt.mask_distance`.
        criterion: which distance the detector compares with the threshold.
        threshold: the detector fires where the criterion is at most this.
        window: the number of masks the newest one is compared with.
        warmup: epochs before the first draw.
        weight_structure: single weights, hidden units, or units and input features.
        unit_score: how hidden units are ranked.
        draw_at: "detector" draws where the detector fires; "validation" trains for all `max_epochs` and draws from the
            network of the best validation epoch.
        soft_labels: the class probabilities which that network predicts for every node go into the ticket, for its
            retraining to learn from.
        label_propagation: the predictions are propagated over the graph with this alpha in [0, 1)
            (`graph.label_propagation`), unless this lowers the accuracy on the validation nodes.
        prediction_ema: the predictions are an exponential moving average over the epochs with this decay in [0, 1).
        edge_weights: the weight of a kept edge: one, trained, or corrected for the lost degree.

    Raises:
        ValueError: for a number out of range.
    """

    max_epochs: int = 100
    learning_rate: float = 0.01
    weight_decay: float = 5e-4
    edge_learning_rate: float = 1e-3
    edge_l1: float = 0.0
    edge_score: EdgeScore = "local_degree"
    scope: EntryScope = "global"
    normalization: Normalization = "exchanged"
    criterion: Criterion = "sum"
    threshold: float = 0.03
    window: int = 3
    warmup: int = 0
    weight_structure: WeightStructure = "entry"
    unit_score: UnitScore = "magnitude"
    draw_at: DrawAt = "detector"
    soft_labels: bool = False
    label_propagation: float = 0.0
    prediction_ema: float = 0.0
    edge_weights: EdgeWeights = "one"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name.replace('_', ' ')} (got {getattr(self, name)!r}), expected one of {allowed}")
        if not (self.edge_learning_rate > 0 and self.edge_l1 >= 0):
            got = (self.edge_learning_rate, self.edge_l1)
            raise ValueError(f"edge learning rate, edge L1 (got {got}), expected > 0 and >= 0")
        for name in ("label_propagation", "prediction_ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} (got {getattr(self, name)}), expected 0 <= {name} < 1")
        if self.edge_weights == "trained" and not self.trains_edges:
            score = self.edge_score
            raise ValueError(f"edge weights (got 'trained', but edge score {score!r} trains none), expected 'one'")
        if self.edge_score == "learned" and self.edge_weights != "one":
            raise ValueError(f"edge weights (got {self.edge_weights!r}), expected 'one' with edge score 'learned'")
        if self.prediction_ema and self.draw_at != "validation":
            raise ValueError(f"prediction_ema (got {self.prediction_ema}), expected 0 unless draw_at is 'validation'")
        self.training()
        self.detector()

    @property
    def trains_edges(self) -> bool:
        """Whether edge values train beside the weights."""
        return self.edge_score not in ("similarity", "reliance", "learned")

    def check(self, graph: Graph) -> None:
        """Raises `GraphError` where the graph's labels are no classes and these settings need some."""
        if self.edge_score in ("similarity", "reliance", "reliance+magnitude") or self.soft_labels:
            check_classes(graph, f"edge score {self.edge_score!r}, soft labels {self.soft_labels}")

    def training(self) -> TrainingSettings:
        """The settings of the weights' optimizer."""
        return TrainingSettings(self.max_epochs, self.learning_rate, self.weight_decay)

    def detector(self) -> EarlyBird:
        """A fresh detector."""
        return EarlyBird(self.threshold, self.window, self.normalization, self.criterion, self.warmup)


PRESETS = {
    # GEBT (AAAI 2022), Algorithm 2 and its settings to the letter; the paper names L_reg but no coefficient.
    "paper": SearchSettings(edge_l1=1e-4, edge_score="magnitude", normalization="hamming", threshold=0.1),
    "early-bird": SearchSettings(),
    # What accuracy can be had: the search's own network, trained to its best, ranks the edges and teaches the ticket.
    "best": SearchSettings(
        max_epochs=200, edge_score="reliance", draw_at="validation", soft_labels=True, label_propagation=0.8
    ),
    # The same with a search and a retraining that together take about as long as dense training.
    "fast": SearchSettings(
        max_epochs=100,
        learning_rate=0.02,
        edge_score="reliance",
        draw_at="validation",
        soft_labels=True,
        label_propagation=0.8,
    ),
}


def search_preset(name: str) -> SearchSettings:
    """The settings of a preset, "paper", "early-bird", "fast" or "best"; raises `ValueError` for another name."""
    if name not in PRESETS:
        raise ValueError(f"preset (got {name!r}), expected one of {sorted(PRESETS)}")
    return PRESETS[name]
