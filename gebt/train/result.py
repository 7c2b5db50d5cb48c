"""What a way to a ticket ends with: the ticket, trained, and what the way was made of."""

from __future__ import annotations

from dataclasses import dataclass

from gebt.graph.edges import Edges
from gebt.ticket import Ticket
from gebt.train.loop import History

# "reinit" must not meet the seed that the model was built from: it would be "rewind".
REINIT_SEED = 1_000_003


@dataclass(frozen=True)
class Phase:
    """So many epochs of training on so many pairs with so many weights: what its cost is counted from.

    `gated`: soft edge values train too.
    """

    epochs: int
    pairs: int
    weights: int
    gated: bool = False


@dataclass(frozen=True)
class MethodResult:
    """A ticket, the history of its last training, the edges it sees, and all phases that led there, the last one too.

    The network that was given ends in the state of that training's best validation epoch.
    """

    ticket: Ticket
    history: History
    edges: Edges
    phases: tuple[Phase, ...]

    @property
    def test_accuracy(self) -> float:
        """Test accuracy in [0, 1] at the best validation epoch, evaluated on the pruned graph."""
        return self.history.accuracy
