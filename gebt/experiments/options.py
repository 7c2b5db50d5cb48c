"""The options of a run: set by the user, completed from preset and data set, and saved with the results."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from gebt.data.manifest import TaskName, dataset_info
from gebt.experiments.combinations import check_machine, check_together
from gebt.experiments.option_groups import BATCHES, DATA, NETWORK, RETRAINING, RUN, SEARCH
from gebt.experiments.presets import GRAPHS, LINKS, TASKS, TRAINING
from gebt.graph.batch_schedule import BatchSettings, SamplerName, Strategy
from gebt.graph.edge_scores import EdgeScore, EdgeWeights
from gebt.models import registry
from gebt.models.registry import ModelName
from gebt.models.resgcn import Aggregation
from gebt.prune.detector import Criterion, Normalization
from gebt.prune.selection import EntryScope, pruned_count
from gebt.recipes.retrain import RetrainSettings
from gebt.sparse.backends import DEFAULT
from gebt.sparse.precision import Precision
from gebt.sparse.structure import UnitScore, WeightStructure
from gebt.ticket import StartWeights
from gebt.train.loop import TrainingSettings
from gebt.train.processes import TIMEOUT
from gebt.train.search_settings import DrawAt, SearchSettings, search_preset

Preset = Literal["paper", "early-bird", "fast", "best"]
Algorithm = Literal["joint", "graph", "weights"]
OtherMethod = Literal["ugs", "wd-glt", "sgcn", "teddy", "imp", "one-shot", "dropedge", "released"]
Method = Literal["gebt", "random", "dense", OtherMethod]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of a run; those left out come from the preset and the record of the data set.

    The text of an option is its help on the command line; a value that it may have is explained in a line of its own.

    Attributes:
        dataset: Name of the data set; `gebt data list` shows them.
        graph: Folder of a custom graph (`gebt.data.readers.folder`) or one that `gebt convert` wrote, instead of a data
            set.
        task: What is predicted; default: what the data set was made for.
            nodes: classes or numbers of the nodes.
            links: which of the held-out pairs are edges.
            graphs: the classes of full graphs.
        data_root: Folder of the raw data, laid out as PyTorch Geometric does; default: $GEBT_DATA.
        split_seed: Seed of a random split; default: the seed of the run.
        to_undirected: Accept directed edges, and add the opposite directions.
        model: The network; default: gcn, or gin for a set of graphs.
            gcn: D^-1/2 (A + I) D^-1/2 X W (Kipf & Welling 2017).
            gat: attention over neighbors (Velickovic et al. 2018).
            gin: an MLP of the sum over neighbors (Xu et al. 2019).
            sage: GraphSAGE, mean of neighbors (Hamilton et al. 2017).
            resgcn7: ResGCN of 7 layers (DeeperGCN, Li et al. 2020).
            resgcn14: ResGCN of 14 layers.
            resgcn28: ResGCN of 28 layers.
        hidden: Hidden units of a layer, of all heads together.
        depth: Number of layers.
        heads: Attention heads of a GAT.
        aggregation: How a ResGCN aggregates the messages m_j of neighbors.
            softmax: sum_j exp(t m_j) m_j / sum_j exp(t m_j), t = 1.
            mean: the mean of m_j.
            add: the sum of m_j.
        dropout: Dropout rate of the hidden layers.
        input_dropout: Dropout rate of the features; default: the other one.
        epochs: Epochs of the dense training.
        learning_rate: Learning rate of the dense training.
        weight_decay: Weight decay on the first layer, in every training.
        preset: Settings of search and retraining: defaults of the options that show none (docs/method.md).
            paper: GEBT as published (You et al. 2022).
            early-bird: edges by local degree, drawn by the detector.
            fast: best, in about the time of dense training.
            best: edges by reliance; the search gives soft labels.
        edge_ratio: Share of undirected edges to prune, in [0, 1).
        weight_ratio: Share of weights to prune, in [0, 1); of each layer's hidden units where units are pruned.
        feature_ratio: Share of input features to prune where features are; default: the weight ratio.
        algorithm: What is pruned.
            joint: edges and weights, in one search.
            graph: edges, on a pretrained network.
            weights: weights alone.
        edge_score: What ranks the edges (u, v). a: trained edge values, d: degrees, p, q: probabilities predicted with
            edges and without.
            magnitude: |a|.
            local_degree: |a| / min(d_u, d_v), nodes' best edges first.
            similarity: cos(p_u, p_v), by its rank among a node's edges.
            reliance: the same, weighted by r_u = 1 - <p_u, q_u>.
            reliance+magnitude: reliance, times the rank of |a|.
            learned: a function of u and v, for unseen graphs too.
        edge_weights: The weight of a kept edge (u, v). d, k: degrees before and after pruning.
            one: 1.
            trained: a, its trained value.
            degree_corrected: sqrt(d_u d_v / (k_u k_v)).
        weight_structure: What a weight mask removes.
            entry: single weights.
            unit: hidden units.
            feature: input features.
            joint: hidden units and input features.
            2:4: two of every four consecutive weights; faster on a GPU, in bf16, from about 1024 units a layer.
        unit_score: What ranks hidden units.
            magnitude: |w_in| |w_out|, norms of its weights.
            norm: |gamma|, its scale of batch normalization.
            gradient: |sum of w dL/dw| over the weights out of it.
        scope: Which weights are ranked together.
            global: those of all layers.
            layer: those of each layer alone.
        max_epochs: Epochs after which a search ends even if the detector has not fired.
        search_learning_rate: Learning rate of the weights in the search.
        edge_learning_rate: Learning rate of the edge values.
        edge_l1: Coefficient of the L1 penalty on the edge values.
        draw_at: The epoch whose masks become the ticket.
            detector: where the early-bird detector fires.
            validation: the best on validation, of all epochs.
        normalization: Distance d of masks m, m' of n entries, k kept.
            hamming: d = |m xor m'| / n.
            exchanged: d = |m xor m'| / (2 min(k, n - k)).
            relative_to_first: d / d_1, d_1 the first hamming d above 0.
        criterion: The distance that must fall below the threshold.
            sum: d_weights + d_edges.
            weights: d_weights.
            edges: d_edges.
        threshold: Threshold of the early-bird detector.
        window: Consecutive distances that must be below the threshold.
        warmup: First draws that the detector leaves out.
        soft_labels: Store the searched network's predicted probabilities in the ticket.
        label_propagation: Propagate them over the graph, with this share alpha in [0, 1) for the neighbors.
        prediction_ema: Average them over the epochs, with this decay in [0, 1).
        start: Start weights of a ticket's training.
            inherit: those of the epoch in which the masks were drawn.
            rewind: those before the search.
            reinit: fresh random ones.
        retrain_epochs: Epochs of a ticket's training.
        retrain_learning_rate: Learning rate of a ticket's training.
        distill: Weight lambda of the loss to the soft labels, where a ticket has some.
        compaction: Train a ticket as the smaller network that its mask leaves.
        batching: How an epoch is cut into batches; default: full-batch training, clusters for a graph on disk.
            random: random parts of the nodes, drawn anew each epoch.
            cluster: clusters of neighbors (Cluster-GCN).
            neighbor: sampled neighbors of training nodes (GraphSAGE).
            random-walk: random walks from training nodes (GraphSAINT).
        num_parts: Number of parts or clusters.
        clusters_per_batch: Parts or clusters of a batch, combined anew each epoch.
        batch_size: Training nodes of a batch, where neighbors or walks are sampled.
        fanouts: Neighbors sampled of a node, at distance 1, 2, ...
        sampler: What samples neighbors.
            own: gebt's sampler.
            pyg: PyG's sampler, which needs pyg-lib or torch-sparse.
        walk_length: Steps of a random walk.
        accumulate_batches: Batches of one optimizer step; default: one for each process.
        evaluate_every: Epochs between evaluations.
        checkpoint_every: Epochs between checkpoints.
        timeout: Seconds that processes wait for one that does not answer.
        method: Baselines to compare with, besides random and dense, which always run.
            gebt: no further one.
            random: random masks of equal sparsity.
            dense: the unpruned network.
            ugs: trained masks, pruned and rewound (Chen et al. 2021).
            wd-glt: UGS and a Wasserstein loss (Hui et al. 2023).
            sgcn: edges by ADMM (Li et al. 2020).
            teddy: edges by degree, projected weights (Seo et al. 2024).
            imp: iterative magnitude pruning (Frankle & Carbin 2019).
            one-shot: magnitude pruning in one step.
            dropedge: random edges left out each epoch (Rong et al. 2020).
            released: GEBT's published code, as it is.
        seeds: Number of seeds, one full comparison each.
        first_seed: The first of the consecutive seeds.
        stack_seeds: Train the seeds as one widened network where that is faster; seconds are each seed's share.
        backend: Engine of the sparse products: torch-csr, compiled, torch-sparse, triton, dense, scipy, or auto, the
            fastest one here.
        threads: CPU threads; default: torch's choice.
        device: Where tensors are.
            cpu: main memory.
            cuda: an NVIDIA GPU.
        precision: Numbers that networks multiply; losses, softmax, normalization and scores are float32 in all.
            float32: 24 significant bits.
            tf32: TF32 factors in dense products, 11 bits, on a GPU (Ampere or newer).
            bf16: bfloat16 in forward passes, 8 bits; float32 weights. 2:4 on an H100 needs it.
    """

    dataset: Annotated[str, DATA] = "digits"
    graph: Annotated[Path | None, DATA] = None
    task: Annotated[TaskName | None, DATA] = None
    data_root: Annotated[Path | None, DATA] = None
    split_seed: Annotated[int | None, DATA] = None
    to_undirected: Annotated[bool, DATA] = False

    model: Annotated[ModelName | None, NETWORK] = None
    hidden: Annotated[int | None, NETWORK] = None
    depth: Annotated[int | None, NETWORK] = None
    heads: Annotated[int, NETWORK] = registry.HEADS
    aggregation: Annotated[Aggregation, NETWORK] = "softmax"
    dropout: Annotated[float | None, NETWORK] = None
    input_dropout: Annotated[float | None, NETWORK] = None
    epochs: Annotated[int | None, NETWORK] = None
    learning_rate: Annotated[float | None, NETWORK] = None
    weight_decay: Annotated[float | None, NETWORK] = None

    preset: Annotated[Preset, SEARCH] = "early-bird"
    edge_ratio: Annotated[float, SEARCH] = 0.2
    weight_ratio: Annotated[float, SEARCH] = 0.5
    feature_ratio: Annotated[float | None, SEARCH] = None
    algorithm: Annotated[Algorithm, SEARCH] = "joint"
    edge_score: Annotated[EdgeScore | None, SEARCH] = None
    edge_weights: Annotated[EdgeWeights | None, SEARCH] = None
    weight_structure: Annotated[WeightStructure | None, SEARCH] = None
    unit_score: Annotated[UnitScore | None, SEARCH] = None
    scope: Annotated[EntryScope | None, SEARCH] = None
    max_epochs: Annotated[int | None, SEARCH] = None
    search_learning_rate: Annotated[float | None, SEARCH] = None
    edge_learning_rate: Annotated[float | None, SEARCH] = None
    edge_l1: Annotated[float | None, SEARCH] = None
    draw_at: Annotated[DrawAt | None, SEARCH] = None
    normalization: Annotated[Normalization | None, SEARCH] = None
    criterion: Annotated[Criterion | None, SEARCH] = None
    threshold: Annotated[float | None, SEARCH] = None
    window: Annotated[int | None, SEARCH] = None
    warmup: Annotated[int | None, SEARCH] = None
    soft_labels: Annotated[bool | None, SEARCH] = None
    label_propagation: Annotated[float | None, SEARCH] = None
    prediction_ema: Annotated[float | None, SEARCH] = None

    start: Annotated[StartWeights, RETRAINING] = "inherit"
    retrain_epochs: Annotated[int | None, RETRAINING] = None
    retrain_learning_rate: Annotated[float | None, RETRAINING] = None
    distill: Annotated[float | None, RETRAINING] = None
    compaction: Annotated[bool, RETRAINING] = True

    batching: Annotated[Strategy | None, BATCHES] = None
    num_parts: Annotated[int, BATCHES] = 10
    clusters_per_batch: Annotated[int, BATCHES] = 1
    batch_size: Annotated[int, BATCHES] = 512
    fanouts: Annotated[tuple[int, ...], BATCHES] = (10, 10)
    sampler: Annotated[SamplerName, BATCHES] = "own"
    walk_length: Annotated[int, BATCHES] = 3
    accumulate_batches: Annotated[int | None, BATCHES] = None
    evaluate_every: Annotated[int, BATCHES] = 1
    checkpoint_every: Annotated[int, BATCHES] = 5
    timeout: Annotated[float, BATCHES] = TIMEOUT

    method: Annotated[tuple[Method, ...], RUN] = ("gebt",)
    seeds: Annotated[int, RUN] = 1
    first_seed: Annotated[int, RUN] = 0
    stack_seeds: Annotated[bool, RUN] = True
    backend: Annotated[str, RUN] = DEFAULT
    threads: Annotated[int | None, RUN] = None
    device: Annotated[Literal["cpu", "cuda"], RUN] = "cpu"
    precision: Annotated[Precision, RUN] = "float32"

    def resolved(self) -> RunOptions:
        """The same options, completed and checked.

        Returns:
            Options that are all set, but those that have no default.

        Raises:
            ValueError: naming the option and value that are wrong.

        Example:
            >>> options = RunOptions(dataset="cora", preset="best").resolved()
            >>> options.model, options.hidden, options.epochs, options.edge_score, options.max_epochs
            ('gcn', 16, 200, 'reliance', 200)
        """
        if self.graph is not None:
            if not self.graph.expanduser().is_dir():
                raise ValueError(
                    f"--graph (got {self.graph}, which is no folder), expected one with edges and features"
                )
            return dataclasses.replace(self, dataset=str(self.graph), graph=None).resolved()
        info = dataset_info(self.dataset)
        task, recorded = _or(self.task, info.task), info.training
        if task not in TASKS[info.task]:
            raise ValueError(f"--task (got {task!r}), expected one of {TASKS[info.task]} for {info.name!r}")
        model = self.model or ("gin" if task == "graphs" else "gcn")
        if task == "links" and info.task == "nodes":
            recorded = dataclasses.replace(recorded, **LINKS)
        search = search_preset(self.preset)
        epochs, retrain_epochs, search_factor, retrain_factor = TRAINING[self.preset]
        if task == "graphs":
            search = dataclasses.replace(search, max_epochs=recorded.epochs, **GRAPHS)
            epochs, retrain_epochs, search_factor, retrain_factor = None, recorded.epochs, 1.0, 1.0
        else:
            recorded = dataclasses.replace(recorded, **registry.DEFAULTS.get(model, {}))
        if task == "links" and self.preset == "early-bird":
            retrain_epochs, retrain_factor = recorded.epochs, 2.0
        learning_rate = _or(self.learning_rate, recorded.learning_rate)
        filled = {
            "task": task,
            "model": model,
            "hidden": recorded.hidden,
            "depth": recorded.depth,
            "dropout": recorded.dropout,
            "input_dropout": _or(recorded.input_dropout, _or(self.dropout, recorded.dropout)),
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
        full = dataclasses.replace(self, **{name: _or(getattr(self, name), value) for name, value in filled.items()})
        full = dataclasses.replace(full, method=tuple(full.method), fanouts=tuple(full.fanouts))  # JSON has lists
        full._check()
        check_together(full)
        return full

    @property
    def other_methods(self) -> tuple[OtherMethod, ...]:
        """The baselines asked for besides random and dense, each once."""
        return tuple(dict.fromkeys(name for name in self.method if name in get_args(OtherMethod)))  # type: ignore[misc]

    def training(self) -> TrainingSettings:
        """Settings of the dense training, of resolved options."""
        return TrainingSettings(self.epochs, self.learning_rate, self.weight_decay)  # type: ignore[arg-type]

    def search(self) -> SearchSettings:
        """Settings of the search, of resolved options."""
        chosen = {name: getattr(self, name) for name in (*_SEARCH_FIELDS, "weight_decay")}
        return SearchSettings(learning_rate=self.search_learning_rate, **chosen)  # type: ignore[arg-type]

    def retraining(self) -> RetrainSettings:
        """Settings of the retraining, of resolved options."""
        training = TrainingSettings(self.retrain_epochs, self.retrain_learning_rate, self.weight_decay)  # type: ignore[arg-type]
        return RetrainSettings(training, self.start, self.compaction, self.distill)  # type: ignore[arg-type]

    def batch_settings(self, processes: int = 1) -> BatchSettings:
        """How epochs are cut into batches, of options with `batching`.

        Args:
            processes: how many share the batches.

        Returns:
            The settings of the schedule.
        """
        assert self.batching is not None
        sizes = (self.num_parts, self.clusters_per_batch, self.batch_size, self.fanouts, self.walk_length)
        return BatchSettings(self.batching, *sizes, self.accumulate_batches or processes, self.sampler)

    def to_json(self) -> str:
        """These options as a configuration file that `--config` reads.

        Returns:
            The text of the file.
        """
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        return json.dumps({name: value for name, value in values.items() if value is not None}, indent=1) + "\n"

    def _check(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"--seeds (got {self.seeds}), expected at least 1")
        if self.first_seed < 0:
            raise ValueError(f"--first-seed (got {self.first_seed}), expected at least 0")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads (got {self.threads}), expected at least 1")
        check_machine(self)
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


# Options of the search that come from its preset; the two that it shares with dense training come from the data set.
_SEARCH_FIELDS = tuple(
    field.name for field in dataclasses.fields(SearchSettings) if field.name not in ("learning_rate", "weight_decay")
)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
