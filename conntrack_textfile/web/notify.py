"""Words to systemd about the state of the service (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket

from conntrack_textfile.logs import LOG

# systemd's queue can be full while many services start, and READY=1 is sent once.
_SEND_SECONDS = 1.0


def connect() -> socket.socket | None:
    """The socket that hears them; None where nobody asked for it."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return None
    # Made once: there may be no descriptor left when it counts.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(_SEND_SECONDS)
    try:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)  # an abstract name
    except OSError as error:
        sock.close()
        LOG.warning("cannot speak to systemd at %s: %s", path, error.strerror)
        return None
    return sock


def tell(sock: socket.socket | None, state: bytes) -> None:
    """Send a state such as b"READY=1"; nothing comes of it where nobody listens any more."""
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.send(state)


def watchdog() -> float | None:
    """Within how many seconds WATCHDOG=1 is to come, again and again (sd_watchdog_enabled(3))."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
