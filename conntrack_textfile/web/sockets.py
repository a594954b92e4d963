"""Listening TCP sockets: made here, or found among those that systemd handed over."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import TYPE_CHECKING

from conntrack_textfile.errors import ListenError

if TYPE_CHECKING:
    from conntrack_textfile.options import Address

# Connections that the kernel holds until they are accepted. It takes no more
# than net.core.somaxconn, 4096 since Linux 5.4; those that do not fit try again
# after a second.
BACKLOG = 4096


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises ListenError.

    No host means all addresses, IPv4 and IPv6. Of a name's addresses it takes
    the first, IPv4 before IPv6, as exporters written in Go do.
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
        family, _, _, _, where = min(found, key=lambda info: info[0] != socket.AF_INET)
        return socket.create_server(where, family=family, backlog=BACKLOG)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {address}: {error.strerror}") from error
    except UnicodeError:
        raise ListenError(f"cannot listen on {address}: not a host name") from None
    except OSError as error:
        raise ListenError(f"cannot listen on {address}: {os.strerror(error.errno or 0)}") from error


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this host reaches a socket. ::ffff:127.0.0.1 does not count: nobody asks so."""
    address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    return address.is_loopback


def listening(handed: list[socket.socket]) -> list[socket.socket]:
    """The listening TCP sockets among those that systemd handed over."""
    found = []
    for sock in handed:
        if (
            sock.family in (socket.AF_INET, socket.AF_INET6)
            and sock.type == socket.SOCK_STREAM
            and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ):
            sock.settimeout(None)
            sock.listen(BACKLOG)  # whatever Backlog= of the unit says
            found.append(sock)
    return found
