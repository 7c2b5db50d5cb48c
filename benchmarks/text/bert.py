"""Tickets of a small BERT, pretrained here: pruned round after round, beside what they must beat.

python benchmarks/text/bert.py [--tasks sst-2 cola words] [--ratios 0.5 0.6 0.7] [--seeds 3] [--texts 4000]
    [--store FILE.jsonl] [--quick] [--json OUT] [--data-root FOLDER]

An encoder of 2 layers is pretrained once on the sentences of SST-2, CoLA, MRPC and RTE, 15 % of the words to be filled
in. Then, for every task and seed, 10 % of its weights a round are pruned by
trained magnitude and the encoder is rewound (`gebt.recipes.bert`), and what each ratio's mask is worth is told by
fine-tuning: the ticket; the ticket of filling in words (where the task is another); one shot; a random mask; and the
ticket's mask on random weights, or on layers in another order. Task "words" is filling in words itself. Accuracy on the
dev set, Matthews' correlation for CoLA. `--store` keeps finished cells, and beside it the encoder and all rounds; a
call with the same file goes on.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import finish, options
from transformers import AutoTokenizer, BertConfig

from gebt.data.text import TASKS, load_texts
from gebt.data.word_pieces import Pieces, in_pieces, unlabeled, word_pieces
from gebt.models.bert import pretrained, reinitialize
from gebt.prune.mask import Mask
from gebt.recipes import bert
from gebt.recipes.bert import BertSettings
from gebt.train.texts import Classify, FillIn, TextSettings, fit

VARIANTS = ("ticket", "one shot", "random mask", "random init", "shuffled layers")
WORDS, TRANSFERRED = "words", "ticket of words"
MEASURE = {"cola": "matthews", WORDS: "word_accuracy"}


@dataclass(frozen=True)
class Sizes:
    """Of the encoder, the text and the trainings."""

    hidden: int = 128
    layers: int = 2
    pieces: int = 4000
    length: int = 32
    pretraining: int = 10_000
    batch: int = 32
    texts: int = 4000
    epochs: int = 3
    word_steps: int = 250
    sentences: int | None = None
    dev: int = 1000


QUICK = Sizes(16, 2, 600, 16, pretraining=20, batch=16, texts=64, epochs=1, word_steps=4, sentences=400, dev=64)


class Bench:
    """Cells by name, looked up or found and kept, and the encoder that all of them start from."""

    def __init__(self, sizes: Sizes, store: Path | None, folder: Path, root: Path | None) -> None:
        self.sizes, self.store, self.folder, self.root = sizes, store, folder, root
        self.known: dict[str, dict[str, Any]] = {}
        if store is not None and store.is_file():
            self.known = {own["key"]: own["found"] for own in map(json.loads, store.read_text().splitlines())}
        if self.known.setdefault("sizes", asdict(sizes)) != asdict(sizes):
            raise SystemExit(f"bert: error: {store} has cells of other sizes; take another file")
        if store is not None and not store.is_file():
            self._note("sizes")

    def cell(self, key: str, find: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What was measured under this name."""
        if key not in self.known:
            start = time.perf_counter()
            self.known[key] = {**find(), "seconds": time.perf_counter() - start}
            self._note(key)
            print(key, {name: round(value, 4) for name, value in self.known[key].items()}, flush=True)
        return self.known[key]

    def _note(self, key: str) -> None:
        if self.store is not None:
            with self.store.open("a") as file:
                file.write(json.dumps({"key": key, "found": self.known[key]}) + "\n")

    @cached_property
    def sentences(self) -> list[str]:
        """Every sentence of the four training sets once."""
        texts = [load_texts(name, root=self.root).sentences() for name in TASKS]
        found = list(dict.fromkeys(sentence for own in texts for sentence in own))
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
        return [found[i] for i in order[: self.sizes.sentences]]

    @property
    def encoder(self) -> Path:
        """Where the pretrained encoder and its tokenizer are."""
        return self.folder / "encoder"

    @cached_property
    def tokenizer(self) -> Any:
        """Of the pretrained encoder."""
        return AutoTokenizer.from_pretrained(self.encoder)

    def pretrain(self) -> dict[str, float]:
        """Trains the vocabulary and the encoder."""
        own, tokenizer = self.sizes, word_pieces(self.sentences, self.sizes.pieces)
        task = FillIn(*self.parted(unlabeled(self.sentences, tokenizer, own.length)), tokenizer)
        # BERT's 0.02 is made for 768 units: with 128 of them it leaves attention uniform for thousands of steps.
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=own.hidden, num_hidden_layers=own.layers,
            num_attention_heads=max(2, own.hidden // 32), intermediate_size=4 * own.hidden, max_position_embeddings=64,
            initializer_range=0.08,
        )  # fmt: skip
        settings = TextSettings(
            steps=own.pretraining, batch=own.batch, learning_rate=1e-3, warmup=0.1, weight_decay=0.01
        )
        model, history = bert.pretrain(config, task, settings)
        model.save_pretrained(self.encoder)  # type: ignore[operator]
        tokenizer.save_pretrained(self.encoder)
        return history.score

    def parted(self, pieces: Pieces) -> tuple[Pieces, Pieces]:
        """What is trained on and what is held out, of all sentences in their order."""
        return pieces.take(torch.arange(self.sizes.dev, len(pieces))), pieces.take(torch.arange(self.sizes.dev))

    def task(self, name: str) -> tuple[Any, Any, TextSettings]:
        """The task, the pretrained model with its head, and how it is fine-tuned."""
        own = self.sizes
        if name == WORDS:
            pieces = unlabeled(self.sentences, self.tokenizer, own.length)
            settings = TextSettings(steps=own.word_steps, batch=own.batch, learning_rate=5e-4, warmup=0.1)
            return FillIn(*self.parted(pieces), self.tokenizer), pretrained(self.encoder, "words"), settings
        train, dev = load_texts(name, root=self.root), load_texts(name, "dev", self.root)
        train = train.take(torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: own.texts])
        metric = "matthews" if name == "cola" else "accuracy"
        texts = [in_pieces(part, self.tokenizer, 2 * own.length) for part in (train, dev)]
        settings = TextSettings(epochs=own.epochs, learning_rate=5e-4, warmup=0.1)
        return Classify(texts[0], texts[1], metric), pretrained(self.encoder, classes=len(train.classes)), settings

    def masks(self, name: str, ratios: list[float], seed: int) -> dict[float, Mask]:
        """By ratio, of the rounds of a task; finished rounds are in the folder."""
        task, model, settings = self.task(name)
        rounds = max(1, round(10 * max(ratios)))
        chosen = BertSettings(rounds=rounds, prune_first=name == WORDS, training=settings)
        found = bert.search(model, task, settings=chosen, seed=seed, folder=self.folder / f"{name}-{rounds}-{seed}")
        return dict(zip(chosen.ratios(), (level.mask for level in found.levels), strict=True))

    def seed(self, name: str, ratios: list[float], seed: int) -> None:
        """All cells of a task and seed."""
        keys = [f"{name} {ratio:g} {variant} {seed}" for ratio in ratios for variant in variants(name)]
        keys += [f"{name} 0 {variant} {seed}" for variant in ("dense", "random init")]
        if all(key in self.known for key in keys):
            return
        task, model, settings = self.task(name)

        def measure(mask: Mask | None, variant: Any = "ticket") -> dict[str, float]:
            given = {"variant": variant, "settings": settings, "seed": seed, "fresh_head": name != WORDS}
            return bert.evaluate(model, task, mask, **given)[1].score

        def untrained() -> dict[str, float]:
            twin = self.task(name)[1]
            reinitialize(twin, seed)
            return fit(twin, task, settings, seed=seed).score

        self.cell(f"{name} 0 dense {seed}", lambda: measure(None))
        self.cell(f"{name} 0 random init {seed}", untrained)
        found = self.masks(name, ratios, seed)
        words = found if name == WORDS else self.masks(WORDS, ratios, 0)
        for ratio in ratios:
            for variant in variants(name):
                mask = words[ratio] if variant == TRANSFERRED else found[ratio]
                how = "ticket" if variant == TRANSFERRED else variant
                self.cell(f"{name} {ratio:g} {variant} {seed}", lambda mask=mask, how=how: measure(mask, how))  # type: ignore[misc]


def variants(name: str) -> tuple[str, ...]:
    """What is compared at every ratio."""
    return VARIANTS if name == WORDS else (VARIANTS[0], TRANSFERRED, *VARIANTS[1:])


def row(bench: Bench, name: str, ratio: float, variant: str, seeds: range) -> dict[str, Any]:
    """Mean and standard deviation over the seeds, and the mean difference to the dense network of the same seed."""
    measure = MEASURE.get(name, "accuracy")
    values = [bench.known[f"{name} {ratio:g} {variant} {seed}"][measure] for seed in seeds]
    dense = [bench.known[f"{name} 0 dense {seed}"][measure] for seed in seeds]
    std = statistics.stdev(values) if len(values) > 1 else None
    gap = statistics.fmean(values) - statistics.fmean(dense)
    given = {"task": name, "measure": measure, "sparsity": ratio, "variant": variant}
    return {**given, "mean": 100 * statistics.fmean(values), "std": std and 100 * std, "minus_dense": 100 * gap}


def main() -> None:
    """One row a task, ratio and variant."""
    parser = options(__doc__ or "")
    parser.add_argument("--tasks", nargs="+", default=["sst-2", WORDS], choices=[*TASKS, WORDS])
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.5, 0.6, 0.7], help="multiples of 0.1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=Sizes.texts, help="training texts of a task")
    parser.add_argument(
        "--store", type=Path, metavar="FILE.jsonl", help="finished cells; a folder of its name beside it"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = QUICK if arguments.quick else Sizes(texts=arguments.texts)
    seeds, ratios = range(1 if arguments.quick else arguments.seeds), sorted(arguments.ratios)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if arguments.store is None else arguments.store.with_suffix("")
        bench = Bench(sizes, arguments.store, folder, arguments.data_root)
        bench.cell("pretraining", bench.pretrain)
        for seed in seeds:
            for name in arguments.tasks:
                bench.seed(name, ratios, seed)
    rows = []
    for name in arguments.tasks:
        rows += [row(bench, name, 0.0, variant, seeds) for variant in ("dense", "random init")]
        rows += [row(bench, name, ratio, variant, seeds) for ratio in ratios for variant in variants(name)]
    summary = {f"pretraining {name}": value for name, value in bench.known["pretraining"].items()}
    finish(f"{len(seeds)} seed(s)", rows, summary, arguments.json)


if __name__ == "__main__":
    main()
