"""A headless Chromium, driven by the DevTools protocol over its pipe.

python tests/browser.py URL FILE [--dark] [--width=N]    a screenshot
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO

CHROMIUM = [
    *("chromium", "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
    *("--disable-background-networking", "--no-first-run", "--remote-debugging-pipe"),
    "--ignore-certificate-errors",
]


class Browser:
    """One page."""

    def __init__(self, send: int, received: FileIO) -> None:
        self._send = send
        self._received = received
        self._rest = b""
        self._numbers = itertools.count(1)
        self.events: list[Any] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        return self._call(method, self._session, **parameters)

    def open(self, url: str, *, width: int = 1200, dark: bool = False, **headers: str) -> None:
        """Load a page; return after its load event."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Network.setExtraHTTPHeaders", headers=headers)
        self.events.clear()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next()

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Return the messages of the console, such as violations of the Content-Security-Policy."""
        self.evaluate("0")
        return [
            event["params"]["entry"]["text"]
            for event in self.events
            if event["method"] == "Log.entryAdded"
        ]

    def screenshot(self) -> bytes:
        """Return the whole page as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(shot["data"])

    def _call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            data = self._received.read(1 << 20)
            assert data, "the browser is gone"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        found = json.loads(message)
        if "method" in found:
            self.events.append(found)
        return found


def _pipe() -> tuple[int, int]:
    """Return a pipe; neither end is descriptor 3 or 4, which bash is to set."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Run Chromium with a new profile. It reads requests from descriptor 3 and writes to 4."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        their_in, our_out = _pipe()
        our_in, their_out = _pipe()
        command = " ".join([*CHROMIUM, f"--user-data-dir={profile}"])
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command} 3<&{their_in} 4>&{their_out}"],
            pass_fds=(their_in, their_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_in)
        os.close(their_out)
        with os.fdopen(our_in, "rb", buffering=0) as received:
            try:
                yield Browser(our_out, received)
            finally:
                os.close(our_out)
                process.terminate()
                process.wait(20)


def main(url: str, file: str, *args: str) -> None:
    width = next((int(arg.partition("=")[2]) for arg in args if arg.startswith("--width=")), 1200)
    with browsing() as browser:
        browser.open(url, width=width, dark="--dark" in args)
        height = browser.evaluate("document.documentElement.scrollHeight")
        browser.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        Path(file).write_bytes(browser.screenshot())


if __name__ == "__main__":
    main(*sys.argv[1:])
