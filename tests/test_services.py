from __future__ import annotations

from pathlib import Path

import pytest

from conntrack_textfile import services


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
            assert services.l7protocol(6, port) == service
            assert services.l7protocol(17, port) == service


@pytest.mark.parametrize(
    ("l4", "dport", "service"),
    [
        (17, 123, "ntp"),
        (6, 123, "unknown"),
        (17, 161, "snmp"),
        (6, 179, "bgp"),
        (6, 636, "ldaps"),
        (6, 445, "smb"),
        (6, 2049, "nfs"),
        (6, 3389, "rdp"),
        (17, 3389, "rdp"),
        (6, 5900, "vnc"),
        (17, 67, "dhcp"),
        (17, 514, "syslog"),
        (17, 5060, "sip"),
        (17, 3478, "stun"),
        (17, 1194, "openvpn"),
        (17, 51820, "wireguard"),
        (6, 51820, "unknown"),
        (17, 500, "ike"),
        (17, 88, "kerberos"),
        (17, 1812, "radius"),
        (6, 1883, "mqtt"),
        (6, 5672, "amqp"),
        (6, 9092, "kafka"),
        (6, 2181, "zookeeper"),
        (6, 2379, "etcd"),
        (6, 6443, "kubernetes-api"),
        (6, 8500, "consul"),
        (6, 8200, "vault"),
        (6, 27017, "mongodb"),
        (6, 9042, "cassandra"),
        (6, 11211, "memcached"),
        (6, 15672, "rabbitmq"),
        (6, 9090, "prometheus"),
        (6, 9100, "node-exporter"),
        (6, 3000, "grafana"),
        (17, 443, "https"),
    ],
)
def test_services_that_operators_meet_have_names(l4: int, dport: int, service: str) -> None:
    assert services.l7protocol(l4, dport) == service


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
    assert services.l7protocol(l4, dport) == service


def test_the_users_names_go_over_the_built_in_ones() -> None:
    named = services.parse_services(
        "# ours\nfrontend\t443/tcp web www # not udp\nsignal 2905/sctp\nlate 443/tcp\n"
        "rtmp 1/ddp # in the file of every Debian\n"
    )
    assert services.l7protocol(6, 443, named) == "frontend"
    assert services.l7protocol(17, 443, named) == "https"
    assert services.l7protocol(132, 2905, named) == "signal"
    assert services.l7protocol(1, 0, named) == "na"
    assert services.l7protocol(6, 443) == "https"


def test_the_file_of_this_machine_is_read() -> None:
    file = Path("/etc/services")
    if not file.exists():
        pytest.skip("needs /etc/services")
    named = services.parse_services(file.read_text())
    assert services.l7protocol(6, 22, named) == "ssh"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("http", "line 1: a line is a name and PORT/PROTOCOL"),
        ("\nhttp 80", "line 2: a line is a name"),
        ("http /tcp", "line 1: a line is a name"),
        ("http tcp/80", "line 1: a line is a name"),
        ("http +80/tcp", "line 1: a line is a name"),
        ("http 80/", "line 1: '' is not a protocol"),
        ("http 80/tpc", "line 1: 'tpc' is not a protocol"),
        ("http 80/tcp/udp", "line 1: 'tcp/udp' is not a protocol"),
        ("http 65536/tcp", "line 1: 65536 is not a port"),
        ("n" * 256 + " 1/tcp", "line 1: the name nnnn.* is longer than 255 bytes"),
        (
            "".join(f"{n:0255} {n}/tcp\n" for n in range(16500)),
            "the names are together longer than 4 MiB",
        ),
    ],
)
def test_a_bad_line_of_services_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        services.parse_services(text)
