"""Files that are read again when they change, or when a signal says so."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from conntrack_textfile.logs import LOG

if TYPE_CHECKING:
    from collections.abc import Callable

# From one try to the next of files that could not be used.
_RETRY_SECONDS = 10.0

# What of os.stat() changes when a file is written or replaced.
Stamp = tuple[int, int, int, int]
Stamps = dict[str, "Stamp | None"]

_Value = TypeVar("_Value")


class Reloader(Generic[_Value]):
    """What files say, as they are or as they last were of use."""

    def __init__(
        self,
        what: str,
        read: Callable[[_Value | None], tuple[_Value, Stamps]],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Read the files. what they are is for the log; read() gets the value before.

        It gives the value and the stamps of the files, taken before they were read,
        and raises an exception that says what is wrong: here, and later into the log.
        is_over says whether what they said then holds no more, changed or not.
        """
        self._what = what
        self._read = read
        self._is_over = is_over
        self._value, self._stamps = read(None)
        self._last_error = ""
        self._retry_at = 0.0
        self._lock = threading.Lock()

    def current(self) -> _Value:
        """The value, after another reading if a file has changed."""
        if self._lock.acquire(blocking=False):
            try:
                stamps = {file: stamp(file) for file in self._stamps}
                late = time.monotonic() > self._retry_at if self._last_error else self._is_over()
                if stamps != self._stamps or late:
                    before = self._value
                    self._stamps = stamps
                    if self._reread() and self._value is not before:
                        LOG.info("read %s again", self._what)
            finally:
                self._lock.release()
        return self._value

    def reload(self) -> None:
        """Read the files again, whether they seem changed or not."""
        with self._lock:
            self._last_error = ""
            if self._reread():
                LOG.info("read %s again", self._what)

    def _reread(self) -> bool:
        """Whether that went well."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        try:
            self._value, self._stamps = self._read(self._value)
        # Whatever it was: the next caller must find a value.
        except Exception as error:  # noqa: BLE001
            if str(error) != self._last_error:
                LOG.error("%s; going on with what was read before", error)
                self._last_error = str(error)
            return False
        self._last_error = ""
        return True


def stamp(file: str) -> Stamp | None:
    """What changes when a file is written or replaced, None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size
