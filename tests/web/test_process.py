from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

WATCHED = """
import os, signal, sys, threading, time
from conntrack_textfile.web import process

def alive():
    looked.append(1)
    if len(looked) == 5:
        os.kill(os.getpid(), signal.SIGTERM)
    return eval(sys.argv[1])

looked = []
process.block_signals()
process.run(alive, lambda: None, lambda: None)
"""


@pytest.mark.parametrize(("alive", "fed"), [("True", 5), ("False", 0), ("len(looked) < 3", 2)])
def test_the_watchdog_is_fed_while_the_threads_live(tmp_path: Path, alive: str, fed: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        env = {"NOTIFY_SOCKET": f"{tmp_path}/notify", "WATCHDOG_USEC": "60000"}
        argv = [sys.executable, "-c", WATCHED, alive]
        subprocess.run(argv, env=env, timeout=30, check=True)
        words = list(iter(lambda: systemd.recv(100), b"STOPPING=1"))
        assert words == [b"READY=1"] + [b"WATCHDOG=1"] * fed


RELOADED = """
import os, signal
from conntrack_textfile.web import process

def reload():
    reloads.append(1)
    os.kill(os.getpid(), signal.SIGHUP if len(reloads) < 5 else signal.SIGTERM)

reloads = []
process.block_signals()
os.kill(os.getpid(), signal.SIGHUP)
process.run(lambda: True, reload, lambda: None)
"""


def test_the_watchdog_is_fed_between_reloads_too(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        env = {"NOTIFY_SOCKET": f"{tmp_path}/notify", "WATCHDOG_USEC": "60000000"}
        subprocess.run([sys.executable, "-c", RELOADED], env=env, timeout=30, check=True)
        words = list(iter(lambda: systemd.recv(100), b"STOPPING=1"))
        assert words == [b"READY=1"] + [b"WATCHDOG=1"] * 5


EXHAUSTED = """
import os, signal, sys
from conntrack_textfile.web import process

def no_memory(*_):
    raise MemoryError

def reload():
    os.kill(os.getpid(), signal.SIGTERM)
    raise MemoryError

process.block_signals()
if sys.argv[1] == "waiting":
    signal.sigtimedwait = no_memory
elif sys.argv[1] == "saying":
    process.LOG.info = no_memory
os.kill(os.getpid(), signal.SIGHUP if sys.argv[1] == "reading" else signal.SIGTERM)
process.run(lambda: True, reload, lambda: None)
"""


@pytest.mark.parametrize("when", ["waiting", "saying", "reading"])
def test_a_signal_ends_the_process_without_memory(when: str) -> None:
    done = subprocess.run([sys.executable, "-c", EXHAUSTED, when], timeout=30, check=False)
    assert done.returncode == 0
