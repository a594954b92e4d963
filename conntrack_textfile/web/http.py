"""The HTTP transport: connections, threads and deadlines.

Every request is a thread of the standard library's WSGI server. Threads, time
and sizes are bounded, since anybody who reaches the port can send anything.
"""

from __future__ import annotations

import io
import ssl
import sys
import threading
import time
from socketserver import ThreadingMixIn
from typing import IO, TYPE_CHECKING, Any, cast
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer

from conntrack_textfile.logs import LOG

if TYPE_CHECKING:
    import socket
    from types import TracebackType

    from conntrack_textfile.web.application import Application

    _ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# Seconds that a client has to send its request, and to take the answer.
REQUEST_SECONDS = 10.0
RESPONSE_SECONDS = 60.0

# Bytes. A scrape sends less than a thousand.
_MAX_REQUEST_LINE = 8192
_MAX_REQUEST = 32768

# Seconds from one complaint about TLS to the next.
_AGAIN = 60.0

# Open connections above which new ones are closed at once.
MAX_CONNECTIONS = 512


def start(listener: socket.socket, application: Application) -> WSGIServer:
    """Serve on a listening socket, in threads that end with the process."""
    server = _Server(listener, application)
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    return server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    _slots = threading.Semaphore(MAX_CONNECTIONS)  # of all servers together
    _told = float("-inf")

    def __init__(self, listener: socket.socket, application: Application) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        # Not HTTPServer.server_bind(): that asks the DNS for this host's name.
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self.serves = application

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread to be had
                self._slots.release()
                raise
        else:
            LOG.debug("%d connections are open: closed one more", MAX_CONNECTIONS)
            self.shutdown_request(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its thread; by TLS where that is wanted."""
        access = self.serves.access
        tls = access.current().tls if access else None
        if tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(REQUEST_SECONDS)
        with tls.wrap_socket(request, server_side=True) as secured:
            super().finish_request(secured, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, _request: Any, client_address: Any) -> None:
        # The client's doing, mostly: it went away or was too slow.
        LOG.debug("connection from %s failed", client_address[0], exc_info=True)
        # This one is mostly a wrong setting, there or here. Anybody can make many.
        error = sys.exc_info()[1]
        if isinstance(error, ssl.SSLError) and time.monotonic() > _Server._told + _AGAIN:
            _Server._told = time.monotonic()
            reason = (error.reason or "closed").replace("_", " ").lower()
            LOG.warning("TLS with %s failed: %s", client_address[0], reason)


class _Handler(WSGIRequestHandler):
    server: _Server

    def setup(self) -> None:
        self.stream = _TimedStream(self.request, REQUEST_SECONDS)
        self.rfile = io.BufferedReader(self.stream)
        self.wfile = io.BufferedWriter(self.stream)

    def finish(self) -> None:
        self.wfile.flush()

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline(_MAX_REQUEST_LINE + 1)
        if len(self.raw_requestline) > _MAX_REQUEST_LINE:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
        elif self.parse_request():
            self.stream.allow(RESPONSE_SECONDS)
            read, write = cast("IO[bytes]", self.rfile), cast("IO[bytes]", self.wfile)
            handler = _ServerHandler(read, write, sys.stderr, self.get_environ())
            handler.request_handler = self
            handler.run(self.server.serves)

    def version_string(self) -> str:
        return "conntrack-textfile"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the name it has there
        LOG.debug(f"%s {format}", self.client_address[0], *args)


class _ServerHandler(ServerHandler):
    request_handler: _Handler

    def log_exception(self, exc_info: _ExcInfo) -> None:
        error = exc_info[1]
        if isinstance(error, OSError):  # the client went away or was too slow
            LOG.debug("answer not taken: %s", error)
        else:
            LOG.error("request failed: %r", error)
            LOG.debug("request failed", exc_info=exc_info)


class _TimedStream(io.RawIOBase):
    """A socket of which all reads and writes together end by a deadline, and reads by a size.

    A timeout for each of them would let a client that sends a byte a second stay.
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._socket = sock
        self._read = 0
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._socket.settimeout(self._left())
        size = self._socket.recv_into(buffer)
        self._read += size
        if self._read > _MAX_REQUEST:
            raise ConnectionError("the request is too large")
        return size

    def write(self, data: Any) -> int:
        # Not sendall(): with TLS the time would begin anew with every record.
        self._socket.settimeout(self._left())
        return self._socket.send(data)

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client is too slow")
        return left
