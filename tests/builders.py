"""Builders of test data: lines of a table, proc roots, aggregates and snapshots."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import aggregate
from conntrack_textfile.counters import TOTALS
from conntrack_textfile.kernel.engine import make
from conntrack_textfile.kernel.sysctl import Conntrack
from conntrack_textfile.snapshot import Snapshot, Traffic
from conntrack_textfile.talkers import Talker, Talkers
from conntrack_textfile.tally import Rows, Sums

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from conntrack_textfile.aggregate import Aggregate, Limit
    from conntrack_textfile.plan import Plan

Row = tuple[int, ...]  # one number for each field of Sums
Series = dict[tuple[str, ...], Row]  # by the values of the labels

_KERNEL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}
_STATES = {6: "ESTABLISHED ", 132: "ESTABLISHED "}


class Flow(NamedTuple):
    """The key of connections."""

    src: str
    dst: str
    l4: int = 6
    dport: int = 443


def table(flows: Mapping[Flow, Sequence[int]]) -> bytes:
    """Return the text of net/nf_conntrack for the five sums of each flow.

    The first connection of a flow has all of its packets and bytes.
    """
    lines = [
        _line(flow, counters if n == 0 else (0, 0, 0, 0))
        for flow, (connections, *counters) in flows.items()
        for n in range(connections)
    ]
    return "".join(lines).encode()


def _line(flow: Flow, counters: Sequence[int]) -> str:
    src, dst = ipaddress.ip_address(flow.src), ipaddress.ip_address(flow.dst)
    l3 = "ipv4     2" if src.version == 4 else "ipv6     10"
    l4 = f"{_KERNEL_NAMES[flow.l4]:8} {flow.l4} 29 {_STATES.get(flow.l4, '')}"
    original, reply = f"sport=40000 dport={flow.dport}", f"sport={flow.dport} dport=40000"
    if flow.l4 == 1:
        original = reply = "type=8 code=0 id=1"
    packets, size, reply_packets, reply_size = counters
    return (
        f"{l3} {l4}src={src.exploded} dst={dst.exploded} {original} "
        f"packets={packets} bytes={size} src={dst.exploded} dst={src.exploded} {reply} "
        f"packets={reply_packets} bytes={reply_size} mark=0 zone=0 use=2\n"
    )


def folded(text: bytes, plan: Plan, limit: Limit | None = None) -> Aggregate:
    """Return the aggregate of a text of net/nf_conntrack."""
    decoder = make(plan).text()
    decoder.feed(text)
    return aggregate.fold(decoder.finish(), plan.labels, limit or aggregate.Limit())


def series(live: Aggregate) -> Series:
    """Return the rows of an aggregate by their label values."""
    rows = list(zip(live.groups, zip(*live.columns, strict=True), strict=True))
    assert len(dict(rows)) == len(rows) == len(live.groups)  # else Prometheus refuses them
    return dict(rows)


def aggregated(rows: Series, *labels: str) -> Aggregate:
    """Return an aggregate of these series, without NAT, states and flags."""
    columns = tuple([row[field] for row in rows.values()] for field in range(5))
    return aggregate.Aggregate(
        labels=labels,
        groups=list(rows),
        columns=columns,
        totals=Sums(*map(sum, columns)),
        keys=len(rows),
        exported=len(rows),
        filtered=0,
        malformed=0,
        uncounted=0,
        states={},
        flags={},
        nat=None,
    )


def counted(rows: Series, *labels: str) -> Traffic:
    """Return counters of these series, all of TCP over IPv4."""
    columns = tuple([row[field] for row in rows.values()] for field in range(5))
    protocols = Rows([("ipv4", "tcp")], tuple([sum(column)] for column in columns))
    return Traffic(
        labels=labels,
        groups=Rows(list(rows), columns),
        protocols=protocols,
        totals=dict.fromkeys(TOTALS, 0),
        lost=0,
        started=1700000000.0,
        tracked=len(rows),
        listening=True,
        buffer=None,
    )


CONNTRACK = Conntrack(entries=50, entries_limit=200, buckets=64, accounting=True)


def taken(live: Aggregate | None) -> Snapshot:
    """Return a successful snapshot."""
    return Snapshot(
        success=True,
        source="procfs",
        engine="pure",
        conntrack=CONNTRACK,
        timestamp=1700000000.25,
        duration=0.5,
        live=live,
    )


def watched(live: Series, traffic: Series | None, *labels: str, seconds: float = 2.0) -> Snapshot:
    """Return a snapshot for top.

    traffic: of the last seconds; None in the first snapshot.
    """
    nothing = (0,) * len(Sums._fields)
    carried = traffic or {}
    rows = [
        Talker(group, Sums(*live.get(group, nothing)), Sums(*carried.get(group, nothing)))
        for group in sorted({*live, *carried})
    ]
    totals = Sums(*map(sum, zip(nothing, *carried.values(), strict=True)))
    talkers = Talkers(labels, rows, totals if traffic is not None else None, seconds, 0)
    counted = Traffic(
        labels=labels,
        groups=Rows((), ((),) * len(nothing)),
        protocols=Rows((), ((),) * len(nothing)),
        totals={},
        lost=0,
        started=1700000000.0,
        tracked=len(live),
        listening=True,
        buffer=None,
    )
    return taken(aggregated(live, *labels))._replace(
        source="netlink", talkers=talkers, traffic=counted
    )


def proc_root(where: Path, text: bytes = b"", **settings: int) -> Path:
    """Make a proc root with a connection table and settings such as nf_conntrack_acct."""
    (where / "net").mkdir()
    (where / "net" / "nf_conntrack").write_bytes(text)
    directory = where / "sys" / "net" / "netfilter"
    directory.mkdir(parents=True)
    for name, value in settings.items():
        (directory / name).write_text(f"{value}\n")
    return where
