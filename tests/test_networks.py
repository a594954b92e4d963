from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conntrack_textfile import networks

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


@given(ADDRESSES, ADDRESSES, st.integers(0, 128))
def test_networks_are_those_of_the_ipaddress_module(
    one: ipaddress.IPv4Address | ipaddress.IPv6Address,
    other: ipaddress.IPv4Address | ipaddress.IPv6Address,
    length: int,
) -> None:
    length = min(length, one.max_prefixlen)
    network = ipaddress.ip_network((one, length), strict=False)
    parsed = networks.parse(str(network))
    assert parsed.holds(one.packed)
    assert parsed.holds(other.packed) == (other in network)
    assert parsed.packed == network.network_address.packed
    masked = networks.masked(one.packed, length)
    assert masked == network.network_address.packed
    whole = length == one.max_prefixlen
    shown = str(network.network_address) if whole else str(network)
    if ".0.0" not in shown or one.version == 4:  # ::1.2.3.4 is shown otherwise there
        assert ipaddress.ip_network(networks.text_of(masked, length)) == network


@pytest.mark.parametrize(
    ("text", "shown"),
    [("10.1.2.0/24", "10.1.2.0/24"), ("2001:db8:1::/48", "2001:db8:1::/48"), ("::1", "::1")],
)
def test_networks_are_shown_in_cidr_notation(text: str, shown: str) -> None:
    network = networks.parse(text)
    assert networks.text_of(network.packed, network.length) == shown


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.1/8", "the network is 10.0.0.0/8"),
        ("2001:db8::1/32", "the network is 2001:db8::/32"),
        ("10.0.0.0/33", "from 0 to 32"),
        ("::/129", "from 0 to 128"),
        ("10.0.0.0/", "prefix length"),
        ("10.0.0.0/٨", "prefix length"),
        ("10.0.0.0/+8", "prefix length"),
        ("10.0.0.0/255.0.0.0", "prefix length"),
        ("10.0.0.0/" + "9" * 5000, "prefix length"),
        ("10.0.0.0/" + "0" * 5000, "prefix length"),
        ("10.0.0.0/0033", "prefix length"),
        ("10.0.0/8", "not an address"),
        ("010.0.0.1", "not an address"),
        ("fe80::1%lo", "not an address"),
        ("host", "not an address"),
        ("\0", "not an address"),
        ("", "not an address"),
    ],
)
def test_an_invalid_network_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        networks.parse(text)


TEXT = """
# where we are
10.0.0.0/8      company
10.1.0.0/16     office   # in the company
10.1.2.3        printer
2001:db8::/32\tcompany6
0.0.0.0/0       world
"""


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.200.0.1", "company"),
        ("10.1.0.1", "office"),
        ("10.1.2.3", "printer"),
        ("10.1.2.4", "office"),
        ("2001:db8:ffff::1", "company6"),
        ("192.0.2.1", "world"),
        ("2001:db9::1", None),
    ],
)
def test_the_longest_prefix_names_an_address(address: str, name: str | None) -> None:
    assert networks.name(networks.parse_names(TEXT), packed(address)) == name


# 16,500 names of 255 bytes each.
MANY = "".join(f"10.{n >> 8}.{n & 255}.0/24 {n:0255}\n" for n in range(16500))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.0/8 a\n\n10.0.0.0/8 b", "line 3: the network 10.0.0.0/8 is given twice"),
        ("10.0.0.1/32 a\n10.0.0.1 b", "line 2: .* is given twice"),
        ("10.0.0.1/8 a", "line 1: .* host bits set: the network is 10.0.0.0/8"),
        ("10.0.0.0/8", "line 1: a line is CIDR and a name of one word"),
        ("10.0.0.0/8 head office", "line 1: a line is CIDR and a name of one word"),
        ("# fine\noffice 10.0.0.0/8", "line 2: 'office' is not an address or network"),
        ("10.0.0.0/8 192.0.2.1", "line 1: the name '192.0.2.1' is an address"),
        ("10.0.0.0/8 ::/0", "line 1: the name '::/0' is an address"),
        ("10.0.0.0/8 " + "n" * 256, "line 1: the name nnnn.* is longer than 255 bytes"),
        ("10.0.0.0/8 " + "é" * 128, "line 1: the name éééé.* is longer than 255 bytes"),
        (MANY, "the names are together longer than 4 MiB"),
    ],
)
def test_a_bad_line_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        networks.parse_names(text)


def test_a_name_may_be_long_and_given_often() -> None:
    name = "é" * 127 + "x"
    lines = "".join(f"10.{n >> 8}.{n & 255}.0/24 {name}\n" for n in range(20000))
    assert networks.name(networks.parse_names(lines), packed("10.1.2.3")) == name


def test_a_name_may_look_a_little_like_an_address() -> None:
    named = networks.parse_names("10.0.0.0/8 10.0.0.0/lab\n10.1.0.0/16 10.1\n")
    assert networks.name(named, packed("10.2.0.1")) == "10.0.0.0/lab"
