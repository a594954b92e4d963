"""The process of serve: its memory, its signals and systemd's watchdog."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, NoReturn

from conntrack_textfile.errors import OutputError, StateError
from conntrack_textfile.logs import LOG
from conntrack_textfile.web import sdnotify

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

# Seconds to wait for a signal without a watchdog.
_IDLE_SECONDS = 3600.0

# A parameter of mallopt(3), from malloc.h.
_M_ARENA_MAX = -8


def limit_malloc_arenas() -> None:
    """Make all threads allocate from one malloc arena, with glibc.

    Otherwise each of the first threads reserves 64 MiB of address space, and under
    RLIMIT_AS a snapshot then fails. It costs nothing: the GIL lets one thread
    allocate at a time.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def block_signals() -> None:
    """Block the signals that run() waits for. Call it before threads start: they inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def run(
    alive: Callable[[], bool], reload: Callable[[], None], stop: Callable[[], None]
) -> NoReturn:
    """Wait for signals until SIGTERM or SIGINT, then exit; in the main thread.

    Call block_signals() first. A signal ends the process even without memory.

    alive: whether the threads work; the watchdog is fed while it is true.
    reload: called at SIGHUP.
    stop: called before the exit, to save state.
    """
    systemd, timeout = sdnotify.connect(), sdnotify.watchdog_seconds()
    sdnotify.notify(systemd, b"READY=1")
    while True:
        received = None
        try:
            # Allocates only if there was a signal: MemoryError stands for one.
            received = signal.sigtimedwait(_SIGNALS, timeout / 3 if timeout else _IDLE_SECONDS)
        except MemoryError:
            break
        if received is not None and received.si_signo != signal.SIGHUP:
            break
        with contextlib.suppress(MemoryError):
            if received is not None:
                reload()
            if alive():
                sdnotify.notify(systemd, b"WATCHDOG=1")
    with contextlib.suppress(MemoryError):
        sdnotify.notify(systemd, b"STOPPING=1")
        if received is not None:
            LOG.info("stopped by %s", signal.Signals(received.si_signo).name)
    try:
        stop()
    except (OutputError, StateError) as error:
        LOG.error("%s", error)
    except MemoryError:
        pass
    # No cleanup: freeing the data of a snapshot in progress takes seconds on a large table.
    os._exit(0)
