"""The labels: a row for each field that entries can be summed by.

The engine computes the values: kernel/grouping.py and its compiled twin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import networks, protocols
from conntrack_textfile.filters import parse_mark, parse_ports, parse_zone

if TYPE_CHECKING:
    from collections.abc import Callable


class Label(NamedTuple):
    """A field of an entry, as a label and as a column."""

    name: str  # in metrics and in --aggregate.by
    title: str  # heading of its column in tables
    plural: str  # heading of its ranking
    default: bool  # whether --aggregate.by has it by default
    filter: Callable[[str], object] | None = None  # parses its value in a filter; None: no filter
    number: bool = False  # whether its column is aligned to the right
    left_out: int = 0  # order in which a narrow terminal omits columns, from 1; 0: never


# In the order of the labels of a series, by which groups are sorted.
ROWS = (
    Label("src", "source", "sources", default=True, filter=networks.parse),
    Label("dst", "destination", "destinations", default=True, filter=networks.parse),
    Label(
        "l3protocol", "l3", "values", default=True, filter=protocols.parse_l3protocol, left_out=1
    ),
    Label("l4protocol", "l4", "values", default=True, filter=protocols.parse_l4protocol),
    Label("l7protocol", "service", "services", default=True, left_out=3),
    Label("dport", "port", "ports", default=True, filter=parse_ports, number=True),
    Label("zone", "zone", "zones", default=False, filter=parse_zone, number=True),
    Label("mark", "mark", "marks", default=False, filter=parse_mark, number=True),
    Label("egress", "egress", "egress addresses", default=False, filter=networks.parse),
    Label("backend", "backend", "backends", default=False, filter=networks.parse),
)

# The first label with --netns. It is not a field of an entry.
NETNS = Label("netns", "netns", "network namespaces", default=False)

BY_NAME = {row.name: row for row in (NETNS, *ROWS)}
LABELS = tuple(row.name for row in ROWS)
DEFAULT = tuple(row.name for row in ROWS if row.default)

# The parser of each condition of a filter.
CONDITIONS = {row.name: row.filter for row in ROWS if row.filter}
