from __future__ import annotations

import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.web import sdnotify

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("abstract", [False, True])
def test_a_state_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name if abstract else name)
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        sock = sdnotify.connect()
        assert sock
        sdnotify.notify(sock, b"READY=1")
        assert systemd.recv(100) == b"READY=1"
    with sock:
        sdnotify.notify(sock, b"WATCHDOG=1")  # the other end is closed


def test_a_full_queue_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(tmp_path / "notify")
    monkeypatch.setattr(sdnotify, "_SEND_SECONDS", 20)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others,
        ThreadPoolExecutor(1) as pool,
    ):
        systemd.bind(name)
        systemd.settimeout(20)
        others.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                others.sendto(b"x", name)
        sock = sdnotify.connect()
        assert sock
        with sock:
            sent = pool.submit(sdnotify.notify, sock, b"READY=1")
            time.sleep(0.1)  # until it waits
            while (word := systemd.recv(100)) != b"READY=1":
                assert word == b"x"
            sent.result(20)


@pytest.mark.parametrize("name", ["", "x", "/nowhere/notify", "@nobody"])
def test_without_a_usable_socket_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert sdnotify.connect() is None
    sdnotify.notify(None, b"READY=1")


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("30000000", "own", 30.0),
        ("30000000", "1", None),
        (None, None, None),
        ("0", None, None),
        ("x", None, None),
    ],
)
def test_the_timeout_of_the_watchdog(
    monkeypatch: pytest.MonkeyPatch,
    microseconds: str | None,
    pid: str | None,
    seconds: float | None,
) -> None:
    for name, value in (("WATCHDOG_USEC", microseconds), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(os.getpid()) if value == "own" else value)
    assert sdnotify.watchdog_seconds() == seconds
