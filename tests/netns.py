"""Network namespaces for tests: a client, a router with connection tracking, a server.

client 10.77.1.2 -- 10.77.1.1 router 10.77.2.1 -- 10.77.2.2 server
client fd77:1::2 -- fd77:1::1 router fd77:2::1 -- fd77:2::2 server
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_EXPIRING = (
    *("generic_timeout", "icmp_timeout", "icmpv6_timeout", "udp_timeout", "udp_timeout_stream"),
    *(f"tcp_timeout_{state}" for state in ("close", "fin_wait", "last_ack", "time_wait")),
)

RULES = """
table inet t {
    counter sent { }
    counter reply { }
    chain c {
        type filter hook forward priority 0;
        ct direction original counter name sent
        ct direction reply counter name reply
    }
}
"""


class Network(NamedTuple):
    client: str
    router: str
    server: str


def inside(namespace: str) -> list[str]:
    """Return the prefix of a command that runs in a namespace."""
    return ["ip", "netns", "exec", namespace]


def check(*argv: str, text: str | None = None) -> str:
    """Run a program and return its standard output. Raises CalledProcessError."""
    return subprocess.run(
        argv, input=text, capture_output=True, text=True, check=True, timeout=60
    ).stdout


@contextlib.contextmanager
def namespaces(*names: str) -> Iterator[list[str]]:
    """Create namespaces, with unique names made of these and the loopback up."""
    unique = [f"ctf-{secrets.token_hex(4)}-{name}" for name in names]
    with contextlib.ExitStack() as made:
        for name in unique:
            check("ip", "netns", "add", name)
            # After the add: a name that already exists belongs to another process.
            made.callback(check, "ip", "netns", "del", name)
            check("ip", "-n", name, "link", "set", "lo", "up")
        yield unique


def sysctl(namespace: str, **values: int) -> None:
    """Set sysctls in a namespace; "__" in a name stands for a dot."""
    for name, value in values.items():
        check(*inside(namespace), "sysctl", "-q", "-w", f"{name.replace('__', '.')}={value}")


def wait_for_answer(namespace: str, host: str) -> None:
    """Ping a host until it replies: neighbour discovery takes a moment after link up."""
    ping = [*inside(namespace), "ping", "-q", "-c", "1", "-W", "1", host]
    end = time.monotonic() + 30
    while subprocess.run(ping, capture_output=True, check=False).returncode:
        assert time.monotonic() < end, f"{host} does not answer"


@contextlib.contextmanager
def network(*, accounting: bool = True) -> Iterator[Network]:
    """Create client, router and server; nftables counters in the router count the traffic."""
    with namespaces("c", "r", "s") as (client, router, server):
        for name in (client, router, server):
            # While a link-local address is tentative (duplicate address detection, a second
            # or two) the router sends no neighbour solicitations.
            sysctl(name, net__ipv6__conf__default__accept_dad=0)
        for end, number, host in ((client, 1, "c0"), (server, 2, "s0")):
            check("ip", "-n", end, "link", "add", host, "type", "veth", "peer", "name", "up0")
            check("ip", "-n", end, "link", "set", "up0", "netns", router, "name", f"r{number}")
            for where, device, address in ((end, host, 2), (router, f"r{number}", 1)):
                add = ["ip", "-n", where, "addr", "add", "dev", device]
                check(*add, f"10.77.{number}.{address}/24")
                check(*add, f"fd77:{number}::{address}/64")
                check("ip", "-n", where, "link", "set", device, "up")
            check("ip", "-n", end, "route", "add", "default", "via", f"10.77.{number}.1")
            check("ip", "-n", end, "route", "add", "default", "via", f"fd77:{number}::1")
        sysctl(router, net__ipv4__ip_forward=1, net__netfilter__nf_conntrack_acct=int(accounting))
        sysctl(router, net__ipv6__conf__all__forwarding=1)
        # Longer than any test: no entry may expire while it runs.
        timeouts = {f"net__netfilter__nf_conntrack_{name}": 600 for name in _EXPIRING}
        sysctl(router, **timeouts)
        wait_for_answer(client, "10.77.2.2")
        wait_for_answer(client, "fd77:2::2")
        check(*inside(router), "nft", "-f", "-", text=RULES)  # its ct rules start tracking
        yield Network(client, router, server)
