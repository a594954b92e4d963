from __future__ import annotations

import contextlib
import http.client
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest

from conntrack_textfile.errors import ListenError
from conntrack_textfile.values import Address
from conntrack_textfile.web import http as transport
from conntrack_textfile.web import sockets
from conntrack_textfile.web.body import EMPTY
from tests.certificates import HASH
from tests.program import COMMAND, serving
from tests.web.serving import SAMPLE, application

if TYPE_CHECKING:
    from pathlib import Path


def test_all_addresses_means_ipv4_and_ipv6() -> None:
    with sockets.listen(Address("", 0)) as listener:
        running = transport.start(listener, application(lambda: (b"", EMPTY)))
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with contextlib.closing(http.client.HTTPConnection(host, port, timeout=5)) as client:
                client.request("GET", "/metrics")
                assert client.getresponse().status == 200
        running.shutdown()


def test_a_host_name_is_resolved() -> None:
    with sockets.listen(Address("localhost", 0)) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ListenError, match=r"cannot listen on nowhere.invalid:1: "):
        sockets.listen(Address("nowhere.invalid", 1))
    with pytest.raises(ListenError, match=r"cannot listen on a..b:1: not a host name"):
        sockets.listen(Address("a..b", 1))


ACTIVATE = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
os.set_inheritable(listener.fileno(), True)
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_socket_activation() -> None:
    argv = [sys.executable, "-c", ACTIVATE, *COMMAND[1:], "serve", "--web.systemd-socket", SAMPLE]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read()
        assert b"conntrack_total_connections 91\n" in answer
    finally:
        process.terminate()
        assert "listening on 127.0.0.1:" in process.communicate()[1]


GIVEN = """
import os, sys
os.environ.update(LISTEN_PID=sys.argv[1].replace("own", str(os.getpid())), LISTEN_FDS=sys.argv[2])
os.dup2(0, 3)
from conntrack_textfile.cli import main
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("pid", "count"), [("", ""), ("1", "1"), ("own", "0"), ("own", "x"), ("own", "1")]
)
def test_without_a_passed_socket_it_listens_on_the_addresses(pid: str, count: str) -> None:
    listen = "--web.listen-address=127.0.0.1:0"
    argv = [sys.executable, "-c", GIVEN, pid, count, "serve", "--web.systemd-socket", SAMPLE]
    argv.append(listen)
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("listening on 127.0.0.1:" in line for line in process.stderr)
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("address", "host", "warned"),
    [
        ("127.0.0.1:0", r"127\.0\.0\.1", False),
        ("[::1]:0", r"\[::1\]", False),
        (":0", r"\[::\]", True),
    ],
)
def test_addresses_are_logged_at_start(address: str, host: str, warned: bool) -> None:
    with serving(SAMPLE, f"--web.listen-address={address}") as served:
        line = rf'level=info msg="listening on {host}:\d+, without TLS, without passwords"'
        served.wait_for_log(line)
        if warned:
            served.wait_for_log(rf'level=warn msg="whoever reaches {host}:{served.port} sees who')
        assert ("whoever reaches" in served.stop()) == warned


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"basic_auth_users:\n  alice: {HASH}\n", "without TLS, with passwords"),
        (
            "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n",
            "with TLS, without passwords",
        ),
    ],
)
def test_no_warning_with_tls_or_passwords(place: Path, text: str, said: str) -> None:
    (place / "web.yml").write_text(text)
    config = f"--web.config.file={place}/web.yml"
    with serving(SAMPLE, config, "--web.listen-address=0.0.0.0:0") as served:
        served.wait_for_log(rf"listening on 0\.0\.0\.0:\d+, {said}")
        assert "whoever reaches" not in served.stop()
