"""What a run does, option by option: given, filled in from preset and data set, written beside the results."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from gebt.data.manifest import TaskName, dataset_info
from gebt.experiments.combinations import check_together
from gebt.graph.batch_schedule import BatchSettings, SamplerName, Strategy
from gebt.graph.edge_scores import EdgeScore, EdgeWeights
from gebt.models import registry
from gebt.models.registry import ModelName
from gebt.models.resgcn import Aggregation
from gebt.prune.detector import Criterion, Normalization
from gebt.prune.selection import EntryScope, pruned_count
from gebt.recipes.retrain import RetrainSettings
from gebt.sparse.backends import AUTO, DEFAULT, find
from gebt.sparse.structure import UnitScore, WeightStructure
from gebt.ticket import StartWeights
from gebt.train.loop import TrainingSettings
from gebt.train.processes import TIMEOUT
from gebt.train.search_settings import DrawAt, SearchSettings, search_preset

Preset = Literal["paper", "early-bird", "fast", "best"]
Algorithm = Literal["joint", "graph", "weights"]
OtherMethod = Literal["ugs", "wd-glt", "sgcn", "teddy", "imp", "one-shot", "dropedge", "released"]
Method = Literal["gebt", "random", "dense"] | OtherMethod
# What a network for links is trained with where the data set was recorded for nodes: by validation on Cora. A ticket's
# training is as long as the dense one, at twice its rate (docs/method.md).
_LINKS: dict[str, Any] = {
    "hidden": 128,
    "depth": 1,
    "dropout": 0.5,
    "input_dropout": 0.8,
    "learning_rate": 0.02,
    "weight_decay": 0.0,
    "epochs": 200,
}

# What a preset says beside its search settings (docs/method.md): epochs of dense training (None: those recorded for
# the data set), epochs of retraining, and the learning rates of search and retraining as multiples of the dense one.
_AROUND: dict[str, tuple[int | None, int, float, float]] = {
    "paper": (100, 100, 1.0, 1.0),
    "early-bird": (None, 100, 1.0, 4.0),
    "fast": (None, 60, 2.0, 6.0),
    "best": (None, 100, 1.0, 4.0),
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run. Those left out come from the preset and from what is recorded for the data set.

    Attributes
    ----------
    dataset
        Name of the data set; `gebt data list` shows them.
    task
        What is learnt: what the "nodes" are, which "links" are missing, what whole "graphs" are; default: what the data
        set is for.
    model
        The network: "gcn", "gat", "gin", "sage", or "resgcn7", "resgcn14", "resgcn28"; default: "gcn", or "gin" for
        a set of graphs.
    edge_ratio
        Share of undirected edges to prune, in [0, 1).
    weight_ratio
        Share of weights to prune, in [0, 1); of each layer's hidden units where whole units are pruned.
    feature_ratio
        Share of input features to prune where whole features are; default: the weight ratio.
    weight_structure
        What a weight mask removes: single weights ("entry"), hidden units ("unit"), input features ("feature") or
        both ("joint").
    unit_score
        What ranks units: "magnitude", the scales of batch "norm", or the loss's "gradient".
    seeds
        Number of seeds, one full comparison each.
    first_seed
        The first of them; the others follow it.
    together
        Train the seeds as one widened network where that is faster; the seconds are then each seed's share.
    preset
        "paper": the settings of GEBT to the letter; "early-bird": the best found within its early-bird search; "best": the
        search's own trained network teaches the ticket; "fast": the same in about the time of dense training.
    algorithm
        "joint": edges and weights together; "graph": edges alone, on a pretrained network; "weights": weights alone.
    method
        "gebt", and other ways to a ticket to compare it with: "ugs", "wd-glt", "sgcn", "teddy", "imp", "one-shot",
        "dropedge", "released" (GEBT's own scripts as published); "random" and "dense" are always there.
    start
        Start weights of the retraining: "inherit" those of the draw, "rewind" to the initial ones, or "reinit".
    data_root
        Folder of the raw data, laid out as PyTorch Geometric does; default $GEBT_DATA.
    split_seed
        Seed of the split where it is drawn; default: the seed of the run.
    symmetrize
        Accept one-way edges and add the missing directions.
    hidden
        Hidden units of a layer, of all heads together.
    depth
        Layers of the network.
    heads
        Attention heads of a GAT.
    aggregation
        How a ResGCN gathers its neighbors: "softmax", "mean" or "add".
    dropout
        Dropout rate.
    input_dropout
        Dropout rate of the features, where it is another.
    epochs
        Epochs of the dense training.
    learning_rate
        Learning rate of dense training.
    search_learning_rate
        Learning rate of the search.
    weight_decay
        Weight decay on the first layer, everywhere.
    retrain_epochs
        Epochs of a ticket's training.
    retrain_learning_rate
        Learning rate of a ticket's training.
    max_epochs
        Epochs after which a search ends even if the detector has not fired.
    edge_learning_rate
        Learning rate of the edge values.
    edge_l1
        Weight of the L1 penalty on the edge values.
    edge_score
        What ranks the edges: "magnitude" of their values, also their "local_degree" of a neighborhood, the "similarity" of
        what the network says of their nodes, also the "reliance" of a node for neighbors, or need and values "reliance+magnitude"; or a
        "learned", a function of their nodes that also prunes graphs never seen, as those of a set are.
    edge_weights
        What the kept edges of a ticket count: 1 each ("unit"), their "trained" values, or what makes up for the pruned
        ones in the "degree".
    scope
        Weights are ranked "global", all layers together, or each "tensor" alone.
    normalization
        How a mask distance is normalized: "entry", "swap" or "first".
    criterion
        What must be under the threshold: "sum", "weights" or "edges".
    threshold
        The detector's threshold.
    window
        Distances that must be under the threshold, one after the other.
    warmup
        Draws that do not count.
    draw
        When masks are drawn for good: when the "detector" fires, or at the best "validation" accuracy of all epochs.
    soft_labels
        Keep in the ticket what the searched network says of every node.
    spread
        Share of what the neighbors say in the soft labels, 0 to below 1.
    smoothing
        Share of the running mean over epochs in what the network says, 0 to below 1.
    distill
        Weight of the loss to the ticket's soft labels, where it has some, in its training.
    compaction
        Train a ticket as the smaller network it is.
    backend
        Engine of the sparse products; "auto" times those that are installed and says which it takes.
    threads
        CPU threads; default: torch's own choice.
    device
        "cpu" or "cuda".
    graph
        Folder of a graph of your own (`gebt.data.readers.folder`), or one that `gebt convert` has made; instead of a data set.
    batches
        Train batch by batch: parts of the nodes, "random" or "cluster" of neighbors, sampled "neighbor", or random
        "random-walk". Under torchrun the processes share the batches. A converted graph is read from disk batch by batch.
    parts
        Parts of the nodes.
    clusters_per_batch
        Parts of a batch, put together anew each epoch.
    batch_size
        Training nodes of a batch of neighbors or walks.
    fanouts
        Neighbors drawn of a node, at distance 1, 2, ...
    sampler
        Who draws neighbors: "own", or "pyg", PyG's sampler with its native parts (pyg-lib or torch-sparse).
    walk_length
        Steps of a random walk.
    per_step
        Batches of one step of the weights; default: one for each process.
    evaluate_every
        Epochs from one evaluation to the next.
    checkpoint_every
        Epochs from one checkpoint to the next.
    timeout
        Seconds after which processes stop waiting for one that is gone.
    """

    dataset: str = "digits"
    task: TaskName | None = None
    model: ModelName | None = None
    edge_ratio: float = 0.2
    weight_ratio: float = 0.5
    feature_ratio: float | None = None
    seeds: int = 1
    first_seed: int = 0
    stack_seeds: bool = True
    preset: Preset = "early-bird"
    algorithm: Algorithm = "joint"
    method: tuple[Method, ...] = ("gebt",)
    start: StartWeights = "inherit"
    data_root: Path | None = None
    split_seed: int | None = None
    to_undirected: bool = False
    hidden: int | None = None
    depth: int | None = None
    heads: int = registry.HEADS
    aggregation: Aggregation = "softmax"
    dropout: float | None = None
    input_dropout: float | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    search_learning_rate: float | None = None
    weight_decay: float | None = None
    retrain_epochs: int | None = None
    retrain_learning_rate: float | None = None
    max_epochs: int | None = None
    edge_learning_rate: float | None = None
    edge_l1: float | None = None
    edge_score: EdgeScore | None = None
    edge_weights: EdgeWeights | None = None
    scope: EntryScope | None = None
    normalization: Normalization | None = None
    criterion: Criterion | None = None
    threshold: float | None = None
    window: int | None = None
    warmup: int | None = None
    weight_structure: WeightStructure | None = None
    unit_score: UnitScore | None = None
    draw_at: DrawAt | None = None
    soft_labels: bool | None = None
    label_propagation: float | None = None
    prediction_ema: float | None = None
    distill: float | None = None
    compaction: bool = True
    backend: str = DEFAULT
    threads: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    graph: Path | None = None
    batching: Strategy | None = None
    num_parts: int = 10
    clusters_per_batch: int = 1
    batch_size: int = 512
    fanouts: tuple[int, ...] = (10, 10)
    sampler: SamplerName = "own"
    walk_length: int = 3
    accumulate_batches: int | None = None
    evaluate_every: int = 1
    checkpoint_every: int = 5
    timeout: float = TIMEOUT

    def resolved(self) -> RunOptions:
        """The same options with every open one filled in, checked; raises `ValueError` naming what is wrong."""
        if self.graph is not None:
            if not self.graph.expanduser().is_dir():
                raise ValueError(
                    f"--graph (got {self.graph}, which is no folder), expected one with edges and features"
                )
            return dataclasses.replace(self, dataset=str(self.graph), graph=None).resolved()
        info = dataset_info(self.dataset)
        task, recorded = _given(self.task, info.task), info.training
        if task not in _TASKS[info.task]:
            raise ValueError(f"--task (got {task!r}), expected one of {_TASKS[info.task]} for {info.name!r}")
        model = self.model or ("gin" if task == "graphs" else "gcn")
        if task == "links" and info.task == "nodes":
            recorded = dataclasses.replace(recorded, **_LINKS)
        search = search_preset(self.preset)
        epochs, retrain_epochs, search_factor, retrain_factor = _AROUND[self.preset]
        if task == "graphs":
            search = dataclasses.replace(search, max_epochs=recorded.epochs, **_OF_GRAPHS)
            epochs, retrain_epochs, search_factor, retrain_factor = None, recorded.epochs, 1.0, 1.0
        else:
            recorded = dataclasses.replace(recorded, **registry.DEFAULTS.get(model, {}))
        if task == "links" and self.preset == "early-bird":
            retrain_epochs, retrain_factor = recorded.epochs, 2.0
        learning_rate = _given(self.learning_rate, recorded.learning_rate)
        filled = {
            "task": task,
            "model": model,
            "hidden": recorded.hidden,
            "depth": recorded.depth,
            "dropout": recorded.dropout,
            "input_dropout": _given(recorded.input_dropout, _given(self.dropout, recorded.dropout)),
            "epochs": epochs or recorded.epochs,
            "learning_rate": learning_rate,
            "weight_decay": recorded.weight_decay,
            "retrain_epochs": retrain_epochs,
            "search_learning_rate": learning_rate * search_factor,
            "retrain_learning_rate": learning_rate * retrain_factor,
            "distill": RetrainSettings().distill,
            **{name: getattr(search, name) for name in _SEARCH_FIELDS},
            "scope": search.scope if self.preset == "paper" else registry.SCOPES.get(model, search.scope),
        }
        full = dataclasses.replace(self, **{name: _given(getattr(self, name), value) for name, value in filled.items()})
        full = dataclasses.replace(full, method=tuple(full.method), fanouts=tuple(full.fanouts))  # JSON has lists
        full._check()
        check_together(full)
        return full

    @property
    def other_methods(self) -> tuple[OtherMethod, ...]:
        """The methods that are not there anyway, each once."""
        return tuple(dict.fromkeys(name for name in self.method if name in get_args(OtherMethod)))  # type: ignore[misc]

    def training(self) -> TrainingSettings:
        """Settings of the dense training (of resolved options)."""
        return TrainingSettings(self.epochs, self.learning_rate, self.weight_decay)  # type: ignore[arg-type]

    def search(self) -> SearchSettings:
        """Settings of the search (of resolved options)."""
        chosen = {name: getattr(self, name) for name in (*_SEARCH_FIELDS, "weight_decay")}
        return SearchSettings(learning_rate=self.search_learning_rate, **chosen)  # type: ignore[arg-type]

    def retraining(self) -> RetrainSettings:
        """Settings of the retraining (of resolved options)."""
        training = TrainingSettings(self.retrain_epochs, self.retrain_learning_rate, self.weight_decay)  # type: ignore[arg-type]
        return RetrainSettings(training, self.start, self.compaction, self.distill)  # type: ignore[arg-type]

    def batch_settings(self, processes: int = 1) -> BatchSettings:
        """How epochs are cut into batches, for so many processes (of options with `batches`)."""
        assert self.batching is not None
        sizes = (self.num_parts, self.clusters_per_batch, self.batch_size, self.fanouts, self.walk_length)
        return BatchSettings(self.batching, *sizes, self.accumulate_batches or processes, self.sampler)

    def to_json(self) -> str:
        """These options as a configuration file that `--config` reads."""
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return json.dumps({name: value for name, value in values.items() if value is not None}, indent=1) + "\n"

    def _check(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds (got {self.seeds}), expected at least 1")
        if self.first_seed < 0:
            raise ValueError(f"--first-seed (got {self.first_seed}), expected at least 0")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads (got {self.threads}), expected at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("--device (got 'cuda', but torch sees no CUDA device), expected 'cpu' here")
        if self.backend != AUTO:
            find(self.backend)
        structured = self.weight_structure in ("feature", "joint")
        if self.feature_ratio is not None and not structured:
            raise ValueError(
                f"--feature-ratio (got {self.feature_ratio}), expected --weight-structure feature or joint"
            )
        asked = {"--edge-ratio": self.edge_ratio, "--weight-ratio": self.weight_ratio}
        for flag, ratio in {**asked, "--feature-ratio": self.feature_ratio or 0.0}.items():
            try:
                pruned_count(1, ratio)
            except ValueError as error:
                raise ValueError(f"{flag}: {error}") from error
        methods = ("gebt", "random", "dense", *get_args(OtherMethod))
        if unknown := [name for name in self.method if name not in methods]:
            raise ValueError(f"--method (got {', '.join(map(repr, unknown))}), expected some of {methods}")
        for flag, count in {
            "--evaluate-every": self.evaluate_every,
            "--checkpoint-every": self.checkpoint_every,
        }.items():
            if count < 1:
                raise ValueError(f"{flag} (got {count}), expected at least 1")
        if self.timeout <= 0:
            raise ValueError(f"--timeout (got {self.timeout}), expected more than 0 seconds")
        self.training(), self.search(), self.retraining()
        if self.batching is not None:
            self.batch_settings()


# What a search on a set of graphs does otherwise than its preset says: edges never seen are pruned too.
_OF_GRAPHS: dict[str, Any] = {
    "edge_score": "learned",
    "edge_learning_rate": 0.01,
    "label_propagation": 0.0,
    "edge_l1": 0.0,
}
# What can be learnt on a data set that is for this.
_TASKS: dict[TaskName, tuple[TaskName, ...]] = {"nodes": ("nodes", "links"), "links": ("links",), "graphs": ("graphs",)}
# Options of the search that come from its preset; the two that it shares with dense training come from the data set.
_SEARCH_FIELDS = tuple(
    field.name for field in dataclasses.fields(SearchSettings) if field.name not in ("learning_rate", "weight_decay")
)


def _given(value: Any, otherwise: Any) -> Any:
    return otherwise if value is None else value
