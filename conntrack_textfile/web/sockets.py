"""Listening TCP sockets: new ones, or those of systemd's socket activation."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Any

from conntrack_textfile.errors import ListenError
from conntrack_textfile.logs import LOG
from conntrack_textfile.values import Address

# Connections that the kernel queues until accept(), at most net.core.somaxconn (4096
# since Linux 5.4). It drops the SYN of further ones; clients repeat it after a second.
BACKLOG = 4096


def listen(address: Address) -> socket.socket:
    """Return a listening socket for an address. Raises ListenError."""
    sock = bind(address)
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _refused(address, error) from error
    return sock


def bind(address: Address) -> socket.socket:
    """Return a socket that is bound to an address and does not listen. Raises ListenError.

    No host means all addresses, IPv4 and IPv6. Of the addresses of a host name the first
    is used, IPv4 before IPv6, as by exporters written in Go.
    """
    family: int = socket.AF_INET
    where: tuple[Any, ...] = ("", address.port)
    try:
        if address.host:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            family, _, _, _, where = min(found, key=lambda info: info[0] != socket.AF_INET)
        elif socket.has_dualstack_ipv6():
            family = socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    except UnicodeError:
        raise ListenError(f"cannot listen on {address}: not a host name") from None
    except OSError as error:
        raise _refused(address, error) from error
    try:
        # After a restart the old connections are still in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, bool(address.host))
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise _refused(address, error) from error
    return sock


def _refused(address: Address, error: OSError) -> ListenError:
    return ListenError(f"cannot listen on {address}: {os.strerror(error.errno or 0)}")


def log(listener: socket.socket, *, tls: bool, passwords: bool) -> None:
    """Log the address of a listener; warn where it is open to the network without either."""
    address = Address(*listener.getsockname()[:2])
    LOG.info(
        "listening on %s, %s TLS, %s passwords",
        *(address, "with" if tls else "without", "with" if passwords else "without"),
    )
    if not (tls or passwords or is_loopback(listener)):
        LOG.warning(
            "whoever reaches %s sees who talks to whom: --web.config.file asks for TLS and "
            "passwords, --web.listen-address=127.0.0.1:%d is for this host alone",
            *(address, address.port),
        )


def is_loopback(listener: socket.socket) -> bool:
    """Return whether a socket listens on a loopback address (::ffff:127.0.0.1 is none)."""
    address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    return address.is_loopback


def listening(passed: list[socket.socket]) -> list[socket.socket]:
    """Return the listening TCP sockets among those passed by systemd."""
    found = []
    for sock in passed:
        if (
            sock.family in (socket.AF_INET, socket.AF_INET6)
            and sock.type == socket.SOCK_STREAM
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            sock.settimeout(None)
            sock.listen(BACKLOG)  # in place of the unit's Backlog=
            found.append(sock)
    return found
