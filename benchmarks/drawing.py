"""What do drawing the masks and watching their distance cost? As a share of a search epoch, or alone on many entries.

python benchmarks/drawing.py [--dataset pubmed] [--epochs 100] [--without-numba] [--quick] [--json OUT]
python benchmarks/drawing.py --entries 57307946 [--without-numba] [--json OUT]
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from common import finish, options

from gebt import _numba
from gebt.experiments.options import RunOptions
from gebt.experiments.setup import graph_for, model_for
from gebt.prune import Mask, mask_distance
from gebt.prune.drawing import Drawing
from gebt.prune.tie_breaking import TieBreaker
from gebt.recipes import search

EDGE_RATIO, WEIGHT_RATIO = 0.2, 0.9


class TimedSearch(search._Search):
    """A search that notes when each draw begins."""

    began = 0.0

    def draw(self) -> tuple[Mask, Mask]:
        """Draws as any search does."""
        self.began = time.perf_counter()
        return super().draw()


def main() -> None:
    """The share of an epoch, or the time on random entries when their number is given."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="pubmed")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--entries", type=int, help="draw alone, on so many random entries")
    parser.add_argument("--without-numba", action="store_true", help="the pure torch path")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.without_numba:
        _numba.available = lambda: False
    if arguments.entries:
        alone(arguments)
    else:
        in_search(arguments)


def in_search(arguments: Any) -> None:
    """Times every epoch of one search, and in it the time from the draw's beginning to the detector's answer."""
    # A threshold that is never met: the search goes on for all epochs.
    settings = RunOptions(
        dataset=arguments.dataset,
        data_root=arguments.data_root,
        edge_ratio=EDGE_RATIO,
        weight_ratio=WEIGHT_RATIO,
        max_epochs=12 if arguments.quick else arguments.epochs,
        threshold=1e-12,
    ).resolved()
    graph = graph_for(settings, 0)
    ratios = (EDGE_RATIO, WEIGHT_RATIO, None)
    work = TimedSearch(model_for(settings, graph, 0), graph, ratios, settings.search(), 0)
    ends: list[float] = []
    drawing: list[float] = []

    def after_detector(*_: object) -> bool:
        ends.append(time.perf_counter())
        drawing.append(ends[-1] - work.began)
        return False

    work.run(None, after_detector)
    epoch = 1e3 * statistics.median(after - before for before, after in pairwise(ends))
    draw = 1e3 * statistics.median(drawing)
    row = {"dataset": arguments.dataset, "epoch_ms": epoch, "draw_and_detect_ms": draw, "share": draw / epoch}
    row |= {"mean_ms": 1e3 * statistics.fmean(drawing), "first_ms": 1e3 * drawing[0]}
    finish("drawing both masks and the detector, inside a search", [row], {"share": draw / epoch}, arguments.json)


def by_sorting(score: torch.Tensor, tie_break: TieBreaker, prune: int) -> torch.Tensor:
    """The oracle: all entries sorted by (score, rank); the first `prune` go."""
    by_rank = torch.argsort(tie_break.of(torch.arange(score.numel())))
    ranked = by_rank[torch.argsort(score[by_rank], stable=True)]
    return torch.ones_like(score, dtype=torch.bool).index_fill_(0, ranked[:prune], False)


def alone(arguments: Any) -> None:
    """Draws on values that move like those of a search, beside the sort and torch's selection; checks the mask."""
    generator = torch.Generator().manual_seed(0)
    values = 1 + 0.05 * torch.randn(arguments.entries, generator=generator)
    weight = 1 / torch.randint(1, 500, (arguments.entries,), generator=generator)
    tie_break, prune = TieBreaker(0), int(EDGE_RATIO * arguments.entries)
    drawing = Drawing({"edges": values}, ratio=EDGE_RATIO, tie_break=tie_break, weight=weight)
    rounds: dict[str, list[float]] = {"draw": [], "distance": []}
    before: Mask | None = None
    for _ in range(4 if arguments.quick else 12):
        start = time.perf_counter()
        mask = drawing.draw({"edges": values})
        drawn = time.perf_counter()
        if before is not None:
            mask_distance(mask, before, "exchanged")
        rounds["draw"].append(drawn - start)
        rounds["distance"].append(time.perf_counter() - drawn)
        before = mask
        values += 1e-3 * torch.randn(arguments.entries, generator=generator)
    score = (values.abs() * weight).detach()
    start = time.perf_counter()
    torch.kthvalue(score, prune)
    kth = time.perf_counter() - start
    start = time.perf_counter()
    expected = by_sorting(score, tie_break, prune)
    rows = [{"what": "draw, first", "ms": 1e3 * rounds["draw"][0]}]
    rows += [{"what": "draw", "ms": 1e3 * statistics.median(rounds["draw"][1:])}]
    rows += [{"what": "distance", "ms": 1e3 * statistics.median(rounds["distance"][1:])}]
    rows += [{"what": "torch.kthvalue alone", "ms": 1e3 * kth}]
    rows += [{"what": "sorting", "ms": 1e3 * (time.perf_counter() - start)}]
    identical = torch.equal(drawing.draw({"edges": values})["edges"], expected)
    finish(f"{arguments.entries} random entries", rows, {"identical to sorting": identical}, arguments.json)


if __name__ == "__main__":
    main()
