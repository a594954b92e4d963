"""Listening TCP sockets: new ones, or those of systemd's socket activation."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import TYPE_CHECKING

from conntrack_textfile.errors import ListenError

if TYPE_CHECKING:
    from conntrack_textfile.options import Address

# Connections that the kernel queues until accept(), at most net.core.somaxconn (4096
# since Linux 5.4). It drops the SYN of others, which they repeat after a second.
BACKLOG = 4096


def listen(address: Address) -> socket.socket:
    """Return a socket that listens on an address. Raises ListenError.

    An empty host means all addresses, IPv4 and IPv6. A host name means its first
    address, IPv4 before IPv6, as in Go's net.Listen().
    """
    try:
        if not address.host:
            if socket.has_dualstack_ipv6():
                return socket.create_server(
                    ("", address.port),
                    family=socket.AF_INET6,
                    backlog=BACKLOG,
                    dualstack_ipv6=True,
                )
            return socket.create_server(("", address.port), backlog=BACKLOG)
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, sockaddr = min(found, key=lambda info: info[0] != socket.AF_INET)
        return socket.create_server(sockaddr, family=family, backlog=BACKLOG)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    except UnicodeError:
        raise ListenError(f"cannot listen on {address}: not a host name") from None
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {os.strerror(error.errno or 0)}") from error


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
