"""The HTTP server: connections, threads and deadlines.

It is the standard library's socketserver, with an epoll set in place of the
listening socket: a connection that becomes readable gets a thread, until its
requests are answered. An idle one costs a descriptor and no thread. Connections,
threads, time and sizes are limited: clients are not trusted.
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
from socketserver import BaseRequestHandler, BaseServer, ThreadingMixIn
from typing import IO, TYPE_CHECKING, Any, cast
from wsgiref.handlers import SimpleHandler

from conntrack_textfile.logs import LOG
from conntrack_textfile.web.limiter import IDLE, READING, RESPONDING, Connection, Limiter
from conntrack_textfile.web.request import MAX_REQUEST_BYTES, BadRequestError, TooLargeError, read

if TYPE_CHECKING:
    from types import TracebackType
    from wsgiref.headers import Headers

    from conntrack_textfile.web.application import Application
    from conntrack_textfile.web.request import Request

    _ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

# Seconds for a client to send its request, and to read the response.
REQUEST_SECONDS = 10.0
RESPONSE_SECONDS = 60.0

# Keep-alive timeout in seconds: more than two scrape intervals of a minute.
KEEP_ALIVE_SECONDS = 130.0

# Seconds and bytes of data to discard after the last response. close() with unread
# data resets the connection (RFC 9112, 9.6), and the client can lose the response.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 1 << 20

# Seconds between two log lines about failed TLS.
_TLS_WARNING_SECONDS = 60.0

# Simultaneous connections of all listening sockets. See Limiter.
MAX_CONNECTIONS = 512

# Seconds without accept() after it failed for lack of descriptors or memory.
_BACKOFF = 0.5
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Connections to evict then: their descriptors serve requests and the next snapshot.
_EVICTIONS = 16

# Connections accepted in a row, before readable ones are served.
_ACCEPT_BATCH = 64

# Seconds between two searches for connections whose timeout is over.
_SWEEP_SECONDS = 0.5

# Seconds after which the accept loop, which runs at least twice a second, counts as stuck.
_STUCK_SECONDS = 60.0

# Bytes of a thread's stack: 8 MiB of address space by default.
_STACK_BYTES = 1 << 20

_TLS_HANDSHAKE = b"\x16"  # ContentType, the first byte of TLS (RFC 8446, 5.1)


def start(
    listener: socket.socket, application: Application, limiter: Limiter | None = None
) -> Server:
    """Serve on a listening socket, in daemon threads.

    limiter: of this server's connections; may be shared with other servers.
    """
    threading.stack_size(_STACK_BYTES)
    server = Server(listener, application, limiter or Limiter(MAX_CONNECTIONS))
    threading.Thread(target=server.run, name="http", daemon=True).start()
    return server


class Server(ThreadingMixIn, BaseServer):
    """The server of one listening socket."""

    daemon_threads = True
    block_on_close = False
    _last_tls_warning = float("-inf")

    def __init__(self, listener: socket.socket, application: Application, limiter: Limiter) -> None:
        # Its handler class is not used: finish_request() is overridden.
        super().__init__(listener.getsockname(), BaseRequestHandler)
        self.socket = listener
        self.application = application
        self._limiter = limiter
        self._waiting: dict[int, Connection] = {}  # by descriptor; readable ones leave it
        self._epoll = select.epoll()
        listener.setblocking(False)  # noqa: FBT003
        # Accepted sockets inherit it. Nagle's algorithm would hold back the last segment of
        # a response until the client's delayed ACK (40 ms).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._epoll.register(listener, select.EPOLLIN)
        self._accept_after: float | None = None  # monotonic; None while accepting
        self._exhausted = False
        self._looped = self._swept = time.monotonic()

    def fileno(self) -> int:
        """Return the epoll descriptor: readable when there is anything to do."""
        return self._epoll.fileno()

    def run(self) -> None:
        """Serve until shutdown(). Errors restart the accept loop."""
        try:
            while True:
                try:
                    return self.serve_forever()
                except Exception:  # noqa: BLE001  # without memory anything can fail
                    with contextlib.suppress(MemoryError):
                        LOG.debug("the accept loop failed; starting it again", exc_info=True)
                time.sleep(_BACKOFF)
        finally:
            self._epoll.close()
            for connection in list(self._waiting.values()):
                self._end(connection)

    def alive(self) -> bool:
        """Return whether the accept loop runs."""
        return time.monotonic() - self._looped < _STUCK_SECONDS

    def service_actions(self) -> None:
        """Resume accept() after the backoff, and close connections whose timeout is over."""
        now = self._looped = time.monotonic()
        if self._accept_after is not None and now > self._accept_after:
            self._accept_after = None
            self._epoll.register(self.socket, select.EPOLLIN)
        if now > self._swept + _SWEEP_SECONDS:
            self._swept = now
            for connection in list(self._waiting.values()):
                seconds = KEEP_ALIVE_SECONDS if connection.state == IDLE else REQUEST_SECONDS
                if now > connection.since + seconds:
                    self._unregister(connection)
                    self._end(connection)

    # What socketserver calls a request is a Connection here.

    def get_request(self) -> Any:
        """Return a readable connection and its address. Raises OSError if there is none."""
        for descriptor, _ in self._epoll.poll(0, 1):
            connection = self._waiting.get(descriptor)
            if connection is None:
                self._accept()
            else:
                self._unregister(connection)
                if not connection.closed:
                    return connection, connection.address
                self._end(connection)
        raise BlockingIOError

    def _accept(self) -> None:
        """Accept connections, as many as the limiter allows."""
        try:
            for _ in range(_ACCEPT_BATCH):
                accepted, address = self.socket.accept()
                connection = Connection(accepted, address, self.application.count_refused)
                if self._limiter.acquire(connection):
                    self._wait(connection)
                else:
                    LOG.debug("too many connections: refused one from %s", address[0])
                    connection.close("full")
                    self._end(connection)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                return  # the client has disconnected
            # The socket stays readable: without a backoff this would be a busy loop.
            self._epoll.unregister(self.socket)
            self._accept_after = time.monotonic() + _BACKOFF
            self._limiter.evict_idle(_EVICTIONS)
            if not self._exhausted:
                LOG.error("cannot accept connections: %s; trying again", error.strerror)
            self._exhausted = True
            return
        if self._exhausted:
            LOG.info("accepting connections works again")
        self._exhausted = False

    def _wait(self, connection: Connection) -> None:
        """Wait until a connection is readable: then it gets a thread."""
        descriptor = connection.socket.fileno()
        try:
            self._waiting[descriptor] = connection
            self._epoll.register(descriptor, select.EPOLLIN)
        except (MemoryError, OSError, ValueError):  # no memory; or the server was shut down
            self._waiting.pop(descriptor, None)
            self._end(connection)

    def _unregister(self, connection: Connection) -> None:
        """End the wait for a connection."""
        descriptor = connection.socket.fileno()
        self._epoll.unregister(descriptor)
        del self._waiting[descriptor]

    def _end(self, connection: Connection) -> None:
        """Release and close a connection."""
        # In this order: after close() an eviction could reach another socket by the descriptor.
        self._limiter.release(connection)
        _shut_down(connection.socket)
        connection.socket.close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the thread of a readable connection."""
        try:
            super().process_request(request, client_address)
        except BaseException:
            request.close("resources")
            raise

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, or keep it alive, at the end of its thread."""
        if request.state == IDLE and not request.closed:
            self._wait(request)
        else:
            self._end(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve the requests that have arrived; after the handshake, if TLS is configured."""
        tls = self.tls()
        fresh = request.state == READING
        request.set_state(READING)
        if fresh and tls is not None:
            request.socket.settimeout(REQUEST_SECONDS)
            if request.socket.recv(1, socket.MSG_PEEK) not in (b"", _TLS_HANDSHAKE):
                self._warn_tls(client_address[0], "http request")
                _Exchange(self, request).refuse_plain_http()
                return
            request.use_tls(
                tls.wrap_socket(request.socket, server_side=True, do_handshake_on_connect=False)
            )
            try:
                request.socket.do_handshake()
            except ssl.SSLError:
                _linger(request)  # for the client to read the alert
                raise
            request.tls = tls
            request.set_state(READING)
        elif request.tls is not tls:  # reloaded since its handshake
            return
        _Exchange(self, request).run()

    def tls(self) -> ssl.SSLContext | None:
        """Return the current TLS settings, None without TLS."""
        web_config = self.application.web_config
        return web_config.current().tls if web_config else None

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """Log a failed connection: mostly the client disconnected or was too slow."""
        LOG.debug("connection from %s failed", client_address[0], exc_info=True)
        # Failed TLS is mostly a wrong setting of the client or of this server.
        error = sys.exc_info()[1]
        if isinstance(error, ssl.SSLError):
            reason = (error.reason or "closed").replace("_", " ").lower()
            self._warn_tls(client_address[0], reason)

    def _warn_tls(self, client: str, reason: str) -> None:
        """Log that TLS failed; rate limited, since any client can cause it."""
        if time.monotonic() > Server._last_tls_warning + _TLS_WARNING_SECONDS:
            Server._last_tls_warning = time.monotonic()
            LOG.warning("TLS with %s failed: %s", client, reason)


class _Exchange:
    """Pipelined requests of a connection, one at least, and their responses."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self.server = server
        self.connection = connection
        self.stream = _TimedStream(connection.socket, REQUEST_SECONDS)
        self.rfile = io.BufferedReader(self.stream)
        self.wfile = io.BufferedWriter(self.stream)

    def run(self) -> None:
        """Respond to all pipelined requests; leave the connection IDLE if it is kept alive."""
        while self._respond():
            self.stream.set_timeout(0)
            if not self.rfile.peek(1):
                self.connection.set_state(IDLE)
                return
            if self.connection.tls is not self.server.tls():  # reloaded since its handshake
                return
            self.connection.set_state(READING)
            self.stream.set_timeout(REQUEST_SECONDS)

    def refuse_plain_http(self) -> None:
        """Respond in plain text to a client that does not use TLS."""
        reason = "Client sent an HTTP request to an HTTPS server"
        self._refuse(BadRequestError("400 Bad Request", reason))

    def _respond(self) -> bool:
        """Respond to one request. Return whether another may follow."""
        try:
            request = read(self.rfile.readline)
        except BadRequestError as error:
            self._refuse(error)
            return False
        if request is None:
            return False
        self.connection.set_state(RESPONDING)
        self.stream.set_timeout(RESPONSE_SECONDS)
        application = self.server.application
        complete = self._send(self._environ(request), application, keep_alive=request.keep_alive)
        last = not (request.keep_alive and complete)
        if request.has_content or (last and self.connection.has_unread_data()):
            _linger(self.connection)
        return not last

    def _refuse(self, error: BadRequestError) -> None:
        self.stream.set_timeout(RESPONSE_SECONDS)
        environ = {"SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": error.method}
        LOG.debug("%s: %s: %s", self.connection.address[0], error.status, error)
        application = self.server.application

        def refusal(environ: dict[str, Any], start: Any) -> Any:
            return application.error(environ, start, error.status, str(error))

        self._send(environ, refusal, keep_alive=False)
        _linger(self.connection)

    def _environ(self, request: Request) -> dict[str, Any]:
        """Return what the application reads of the WSGI environment (PEP 3333)."""
        environ: dict[str, Any] = {
            "SERVER_PROTOCOL": request.version,
            "REQUEST_METHOD": request.method,
            "PATH_INFO": urllib.parse.unquote(request.path, "iso-8859-1"),
            "QUERY_STRING": request.query,
            "REMOTE_ADDR": self.connection.address[0],
            "conntrack_textfile.connection": self.connection,
        }
        for name, value in request.headers.items():
            if "_" not in name:  # A_B would pass for A-B: both are HTTP_A_B
                environ["HTTP_" + name.upper().replace("-", "_")] = value
        return environ

    def _send(self, environ: dict[str, Any], application: Any, *, keep_alive: bool) -> bool:
        """Send the response of an application. Return whether it was sent whole."""
        read, write = cast("IO[bytes]", self.rfile), cast("IO[bytes]", self.wfile)
        handler = _Response(read, write, cast("Any", sys.stderr), environ)
        handler.error = self.server.application.error
        handler.keep_alive = keep_alive
        handler.run(application)
        self.wfile.flush()
        return not handler.failed


def _linger(connection: Connection) -> None:
    """Close the sending side, and discard for a while what still arrives (RFC 9112, 9.6)."""
    connection.set_state(READING)  # it can be evicted
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


class _Response(SimpleHandler):
    """A response of the application, written as HTTP/1.1."""

    http_version = "1.1"
    os_environ: dict[str, str] = {}  # noqa: RUF012  # without the environment of this process
    environ: dict[str, Any]  # this and the next are set by SimpleHandler
    status: str | None
    error: Any  # Application.error
    keep_alive = False
    failed = False

    def _flush(self) -> None:
        """Do nothing: SimpleHandler flushes each piece, as a packet and TLS record of its own."""

    def cleanup_headers(self) -> None:
        super().cleanup_headers()
        headers = cast("Headers", self.headers)
        if not self.keep_alive:
            headers["Connection"] = "close"
        if "PATH_INFO" in self.environ:  # invalid requests are logged with their error
            names = ("REMOTE_ADDR", "REQUEST_METHOD", "PATH_INFO")
            LOG.debug("%s %s %s: %s", *(self.environ[name] for name in names), self.status)

    def log_exception(self, exc_info: _ExcInfo) -> None:
        self.failed = True
        self.keep_alive = False
        error = exc_info[1]
        if isinstance(error, OSError):  # the client disconnected or was too slow
            LOG.debug("response not sent: %s", error)
        else:
            LOG.error("request failed: %r", error)
            LOG.debug("request failed", exc_info=exc_info)

    def error_output(self, environ: Any, start_response: Any) -> Any:
        self.headers = None  # drop those of the failed response
        return self.error(environ, start_response, "500 Internal Server Error", "see the log")


class _TimedStream(io.RawIOBase):
    """A socket with one deadline for all reads and writes, and a limit of bytes to read.

    With a timeout for each call, a client could send a byte a second for ever (slowloris).
    """

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._socket = sock
        self.set_timeout(seconds)

    def set_timeout(self, seconds: float) -> None:
        """Set the deadline, 0 for non-blocking reads, and allow MAX_REQUEST_BYTES more."""
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._read = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._read >= MAX_REQUEST_BYTES:
            raise TooLargeError
        self._socket.settimeout(self._left())
        try:
            size = self._socket.recv_into(buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        self._read += size
        return size

    def write(self, data: Any) -> int:
        # Not sendall(): SSLSocket restarts its timeout with every record.
        self._socket.settimeout(self._left())
        return self._socket.send(data)

    def _left(self) -> float:
        if not self._seconds:
            return 0
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client is too slow")
        return left
