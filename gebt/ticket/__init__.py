"""Tickets: hard masks over edges and weights, start weights and provenance, as one small audited file."""

from gebt.ticket.files import EDGE_SCORER as EDGE_SCORER
from gebt.ticket.files import EDGE_WEIGHTS as EDGE_WEIGHTS
from gebt.ticket.files import FORMAT as FORMAT
from gebt.ticket.files import SOFT_LABELS as SOFT_LABELS
from gebt.ticket.files import Seeded as Seeded
from gebt.ticket.files import TicketError as TicketError
from gebt.ticket.making import make_ticket as make_ticket
from gebt.ticket.ticket import StartWeights as StartWeights
from gebt.ticket.ticket import Ticket as Ticket
