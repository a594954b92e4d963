"""Log lines on standard error: one event a line, as logfmt or JSON."""

from __future__ import annotations

import json
import logging
import time

from conntrack_textfile.errors import tell

LOG = logging.getLogger("conntrack_textfile")

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
}


def configure(level: str, form: str) -> logging.Logger:
    """Send what is at least of this level to standard error, as "logfmt" or "json"."""
    handler = _Handler()
    handler.setFormatter(_Formatter(form))
    LOG.handlers = [handler]
    LOG.setLevel(_LEVELS[level])
    LOG.propagate = False
    return LOG


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record))


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
