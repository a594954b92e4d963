"""The process of serve: its signals, and what systemd hears of it."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, NoReturn

from conntrack_textfile.errors import OutputError, StateError
from conntrack_textfile.logs import LOG
from conntrack_textfile.web import notify

if TYPE_CHECKING:
    from collections.abc import Callable

_AWAITED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

# Seconds to wait for a signal, where nothing else is to be done.
_IDLE_SECONDS = 3600.0


# A parameter of mallopt, from malloc.h.
_M_ARENA_MAX = -8


def share_one_arena() -> None:
    """Let all threads allocate from one arena, where the C library is glibc.

    Otherwise each of the first threads reserves 64 MiB of address space of its
    own; of a limited one (RLIMIT_AS) the refresh then finds nothing left. Only
    one thread of Python allocates at a time, so nothing is gained by it.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def block_signals() -> None:
    """Block them, before there are other threads: so that only stay() gets them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)


def stay(
    alive: Callable[[], bool], read_again: Callable[[], None], stop: Callable[[], None]
) -> NoReturn:
    """Serve until a signal says to stop; after block_signals(), in the main thread.

    SIGHUP reads again what was read at start. systemd's watchdog is fed while
    this is alive. stop() saves what is to be saved. Without memory a signal still
    ends it.
    """
    systemd, seconds = notify.connect(), notify.watchdog()
    notify.tell(systemd, b"READY=1")
    while True:
        found = None
        try:
            # Where no signal came it allocates nothing: an error stands for a signal.
            found = signal.sigtimedwait(_AWAITED, seconds / 3 if seconds else _IDLE_SECONDS)
        except MemoryError:
            break
        if found is not None and found.si_signo != signal.SIGHUP:
            break
        with contextlib.suppress(MemoryError):
            if found is not None:
                read_again()
            if alive():
                notify.tell(systemd, b"WATCHDOG=1")
    with contextlib.suppress(MemoryError):
        notify.tell(systemd, b"STOPPING=1")
        if found is not None:
            LOG.info("stopped by %s", signal.Signals(found.si_signo).name)
    try:
        stop()
    except (OutputError, StateError) as error:
        LOG.error("%s", error)
    except MemoryError:
        pass
    # At once: to tidy up after a refresh that is under way would take seconds
    # on a large table.
    os._exit(0)
