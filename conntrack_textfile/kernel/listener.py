"""The event socket of a table: the one passed by systemd, or one made here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from conntrack_textfile.errors import SourceError
from conntrack_textfile.kernel import events

if TYPE_CHECKING:
    import socket
    from logging import Logger

    from conntrack_textfile.kernel.table import Table

# Returns the event socket of a table (or None), and whether it was passed by systemd.
Listen = Callable[["Table"], "tuple[socket.socket | None, bool]"]


def listener(passed: dict[str, socket.socket], buffer_bytes: int, log: Logger | None) -> Listen:
    """Return the function that opens the event socket of a table.

    passed: see activation.Passed.events; a socket that is used is removed.
    buffer_bytes: the receive buffer of a socket made here; 0: none is made.
    log: for the size of the buffer and failures; None: they are not logged.
    """

    def listen(table: Table) -> tuple[socket.socket | None, bool]:
        # Used once: another namespace may take the name later, and the socket is not in it.
        sock = given = passed.pop(table.key, None)
        of = f" of {table.name}" if table.name else ""
        if given is not None and not events.is_in(given, table.identity):
            if log:
                log.warning(
                    "the event socket%s is in another namespace: restart its socket unit", of
                )
            given.close()
            sock = given = None
        if sock is None and buffer_bytes:
            try:
                sock = table.space.run(lambda: events.listen(buffer_bytes))
            except (OSError, SourceError) as error:
                if log:
                    reason = getattr(error, "strerror", None) or error
                    log.warning("no events of ended connections%s: %s", of, reason)
        if sock is not None and log:
            # One line a namespace, of which there may be hundreds; and write logs problems only.
            report = log.debug if of or not buffer_bytes else log.info
            size = events.buffer(sock).size
            report("events of ended connections%s: a buffer of %d bytes", of, size)
        return sock, given is not None

    return listen
