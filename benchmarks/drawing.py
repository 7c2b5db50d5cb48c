"""What do drawing the masks and watching their distance cost, as a share of a search epoch?

python benchmarks/drawing.py [--dataset pubmed] [--quick] [--json OUT]
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise

import torch
from common import finish, options

from gebt.config import RunOptions
from gebt.experiment import graph_for, model_for
from gebt.prune import Mask
from gebt.recipes import search


class TimedSearch(search._Search):
    """A search that notes when each draw begins."""

    began = 0.0

    def draw(self) -> tuple[Mask, Mask]:
        """Draws as any search does."""
        self.began = time.perf_counter()
        return super().draw()


def main() -> None:
    """Times every epoch of one search, and in it the time from the draw's beginning to the detector's answer."""
    parser = options(__doc__ or "")
    parser.add_argument("--dataset", default="pubmed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # A threshold that is never met: the search goes on for all epochs.
    settings = RunOptions(
        dataset=arguments.dataset,
        data_root=arguments.data_root,
        edge_ratio=0.2,
        weight_ratio=0.9,
        max_epochs=12 if arguments.quick else 100,
        threshold=1e-12,
    ).resolved()
    graph = graph_for(settings, 0)
    work = TimedSearch(model_for(settings, graph, 0), graph, 0.2, 0.9, settings.search(), 0)
    ends: list[float] = []
    drawing: list[float] = []

    def after_detector(*_: object) -> bool:
        ends.append(time.perf_counter())
        drawing.append(ends[-1] - work.began)
        return False

    work.run(None, after_detector)
    epoch = 1e3 * statistics.median(after - before for before, after in pairwise(ends))
    draw = 1e3 * statistics.median(drawing)
    rows = [{"dataset": arguments.dataset, "epoch_ms": epoch, "draw_and_detect_ms": draw, "share": draw / epoch}]
    finish("drawing both masks and the detector, inside a search", rows, {"share": draw / epoch}, arguments.json)


if __name__ == "__main__":
    main()
