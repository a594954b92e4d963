"""Log lines on standard error: one event a line, as logfmt or JSON."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from conntrack_textfile.errors import print_error

if TYPE_CHECKING:
    from collections.abc import Iterator

LOG = logging.getLogger("conntrack_textfile")

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}

_MAX_BUFFERED = 100  # lines
_MAX_SHOWN = 3  # lines on the screen


def configure(level: str, form: str) -> logging.Logger:
    """Log to standard error from a level on: debug, info, warn or error.

    form: "logfmt" or "json".
    """
    handler = _Handler()
    handler.setFormatter(_Formatter(form))
    LOG.handlers = [handler]
    LOG.setLevel(_LEVELS[level])
    LOG.propagate = False
    return LOG


@contextlib.contextmanager
def buffered(log: logging.Logger) -> Iterator[list[str]]:
    """Hold log lines back while a screen is shown, and write them at the end.

    Yields the list of the last messages, to show on the screen. The caller may clear it.
    """
    buffer = _Buffer()
    handlers, log.handlers = log.handlers, [buffer]
    try:
        yield buffer.messages
    finally:
        log.handlers = handlers
        for record in buffer.records:
            log.handle(record)


class _Buffer(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: deque[logging.LogRecord] = deque(maxlen=_MAX_BUFFERED)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.messages.append(record.getMessage())
        del self.messages[:-_MAX_SHOWN]


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_error(self.format(record))


class _Formatter(logging.Formatter):
    def __init__(self, form: str) -> None:
        super().__init__()
        self._json = form == "json"

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "ts": f"{when}.{int(record.msecs):03}Z",
            "level": "warn" if record.levelno == logging.WARNING else record.levelname.lower(),
            "msg": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if self._json:
            return json.dumps(fields)
        # A JSON string is a logfmt string: quotes and line ends are escaped.
        fields["msg"] = json.dumps(fields["msg"])
        if "exception" in fields:
            fields["exception"] = json.dumps(fields["exception"])
        return " ".join(f"{name}={value}" for name, value in fields.items())
