"""Socket activation: descriptors from 3 on, of whatever kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json, os, socket
from conntrack_textfile import activation
found = activation.sockets()
print(json.dumps([
    [[name, sock.fileno(), sock.family, os.get_inheritable(sock.fileno())] for name, sock in found],
    activation.sockets() == [],
    [name for name in os.environ if name.startswith("LISTEN_")],
]))
"""
# Descriptors 3 to 6: TCP, a file, nothing, and a pair that is connected.
SHELL = """
import os, socket, sys
tcp, pair = socket.create_server(("127.0.0.1", 0)), socket.socketpair()
file = os.open("/dev/null", os.O_RDONLY)
high = [os.dup2(fd, 50 + i) for i, fd in enumerate((tcp.fileno(), file, pair[0].fileno()))]
for at, fd in ((3, high[0]), (4, high[1]), (6, high[2])):
    os.dup2(fd, at)
os.environ.update(LISTEN_PID=sys.argv[1] or str(os.getpid()), LISTEN_FDS=sys.argv[2])
os.environ["LISTEN_FDNAMES"] = "a:b"
for fd in (5, *range(7, 60)):
    try:
        os.close(fd)
    except OSError:
        pass
os.execv(sys.executable, [sys.executable, "-W", "ignore", "-c", sys.argv[3]])
"""


def activated(pid: str, count: str) -> object:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SHELL, pid, count, PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_sockets_are_found_and_nothing_else() -> None:
    found = activated("", "4")
    assert found == [[["a", 3, 2, False], ["", 6, 1, False]], True, []]


@pytest.mark.parametrize(
    ("pid", "count"),
    [("1", "4"), ("", "0"), ("", ""), ("", "x"), ("", "-1"), ("x", "4"), ("", "9" * 30)],
)
def test_sockets_of_another_process_are_ignored(pid: str, count: str) -> None:
    assert activated(pid, count) == [[], True, []]


def test_a_process_without_passed_sockets_has_none() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=env
    )
    assert json.loads(done.stdout) == [[], True, []]
