"""The labels: a row for each field that entries can be summed by.

The value of a field is made by the engine: kernel/grouping.py and its compiled
twin. All else about a label stands here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import networks, protocols
from conntrack_textfile.filters import parse_mark, parse_ports, parse_zone

if TYPE_CHECKING:
    from collections.abc import Callable


class Label(NamedTuple):
    """A field of an entry as users meet it."""

    name: str  # in metrics and in --aggregate.by
    title: str  # for people: the head of a column
    default: bool  # whether it is kept where --aggregate.by does not say
    filter: Callable[[str], object] | None = None  # reads the value of a filter's condition
    number: bool = False  # aligned to the right
    left_out: int = 0  # a narrow terminal leaves out 1 first; 0 never


# In the order in which they stand in a series. Groups ascend by them in this order.
ROWS = (
    Label("src", "source", default=True, filter=networks.parse),
    Label("dst", "destination", default=True, filter=networks.parse),
    Label("l3protocol", "l3", default=True, filter=protocols.parse_l3protocol, left_out=1),
    Label("l4protocol", "l4", default=True, filter=protocols.parse_l4protocol),
    Label("l7protocol", "service", default=True, left_out=3),
    Label("dport", "port", default=True, filter=parse_ports, number=True),
    Label("zone", "zone", default=False, filter=parse_zone, number=True),
    Label("mark", "mark", default=False, filter=parse_mark, number=True),
    Label("egress", "egress", default=False, filter=networks.parse),
    Label("backend", "backend", default=False, filter=networks.parse),
)

# Before all others where several network namespaces are read. It is no field of an entry.
NETNS = Label("netns", "netns", default=False)

BY_NAME = {row.name: row for row in (NETNS, *ROWS)}
LABELS = tuple(row.name for row in ROWS)
DEFAULT = tuple(row.name for row in ROWS if row.default)

# What reads the value of each condition of a filter.
CONDITIONS = {row.name: row.filter for row in ROWS if row.filter}
