from __future__ import annotations

import pytest

from conntrack_textfile import filters, networks
from conntrack_textfile.filters import Filter, Mark
from conntrack_textfile.labels import ROWS

CONDITIONS = {row.name: row.filter for row in ROWS if row.filter}


def test_a_condition_can_be_put_on_every_field_of_a_filter() -> None:
    assert set(CONDITIONS) == set(Filter._fields)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("src=10.0.0.0/8", Filter(src=networks.parse("10.0.0.0/8"))),
        ("src=10.1.2.3", Filter(src=networks.parse("10.1.2.3/32"))),
        ("src=0.0.0.0/0", Filter(src=networks.parse("0.0.0.0/0"))),
        ("dst=::/0", Filter(dst=networks.parse("::/0"))),
        ("dport=443", Filter(dport=range(443, 444))),
        ("dport=53-443", Filter(dport=range(53, 444))),
        ("dport=0-65535", Filter(dport=range(65536))),
        ("l3protocol=ipv6", Filter(l3protocol=6)),
        ("l4protocol=tcp", Filter(l4protocol=6)),
        ("l4protocol=17", Filter(l4protocol=17)),
        ("l3protocol=IPv4,l4protocol=TCP", Filter(l3protocol=4, l4protocol=6)),
        (
            "src=10.0.0.0/8,dst=192.0.2.0/24,dport=443,l3protocol=ipv4,l4protocol=tcp",
            Filter(
                networks.parse("10.0.0.0/8"), networks.parse("192.0.2.0/24"), 4, 6, range(443, 444)
            ),
        ),
        ("zone=0", Filter(zone=0)),
        ("zone=65535", Filter(zone=65535)),
        ("mark=0", Filter(mark=Mark(0, 0xFFFFFFFF))),
        ("mark=4294967295", Filter(mark=Mark(0xFFFFFFFF, 0xFFFFFFFF))),
        ("mark=0x1f", Filter(mark=Mark(0x1F, 0xFFFFFFFF))),
        ("mark=0X1F/0xff", Filter(mark=Mark(0x1F, 0xFF))),
        ("mark=0/0", Filter(mark=Mark(0, 0))),
        ("egress=198.51.100.7", Filter(egress=networks.parse("198.51.100.7"))),
        ("backend=fd00::/8,zone=1", Filter(backend=networks.parse("fd00::/8"), zone=1)),
    ],
)
def test_conditions_are_read(text: str, parsed: Filter) -> None:
    assert filters.parse(text, CONDITIONS) == parsed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dport=99999", "'dport=99999': ports are N or N-M"),
        ("src=10.0.0.0/8,dport=2-1", "'dport=2-1' in 'src=10.0.0.0/8,dport=2-1': ports are"),
        ("dport=-1", "ports are N or N-M"),
        ("dport=1-", "ports are N or N-M"),
        ("dport=٣", "ports are N or N-M"),
        ("dport=1_0", "ports are N or N-M"),
        ("dport=", "ports are N or N-M"),
        ("src=10.0.0.1/8", "host bits set"),
        ("dst=office", "not an address"),
        ("l3protocol=ip", "it is ipv4 or ipv6"),
        ("l4protocol=http", "no protocol has this name"),
        ("sport=1", "'sport=1': a condition is src=, dst=, l3protocol=, l4protocol=, dport=, zone"),
        ("l7protocol=dns", "'l7protocol=dns': a condition is"),
        ("dport=1,", "'' in 'dport=1,': a condition is"),
        ("", "'': a condition is"),
        ("src", "'src': '' is not an address"),
        ("dport=1,dport=2", "'dport=2' in 'dport=1,dport=2': dport is given twice"),
        ("zone=65536", "a zone is a number up to 65535"),
        ("zone=-1", "a zone is a number"),
        ("zone=", "a zone is a number"),
        ("zone=٣", "a zone is a number"),
        ("zone=000001", "a zone is a number"),
        ("mark=", "a mark is a number of 32 bits"),
        ("mark=4294967296", "a mark is a number of 32 bits"),
        ("mark=0x100000000", "a mark is a number of 32 bits"),
        ("mark=0x", "a mark is a number of 32 bits"),
        ("mark=ff", "a mark is a number of 32 bits"),
        ("mark=-1", "a mark is a number of 32 bits"),
        ("mark=1_0", "a mark is a number of 32 bits"),
        ("mark=٣", "a mark is a number of 32 bits"),
        ("mark=0x0x1", "a mark is a number of 32 bits"),
        ("mark=1/", "a mark is a number of 32 bits"),
        ("mark=0x10/0x0f", "the mark has bits outside of its mask"),
        ("egress=office", "not an address"),
        ("backend=10.0.0.1/8", "host bits set"),
    ],
)
def test_an_error_quotes_the_condition(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        filters.parse(text, CONDITIONS)
