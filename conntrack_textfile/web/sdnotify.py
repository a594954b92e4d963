"""Service state notifications and the watchdog of systemd (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket

from conntrack_textfile.logs import LOG

# systemd's queue can be full while many services start, and READY=1 is sent once.
_SEND_SECONDS = 1.0


def connect() -> socket.socket | None:
    """Return a socket connected to NOTIFY_SOCKET, None without a usable one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return None
    # Made once: later there may be no free descriptor.
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(_SEND_SECONDS)
    try:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)  # @: abstract (unix(7))
    except OSError as error:
        sock.close()
        LOG.warning("cannot notify systemd at %s: %s", path, error.strerror)
        return None
    return sock


def notify(sock: socket.socket | None, state: bytes) -> None:
    """Send a state such as b"READY=1". Errors are ignored."""
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.send(state)


def watchdog_seconds() -> float | None:
    """Return the timeout of the watchdog, None if it is off (sd_watchdog_enabled(3))."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None
