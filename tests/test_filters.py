from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile import filters

if TYPE_CHECKING:
    from conntrack_textfile.tally import Key


def key(src: str, dst: str, l4: int, dport: int) -> Key:
    return ipaddress.ip_address(src).packed, ipaddress.ip_address(dst).packed, l4, dport


WEB = key("10.1.2.3", "192.0.2.1", 6, 443)
DNS6 = key("2001:db8::1", "2001:db8::2", 17, 53)


@pytest.mark.parametrize(
    ("text", "web", "dns6"),
    [
        ("src=10.0.0.0/8", True, False),
        ("src=10.1.2.3", True, False),
        ("src=10.1.2.4", False, False),
        ("src=0.0.0.0/0", True, False),
        ("dst=::/0", False, True),
        ("dport=443", True, False),
        ("dport=53-443", True, True),
        ("dport=444-65535", False, False),
        ("l3protocol=ipv6", False, True),
        ("l4protocol=tcp", True, False),
        ("l4protocol=17", False, True),
        ("l3protocol=IPv4,l4protocol=TCP", True, False),
        ("src=10.0.0.0/8,dport=53", False, False),
        ("src=10.0.0.0/8,dst=192.0.2.0/24,dport=443,l3protocol=ipv4,l4protocol=tcp", True, False),
    ],
)
def test_conditions_are_met_together(text: str, web: bool, dns6: bool) -> None:
    rule = filters.parse(text)
    assert rule.matches(WEB) == web
    assert rule.matches(DNS6) == dns6


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
        ("sport=1", "'sport=1': a condition is src=, dst=, dport=, l3protocol=, l4protocol="),
        ("dport=1,", "'' in 'dport=1,': a condition is"),
        ("", "'': a condition is"),
        ("src", "'src': '' is not an address"),
        ("dport=1,dport=2", "'dport=2' in 'dport=1,dport=2': dport stands twice"),
    ],
)
def test_the_bad_part_is_pointed_at(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        filters.parse(text)
