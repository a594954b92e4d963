from __future__ import annotations

import pytest

from conntrack_textfile import protocols


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "icmp"),
        (4, "ipv4"),
        (6, "tcp"),
        (17, "udp"),
        (33, "dccp"),
        (47, "gre"),
        (50, "esp"),
        (51, "ah"),
        (58, "icmpv6"),  # IANA says ipv6-icmp, the kernel icmpv6
        (61, "61"),  # IANA has no keyword
        (89, "ospf"),
        (112, "vrrp"),
        (132, "sctp"),
        (135, "135"),
        (136, "udplite"),
        (142, "rohc"),
        (147, "bit-emu"),
        (148, "148"),
        (255, "255"),
    ],
)
def test_protocols_have_the_names_of_the_kernel_and_of_iana(number: int, name: str) -> None:
    assert protocols.l4protocol(number) == name


def test_no_two_protocols_share_a_name() -> None:
    assert len({protocols.l4protocol(number) for number in range(256)}) == 256


def test_ip_has_two_versions() -> None:
    assert [protocols.l3protocol(number) for number in (4, 6)] == ["ipv4", "ipv6"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("tcp", 6), ("TCP", 6), ("17", 17), ("ospf", 89), ("61", 61), ("255", 255), ("icmpv6", 58)],
)
def test_a_protocol_is_read_by_name_or_number(text: str, number: int) -> None:
    assert protocols.parse_l4protocol(text) == number


@pytest.mark.parametrize("text", ["", "http", "256", "-1", "06", "٦", "ipv6-icmp"])
def test_an_unknown_protocol_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no protocol has this name or number"):
        protocols.parse_l4protocol(text)


def test_every_name_that_is_shown_is_read_back() -> None:
    for number in range(256):
        assert protocols.parse_l4protocol(protocols.l4protocol(number)) == number


@pytest.mark.parametrize(("text", "version"), [("ipv4", 4), ("ipv6", 6), ("IPv6", 6)])
def test_an_ip_version_is_read_by_its_name(text: str, version: int) -> None:
    assert protocols.parse_l3protocol(text) == version


@pytest.mark.parametrize("text", ["", "ip", "4", "ipv5"])
def test_an_unknown_ip_version_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="it is ipv4 or ipv6"):
        protocols.parse_l3protocol(text)
