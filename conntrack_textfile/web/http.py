"""The HTTP transport: connections, threads and deadlines.

It is the standard library's server, with this for a request: a connection that
has something to read. Until then, and between two requests, it costs a
descriptor and no thread. Connections, threads, time and sizes are bounded,
since anybody who reaches the port can send anything.
"""

from __future__ import annotations

import contextlib
import errno
import io
import select
import socket
import ssl
import sys
import threading
import time
import urllib.parse
from socketserver import BaseRequestHandler, ThreadingMixIn
from typing import IO, TYPE_CHECKING, Any, cast
from wsgiref.handlers import SimpleHandler
from wsgiref.simple_server import WSGIServer

from conntrack_textfile.logs import LOG
from conntrack_textfile.web.limiter import ANSWERING, KEPT, SILENT, Connection, Limiter
from conntrack_textfile.web.request import MAX_REQUEST, BadRequestError, TooLargeError, read

if TYPE_CHECKING:
    from types import TracebackType
    from wsgiref.headers import Headers

    from conntrack_textfile.web.application import Application
    from conntrack_textfile.web.request import Request

    _ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# Seconds that a client has to send its request, and to take the answer.
REQUEST_SECONDS = 10.0
RESPONSE_SECONDS = 60.0

# Seconds that a connection is kept for the next request: two scrapes a minute
# apart, and some.
KEEP_SECONDS = 130.0

# Seconds and bytes for what a client still sends when it was refused. To close
# with bytes unread would reset the connection, and the client lose the answer.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1 << 20

# Seconds from one complaint about TLS to the next.
_WARNING_SECONDS = 60.0

# Connections at the same time. A newer one takes the place of one that waits.
MAX_CONNECTIONS = 512

# Seconds without accepting when the process has no descriptors or no memory.
_BACKOFF = 0.5
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Connections to close then: descriptors for those who ask, and for a refresh.
_EVICTED_AT_ONCE = 16

# Connections accepted in a row, before those that wait get their turn.
_BATCH = 64

# Seconds from one look for connections that have waited too long to the next.
_SWEEP = 0.5

# Seconds after which the loop of a server, which turns twice a second, has stopped.
_STOPPED = 60.0

# Bytes of a thread's stack, by default 8 MiB of address space. Threads of
# connections call little.
_STACK = 1 << 20

_TLS_HANDSHAKE = b"\x16"  # ContentType (RFC 8446, 5.1): what a client of TLS begins with


def start(
    listener: socket.socket, application: Application, limiter: Limiter | None = None
) -> Server:
    """Serve on a listening socket, in threads that end with the process.

    Servers that share a limiter have so many connections together.
    """
    threading.stack_size(_STACK)
    server = Server(listener, application, limiter or Limiter(MAX_CONNECTIONS))
    threading.Thread(target=server.run, name="http", daemon=True).start()
    return server


class Server(ThreadingMixIn, WSGIServer):
    """The server of one listening socket."""

    daemon_threads = True
    block_on_close = False
    _last_warning = float("-inf")

    def __init__(self, listener: socket.socket, application: Application, limiter: Limiter) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__((host, port), BaseRequestHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        # Not HTTPServer.server_bind(): that asks the DNS for this host's name.
        self.server_name, self.server_port = host, port
        self.setup_environ()
        self.serves = application
        self._limiter = limiter
        self._waiting: dict[int, Connection] = {}  # by descriptor
        # What the server takes for its one socket: this one, and all that wait.
        self._epoll = select.epoll()
        listener.setblocking(False)  # noqa: FBT003
        # Accepted sockets inherit it. The pieces of a response are small where they are
        # compressed: Nagle's algorithm would hold back the last until the client's delayed
        # ACK (40 ms) of those before.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._epoll.register(listener, select.EPOLLIN)
        self._accepts_from: float | None = None  # monotonic seconds; None while it does
        self._out_of_descriptors = False
        self._turned = self._swept = time.monotonic()

    def fileno(self) -> int:
        """What is readable when there is something to do."""
        return self._epoll.fileno()

    def run(self) -> None:
        """Serve until shutdown()."""
        try:
            while True:
                try:
                    self.serve_forever()
                    return
                except Exception:  # noqa: BLE001  # without memory anything can fail
                    with contextlib.suppress(MemoryError):
                        LOG.debug("the accept loop failed; starting it again", exc_info=True)
                time.sleep(_BACKOFF)
        finally:
            self._epoll.close()
            for connection in list(self._waiting.values()):
                self._end(connection)

    def alive(self) -> bool:
        """Whether the loop goes on."""
        return time.monotonic() - self._turned < _STOPPED

    def service_actions(self) -> None:
        """What else is to be done each time that the loop turns."""
        now = self._turned = time.monotonic()
        if self._accepts_from is not None and now > self._accepts_from:
            self._accepts_from = None
            self._epoll.register(self.socket, select.EPOLLIN)
        if now > self._swept + _SWEEP:
            self._swept = now
            for connection in list(self._waiting.values()):
                seconds = KEEP_SECONDS if connection.state == KEPT else REQUEST_SECONDS
                if now > connection.since + seconds:
                    self._forget(connection)
                    self._end(connection)

    # What the server hands around as a request is a connection.

    def get_request(self) -> Any:
        """A connection that has something to read. An OSError means that there is none now."""
        for descriptor, _ in self._epoll.poll(0, 1):
            connection = self._waiting.get(descriptor)
            if connection is None:
                self._accept()
            else:
                self._forget(connection)
                if not connection.closed:
                    return connection, connection.address
                self._end(connection)
        raise BlockingIOError

    def _accept(self) -> None:
        try:
            for _ in range(_BATCH):
                accepted, address = self.socket.accept()
                connection = Connection(accepted, address, self.serves.refused)
                if self._limiter.enter(connection):
                    self._wait(connection)
                else:
                    LOG.debug("no place for a connection from %s", address[0])
                    connection.close("full")
                    self._end(connection)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _SCARCE:
                return  # that client has gone again
            # It would be tried again at once, and for ever.
            self._epoll.unregister(self.socket)
            self._accepts_from = time.monotonic() + _BACKOFF
            self._limiter.spare(_EVICTED_AT_ONCE)
            if not self._out_of_descriptors:
                LOG.error("cannot accept connections: %s; trying again", error.strerror)
            self._out_of_descriptors = True
            return
        if self._out_of_descriptors:
            LOG.info("accepting connections works again")
        self._out_of_descriptors = False

    def _wait(self, connection: Connection) -> None:
        """Serve it when there is something to read."""
        descriptor = connection.socket.fileno()
        try:
            self._waiting[descriptor] = connection
            self._epoll.register(descriptor, select.EPOLLIN)
        except (MemoryError, OSError, ValueError):  # no memory; or the server was shut down
            self._waiting.pop(descriptor, None)
            self._end(connection)

    def _forget(self, connection: Connection) -> None:
        descriptor = connection.socket.fileno()
        self._epoll.unregister(descriptor)
        del self._waiting[descriptor]

    def _end(self, connection: Connection) -> None:
        # First, so that nobody shuts down what has its descriptor next.
        self._limiter.leave(connection)
        _shut_down(connection.socket)
        connection.socket.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start its thread."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            request.close("resources")
            raise

    def shutdown_request(self, request: Any) -> None:
        """End it, or wait for more: its thread is done with it."""
        if request.state == KEPT and not request.closed:
            self._wait(request)
        else:
            self._end(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer what came, in its thread; by TLS where that is wanted."""
        tls = self.tls()
        fresh = request.state == SILENT
        request.turn(SILENT)
        if fresh and tls is not None:
            request.socket.settimeout(REQUEST_SECONDS)
            if request.socket.recv(1, socket.MSG_PEEK) not in (b"", _TLS_HANDSHAKE):
                self._complain(client_address[0], "http request")
                _Exchange(self, request).refuse_plain()
                return
            request.secured(
                tls.wrap_socket(request.socket, server_side=True, do_handshake_on_connect=False)
            )
            try:
                request.socket.do_handshake()
            except ssl.SSLError:
                _linger(request)  # the client has to get the alert
                raise
            request.tls = tls
            request.turn(SILENT)
        elif request.tls is not tls:  # another since it was kept
            return
        _Exchange(self, request).run()

    def tls(self) -> ssl.SSLContext | None:
        """What connections are to be secured by, now."""
        access = self.serves.access
        return access.current().tls if access else None

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """Log it. It is the client's doing, mostly: it went away or was too slow."""
        LOG.debug("connection from %s failed", client_address[0], exc_info=True)
        # This one is mostly a wrong setting, there or here.
        error = sys.exc_info()[1]
        if isinstance(error, ssl.SSLError):
            reason = (error.reason or "closed").replace("_", " ").lower()
            self._complain(client_address[0], reason)

    def _complain(self, client: str, reason: str) -> None:
        """Say that TLS failed, now and then: anybody can make it fail often."""
        if time.monotonic() > Server._last_warning + _WARNING_SECONDS:
            Server._last_warning = time.monotonic()
            LOG.warning("TLS with %s failed: %s", client, reason)


class _Exchange:
    """Requests and answers on a connection, as long as one follows the other."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.stream = _TimedStream(connection.socket, REQUEST_SECONDS)
        self.rfile = io.BufferedReader(self.stream)
        self.wfile = io.BufferedWriter(self.stream)

    def run(self) -> None:
        """Answer what is there, and turn to KEPT where more may come."""
        while self._answer():
            self.stream.allow(0)
            if not self.rfile.peek(1):
                self.connection.turn(KEPT)
                return
            if self.connection.tls is not self.server.tls():
                return
            self.connection.turn(SILENT)
            self.stream.allow(REQUEST_SECONDS)

    def refuse_plain(self) -> None:
        """Answer a client that should have begun with TLS."""
        reason = "Client sent an HTTP request to an HTTPS server"
        self._refuse(BadRequestError("400 Bad Request", reason))

    def _answer(self) -> bool:
        """Answer one request. Whether another may follow."""
        try:
            request = read(self.rfile.readline)
        except BadRequestError as error:
            self._refuse(error)
            return False
        if request is None:
            return False
        self.connection.turn(ANSWERING)
        self.stream.allow(RESPONSE_SECONDS)
        complete = self._send(self._environ(request), self.server.serves, keeps=request.keeps)
        if request.content:
            _linger(self.connection)
        return request.keeps and complete

    def _refuse(self, error: BadRequestError) -> None:
        self.stream.allow(RESPONSE_SECONDS)
        environ = {
            **self.server.base_environ,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REQUEST_METHOD": error.method,
        }
        LOG.debug("%s refused: %s: %s", self.connection.address[0], error.status, error)
        serves = self.server.serves

        def refusal(environ: dict[str, Any], start: Any) -> Any:
            return serves.refuse(environ, start, error.status, str(error))

        self._send(environ, refusal, keeps=False)
        _linger(self.connection)

    def _environ(self, request: Request) -> dict[str, Any]:
        """The environment of PEP 3333."""
        environ: dict[str, Any] = {
            **self.server.base_environ,
            "SERVER_PROTOCOL": request.version,
            "REQUEST_METHOD": request.method,
            "PATH_INFO": urllib.parse.unquote(request.path, "iso-8859-1"),
            "QUERY_STRING": request.query,
            "REMOTE_ADDR": self.connection.address[0],
            "conntrack_textfile.connection": self.connection,
        }
        for name, value in request.headers.items():
            if "_" not in name:  # CGI's names do not tell Accept_Encoding from Accept-Encoding
                environ["HTTP_" + name.upper().replace("-", "_")] = value
        return environ

    def _send(self, environ: dict[str, Any], application: Any, *, keeps: bool) -> bool:
        """Send the answer of an application. Whether all of it could be sent."""
        read, write = cast("IO[bytes]", self.rfile), cast("IO[bytes]", self.wfile)
        handler = _Answer(read, write, cast("Any", sys.stderr), environ)
        handler.refuse = self.server.serves.refuse
        handler.keeps = keeps
        handler.run(application)
        self.wfile.flush()
        return not handler.failed


def _linger(connection: Connection) -> None:
    """Close the sending side, and discard for a while what still arrives (RFC 9112, 9.6)."""
    connection.turn(SILENT)  # it can be evicted
    sock, end = connection.socket, time.monotonic() + _LINGER_SECONDS
    _shut_down(sock)
    discarded = 0
    with contextlib.suppress(OSError):
        while (left := end - time.monotonic()) > 0 and discarded < _LINGER_BYTES:
            sock.settimeout(left)
            data = socket.socket.recv(sock, 1 << 16)  # not decrypted
            if not data:
                return
            discarded += len(data)


def _shut_down(sock: socket.socket) -> None:
    """Close the sending side: with TLS by a close_notify alert first (RFC 8446, 6.1)."""
    with contextlib.suppress(OSError, ValueError):  # reset, or no handshake yet
        if isinstance(sock, ssl.SSLSocket):
            sock.settimeout(0)  # the client's own alert is not waited for
            sock.unwrap()
    with contextlib.suppress(OSError):  # reset
        socket.socket.shutdown(sock, socket.SHUT_WR)


class _Answer(SimpleHandler):
    http_version = "1.1"
    os_environ: dict[str, str] = {}  # noqa: RUF012  # as declared there
    environ: dict[str, Any]  # these two are set there
    status: str | None
    refuse: Any
    keeps = False
    failed = False

    def _flush(self) -> None:
        """Not after each piece, as a packet and a TLS record of its own: when the buffer is full."""

    def cleanup_headers(self) -> None:
        super().cleanup_headers()
        headers = cast("Headers", self.headers)
        if not self.keeps:
            headers["Connection"] = "close"
        asked = [self.environ.get(name) for name in ("REMOTE_ADDR", "REQUEST_METHOD", "PATH_INFO")]
        LOG.debug("%s %s %s: %s", *asked, self.status)

    def log_exception(self, exc_info: _ExcInfo) -> None:
        self.failed = True
        self.keeps = False
        error = exc_info[1]
        if isinstance(error, OSError):  # the client went away or was too slow
            LOG.debug("answer not taken: %s", error)
        else:
            LOG.error("request failed: %r", error)
            LOG.debug("request failed", exc_info=exc_info)

    def error_output(self, environ: Any, start_response: Any) -> Any:
        self.headers = None  # those of the answer that failed
        return self.refuse(environ, start_response, "500 Internal Server Error", "see the log")


class _TimedStream(io.RawIOBase):
    """A socket of which all reads and writes together end by a deadline, and reads by a size.

    A timeout for each of them would let a client that sends a byte a second stay.
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._socket = sock
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Set the deadline to so many seconds from now, and the size to that of a request.

        With 0 it reads only what is there.
        """
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._read = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._read >= MAX_REQUEST:
            raise TooLargeError
        self._socket.settimeout(self._left())
        try:
            size = self._socket.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        self._read += size
        return size

    def write(self, data: Any) -> int:
        # Not sendall(): with TLS the time would begin anew with every record.
        self._socket.settimeout(self._left())
        return self._socket.send(data)

    def _left(self) -> float:
        if not self._seconds:
            return 0
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client is too slow")
        return left
