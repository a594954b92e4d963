from __future__ import annotations

import pytest

from conntrack_textfile import names


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
    assert names.l4protocol(number) == name


def test_no_two_protocols_share_a_name() -> None:
    assert len({names.l4protocol(number) for number in range(256)}) == 256


def test_the_compatible_services_are_named_for_tcp_and_udp() -> None:
    compatible = {
        "ftp": [20, 21],
        "ssh": [22],
        "telnet": [23],
        "smtp": [25, 465, 587],
        "dns": [53],
        "http": [80],
        "pop3": [110],
        "imap": [143],
        "ldap": [389],
        "https": [443],
        "ipp": [631],
        "imaps": [993],
        "pop3s": [995],
        "mysql": [3306],
        "postgres": [5432],
        "redis": [6379],
        "elasticsearch": [9200],
    }
    for service, ports in compatible.items():
        for port in ports:
            assert names.l7protocol(6, port) == service
            assert names.l7protocol(17, port) == service


@pytest.mark.parametrize(
    ("l4", "dport", "service"),
    [
        (6, 64999, "unknown"),
        (6, 0, "unknown"),
        (132, 80, "unknown"),
        (136, 53, "unknown"),
        (1, 0, "na"),
        (47, 0, "na"),
        (89, 0, "na"),
    ],
)
def test_the_rest_is_unknown_or_has_no_service(l4: int, dport: int, service: str) -> None:
    assert names.l7protocol(l4, dport) == service
