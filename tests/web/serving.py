"""For tests of HTTP: an application with fixed texts, a running server, a client."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile.labels import LABELS
from conntrack_textfile.values import Address
from conntrack_textfile.web import http, sockets
from conntrack_textfile.web.application import Application
from conntrack_textfile.web.query import parse
from tests.conftest import DATA

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conntrack_textfile.reload import Reloader
    from conntrack_textfile.web.body import Body
    from conntrack_textfile.web.config import Settings
    from conntrack_textfile.web.limiter import Limiter

SAMPLE = f"--path.procfs={DATA / 'kernel-6.18'}"


def get(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


@contextlib.contextmanager
def listening(application: Application, limiter: Limiter | None = None) -> Iterator[int]:
    with sockets.listen(Address("127.0.0.1", 0)) as listener:
        running = http.start(listener, application, limiter)
        try:
            yield listener.getsockname()[1]
        finally:
            # The loop looks twice a second whether it is to end, and after each connection.
            ending = threading.Thread(target=running.shutdown)
            ending.start()
            while ending.is_alive():
                with contextlib.suppress(OSError):
                    socket.create_connection(listener.getsockname(), 1).close()
                ending.join(0.01)


class Fixed(NamedTuple):
    """A source of content whose body of metrics the test chooses."""

    current: Callable[[], tuple[bytes, Body] | None]

    def html(self, telemetry_path: str, query_string: str) -> tuple[bytes, str]:
        parse(query_string, LABELS)
        return f"<a href={telemetry_path}>".encode(), "default-src 'none'"

    def ready(self) -> bool:
        return self.current() is not None


def application(
    current: Callable[[], tuple[bytes, Body] | None],
    web_config: Reloader[Settings] | None = None,
    **more: int,
) -> Application:
    settings = {"max_requests": 40, "exporter_metrics": False, **more}
    return Application(
        Fixed(current),
        telemetry_path="/metrics",
        max_requests=settings["max_requests"],
        exporter_metrics=bool(settings["exporter_metrics"]),
        web_config=web_config,
    )
