"""Reload of files, when they change or on request (SIGHUP)."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from conntrack_textfile.logs import LOG

if TYPE_CHECKING:
    from collections.abc import Callable

# Between attempts to read files that are not valid.
_RETRY_SECONDS = 10.0

# Modification and change time in nanoseconds, inode, size.
Stamp = tuple[int, int, int, int]
Stamps = dict[str, "Stamp | None"]

_Value = TypeVar("_Value")


class Reloader(Generic[_Value]):
    """A value read from files: the last valid one."""

    def __init__(
        self,
        what: str,
        read: Callable[[_Value | None], tuple[_Value, Stamps]],
        is_expired: Callable[[], bool] = lambda: False,
    ) -> None:
        """Read the files. Raises what read raises; later such errors are logged.

        what: names the files in the log.
        read: called with the previous value, None at first. Returns the value and the
            stamps of the files, taken before they were read so that no change is missed.
        is_expired: whether the value must be read again though no file changed.
        """
        self._what = what
        self._read = read
        self._is_expired = is_expired
        self._value, self._stamps = read(None)
        self._last_error = ""
        self._retry_at = 0.0
        self._lock = threading.Lock()

    def current(self) -> _Value:
        """Return the value, read again if a file has changed or the value expired.

        Does not wait for another thread that reads: returns the value before.
        """
        if self._lock.acquire(blocking=False):
            try:
                stamps = {file: stamp(file) for file in self._stamps}
                due = time.monotonic() > self._retry_at if self._last_error else self._is_expired()
                if stamps != self._stamps or due:
                    before = self._value
                    self._stamps = stamps
                    if self._reread() and self._value is not before:
                        LOG.info("read %s again", self._what)
            finally:
                self._lock.release()
        return self._value

    def reload(self) -> None:
        """Read the files again, changed or not."""
        with self._lock:
            self._last_error = ""
            if self._reread():
                LOG.info("read %s again", self._what)

    def _reread(self) -> bool:
        """Read the files. Return whether they are valid; log an error once."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        try:
            self._value, self._stamps = self._read(self._value)
        # Any exception: current() must return a value.
        except Exception as error:  # noqa: BLE001
            if str(error) != self._last_error:
                LOG.error("%s; going on with what was read before", error)
                self._last_error = str(error)
            return False
        self._last_error = ""
        return True


def stamp(file: str) -> Stamp | None:
    """Return what changes when a file is written or replaced, None if it cannot be read."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
